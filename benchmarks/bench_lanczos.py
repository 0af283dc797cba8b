"""Time `ks4diff.numerics.lanczos.resample` against scipy's cubic spline on the same turned grid."""

from __future__ import annotations

import argparse

import numpy as np
from scipy import ndimage

from benchmarks.timing import best_of_five, line, machine
from ks4diff.numerics.lanczos import node_grid, resample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="pixels along one side of the output")
    size = parser.parse_args().size
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (size + 60, size + 60)).astype(np.float32)
    variance = np.ones_like(image)
    bad = np.where(rng.random(image.shape) < 1e-3, 4, 0).astype(np.int32)
    c, s = 1.002 * np.cos(5e-3), 1.002 * np.sin(5e-3)

    def turned(x, y):
        return np.stack([c * x - s * y + 20 + s * size, s * x + c * y + 20])

    nodes = turned(*node_grid((size, size)))
    x, y = turned(*np.meshgrid(np.arange(float(size)), np.arange(float(size))))

    def spline():
        # image, variance and mask, as `resample` gives them
        data = ndimage.map_coordinates(image, (y, x), order=3, output=np.float32)
        noise = ndimage.map_coordinates(variance, (y, x), order=1, output=np.float32)
        return data, noise, ndimage.map_coordinates(bad, (y, x), order=0)

    ours = best_of_five(lambda: resample(image, variance, bad, nodes, (size, size)))
    print(machine())
    print(line(f"resample {size}x{size}", ours, "scipy cubic spline", best_of_five(spline)))
    print(f"{1e9 * ours / size**2:.0f} ns per pixel, one thread")


if __name__ == "__main__":
    main()
