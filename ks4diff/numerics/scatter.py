"""How much values scatter: over an image, around places, beyond their noise."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from ks4diff.numerics.jit import jit


def masked_std(values: np.ndarray, flags: np.ndarray, among: np.ndarray | None = None) -> float:
    """Return the standard deviation of float32 [y, x] where ``flags`` are 0; NaN where nowhere.

    ``among`` bool [y, x] restricts it.
    """
    n, total, square = _sums(values, flags, among)
    return float(np.sqrt(max(square / n - (total / n) ** 2, 0.0))) if n else float("nan")


@jit
def _sums(values, flags, among):
    """Return (number, sum, sum of squares) of what `masked_std` looks at, in float64."""
    n, total, square = 0, 0.0, 0.0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            if flags[y, x] == 0 and (among is None or among[y, x]):
                value = np.float64(values[y, x])
                n += 1
                total += value
                square += value * value
    return n, total, square


def ring_scatter(
    values: np.ndarray,
    flags: np.ndarray,
    at: np.ndarray,
    *,
    inner: float,
    outer: float,
    quantile: float = 0.5,
) -> np.ndarray:
    """Return float64 [n]: a quantile of |value| in a ring around each place over that of a unit normal.

    Finite ``values`` float32 [y, x] count where ``flags`` [y, x] are 0, from ``inner`` (exclusive) to
    ``outer`` px of the pixel ``at`` int64 [2, n] (x, y); NaN where less than half of the ring counts.
    """
    half = int(np.ceil(outer))
    offset = np.arange(-half, half + 1)
    radius = np.hypot(offset[:, None], offset[None, :])
    ring = np.argwhere((radius > inner) & (radius <= outer)) - half
    out = np.full(at.shape[1], np.nan)
    _rings(values, flags, np.ascontiguousarray(at, dtype=np.int64), ring, quantile, out)
    return out / norm.ppf(0.5 + 0.5 * quantile)


@jit
def _rings(values, flags, at, ring, quantile, out):
    rows, columns = values.shape
    around = np.empty(len(ring), dtype=np.float32)
    for n in range(at.shape[1]):
        m = 0
        for k in range(len(ring)):
            y, x = at[1, n] + ring[k, 0], at[0, n] + ring[k, 1]
            if 0 <= y < rows and 0 <= x < columns and flags[y, x] == 0 and np.isfinite(values[y, x]):
                around[m] = abs(values[y, x])
                m += 1
        if m > 0 and 2 * m >= len(ring):
            out[n] = np.quantile(around[:m], quantile)


def excess_scatter(residual: np.ndarray, noise: np.ndarray) -> float:
    """Return the scatter that makes the median squared pull that of a normal, 0.455; 0 where noise does.

    ``residual`` and ``noise`` (standard deviations) [n] in one unit; the scatter adds in quadrature. Half of
    the values may be outliers before it follows them.
    """
    # a pull beyond c is a scatter² below r² / c² - noise²: half of them are where that is the median
    return float(np.sqrt(max(np.median((residual / 0.6745) ** 2 - noise**2), 0.0)))
