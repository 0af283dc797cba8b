"""Time `ks4diff.numerics.zogy.subtract` against the same equations in plain complex float64 FFTs."""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.timing import best_of_five, line, machine
from ks4diff.numerics import zogy
from tests import oracles
from tests.strategies import moffat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="pixels along one side")
    size = parser.parse_args().size
    rng = np.random.default_rng(1)
    pair = [
        zogy.Side(
            rng.normal(0, s, (size, size)).astype(np.float32),
            np.full((size, size), s**2, dtype=np.float32),
            moffat(29, fwhm),
            flux,
            s**2,
        )
        for s, fwhm, flux in ((3.0, 4.0, 1.0), (2.0, 3.0, 1.6))
    ]
    grid = zogy.grid_shape((size, size), 29)
    ours = best_of_five(lambda: zogy.subtract(*pair, sigma_x=0.1, sigma_y=0.1))
    plain = best_of_five(lambda: oracles.zogy(*pair, grid, sigma=(0.1, 0.1)))
    print(machine())
    print(line(f"subtract {size}x{size}", ours, "plain numpy", plain))
    print(f"{1e9 * ours / size**2:.0f} ns per pixel, one thread")


if __name__ == "__main__":
    main()
