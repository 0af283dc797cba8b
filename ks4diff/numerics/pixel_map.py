"""Smooth maps from the pixels of one image to those of another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics import polynomial


@dataclass(frozen=True, kw_only=True)
class PixelMap:
    """A polynomial map of pixels: ``coefficients`` float64 [2, n_terms] over (u, v).

    u = (x - centre[0]) / scale, v likewise; terms in the order of `polynomial.exponents`.
    """

    coefficients: np.ndarray
    degree: int
    centre: tuple[float, float]
    scale: float

    def unit(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (u, v) of points [n, 2]."""
        u, v = ((points - self.centre) / self.scale).T
        return u, v

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return float64 [n, 2], where points [n, 2] land."""
        return polynomial.evaluate(self.coefficients, *self.unit(points), self.degree).T

    def area(self) -> float:
        """Return the area of the middle pixel in pixels of the other image."""
        return float(abs(np.linalg.det(self.coefficients[:, 1:3]))) / self.scale**2


def fitted(points: np.ndarray, values: np.ndarray, shape: tuple[int, int], degree: int) -> PixelMap:
    """Return the map of an image of ``shape`` that takes points [n, 2] to values [n, 2] by least squares."""
    rows, columns = shape
    empty = PixelMap(
        coefficients=np.zeros((2, 1)),
        degree=degree,
        centre=((columns - 1) / 2, (rows - 1) / 2),
        scale=max(rows, columns) / 2,
    )
    return replace(empty, coefficients=polynomial.fit(*empty.unit(points), values.T, degree))


def plus(base: PixelMap, coefficients: np.ndarray, degree: int) -> PixelMap:
    """Return the map with a polynomial in its (u, v) added."""
    high, low = base.coefficients, coefficients
    if high.shape[1] < low.shape[1]:
        high, low = low, high
    total = high.copy()
    total[:, : low.shape[1]] += low
    return replace(base, coefficients=total, degree=max(base.degree, degree))


def followed_by(base: PixelMap, similarity: np.ndarray) -> PixelMap:
    """Return the map followed by a similarity (a, b, tx, ty), see `pattern.propose`."""
    a, b, tx, ty = similarity
    turned = np.array([[a, -b], [b, a]]) @ base.coefficients
    turned[:, 0] += (tx, ty)
    return replace(base, coefficients=turned)
