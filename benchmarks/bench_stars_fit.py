"""Time `ks4diff.numerics.stars_fit.fit_stars` against a sparse least-squares solution for the fluxes alone.

The comparison flatters scipy: positions stay, and drawing the stars into its matrix is not counted.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import lsqr

from benchmarks.timing import best_of_five, line, machine
from ks4diff.numerics.stars_fit import draw_stars, fit_stars
from tests.strategies import moffat

SWEEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels along one side")
    parser.add_argument("--stars", type=int, default=1000)
    options = parser.parse_args()
    size, k = options.size, options.stars
    rng = np.random.default_rng(1)
    psf = moffat(27, 3.5)
    truth = np.stack([*rng.uniform(0, size, (2, k)), np.sort(rng.pareto(1.2, k) * 500 + 100)[::-1]])
    variance = (draw_stars((size, size), psf, truth) + 400).astype(np.float32)
    image = (variance - 400 + rng.normal(0, 1, variance.shape) * np.sqrt(variance)).astype(np.float32)
    good = np.ones(image.shape, dtype=bool)
    start = truth + rng.normal(0, 0.2, truth.shape) * [[1], [1], [0]]

    def design_matrix():
        # one column per star
        columns = []
        for star in start.T:
            x, y = int(np.floor(star[0] + 0.5)), int(np.floor(star[1] + 0.5))
            stamp = draw_stars((27, 27), psf, np.array([[star[0] - x + 13], [star[1] - y + 13], [1.0]]))
            v, u = np.mgrid[y - 13 : y + 14, x - 13 : x + 14]
            inside = (v >= 0) & (u >= 0) & (v < size) & (u < size)
            columns.append((stamp[inside], v[inside] * size + u[inside]))
        pointer = np.cumsum([0] + [len(c[0]) for c in columns])
        data, index = (np.concatenate(part) for part in zip(*columns, strict=True))
        root = 1 / np.sqrt(variance.ravel().astype(float))
        return sparse.csc_array((data * root[index], index, pointer), shape=(size * size, k)), root

    design, root = design_matrix()
    ours = best_of_five(lambda: fit_stars(image, good, variance, psf, start, core=4, sweeps=SWEEPS))
    sparse_only = best_of_five(lambda: lsqr(design, image.ravel() * root, iter_lim=50))
    print(machine())
    print(line(f"fit_stars {size}x{size}, {k} stars", ours, "scipy lsqr, fluxes only", sparse_only))
    print(f"{1e6 * ours / SWEEPS / k:.1f} us per star and sweep")


if __name__ == "__main__":
    main()
