"""How much more values scatter than their noise."""

from __future__ import annotations

import numpy as np


def excess_scatter(residual: np.ndarray, noise: np.ndarray) -> float:
    """Return the scatter that makes the median squared pull that of a normal, 0.455; 0 where noise does.

    ``residual`` and ``noise`` (standard deviations) [n] in one unit; the scatter adds in quadrature. Half of
    the values may be outliers before it follows them.
    """
    low, high = 0.0, 10.0 * float(np.median(np.abs(residual))) + 1e-9
    if np.median(np.abs(residual) / np.maximum(noise, 1e-12)) <= 0.6745:
        return 0.0
    for _ in range(14):
        middle = 0.5 * (low + high)
        if np.median(np.abs(residual) / np.hypot(noise, middle)) > 0.6745:
            low = middle
        else:
            high = middle
    return high
