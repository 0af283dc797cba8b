"""Light far out around stars, as a profile with radius: measured in rings, and subtracted."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _at(profile, r):
    """Return a profile, known at whole pixels, at radius ``r``."""
    k = int(r)
    return profile[k] + (r - k) * (profile[k + 1] - profile[k])


@jit
def _subtract(image, stars, profile):
    rows, columns = image.shape
    reach = len(profile) - 1
    for k in range(stars.shape[1]):
        x0, y0, flux = stars[0, k], stars[1, k], stars[2, k]
        for y in range(max(int(np.ceil(y0 - reach)), 0), min(int(np.floor(y0 + reach)) + 1, rows)):
            half = np.sqrt(reach * reach - (y - y0) ** 2)
            for x in range(max(int(np.ceil(x0 - half)), 0), min(int(np.floor(x0 + half)) + 1, columns)):
                r = np.sqrt((y - y0) ** 2 + (x - x0) ** 2)
                if r < reach:
                    image[y, x] -= np.float32(flux * _at(profile, r))


def subtract_halos(image: np.ndarray, stars: np.ndarray, profile: np.ndarray) -> None:
    """Subtract flux * profile(distance) around stars from ``image`` float32 [y, x], in place.

    ``stars`` float64 [3, n]: x and y in pixels of the image, beyond it too, and flux; ``profile`` float64
    [reach + 1] at radii 0, 1, ... px, straight between them and 0 beyond.
    """
    _subtract(image, np.ascontiguousarray(stars, dtype=np.float64), profile)


def ring_means(
    values: np.ndarray, used: np.ndarray, ring: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean of the ``used`` pixels (bool), how many) of rings 0 ... n - 1, each with its neighbours.

    ``ring`` int of each pixel; those of n and more do not count. 0 where there is none.
    """
    inside = used & (ring < n)
    sums = np.bincount(ring[inside], values[inside], minlength=n), np.bincount(ring[inside], minlength=n)
    total, count = (np.convolve(part, np.ones(3), "same") for part in sums)
    return total / np.maximum(count, 1), count
