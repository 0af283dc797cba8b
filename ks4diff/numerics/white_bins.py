"""Sum a difference in units of its noise over square bins, for what is fainter than one pixel's noise."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


def bin_sums(
    difference: np.ndarray,
    error: np.ndarray,
    flags: np.ndarray,
    level: np.ndarray,
    *,
    side: int,
    ceiling: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (sums float32, counts int32) [rows // side, columns // side] of good pixels in units of noise.

    A pixel's noise is ``error`` [y, x] times the ``level`` [n, m] of the equal block of the image that holds
    it; no pixel counts more than ``ceiling``. Good are those with no flag and an error above 0. What does
    not fill a bin at the far borders is left out.
    """
    shape = difference.shape[0] // side, difference.shape[1] // side
    sums, counts = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    _sum(
        difference, error, flags, np.asarray(level, dtype=np.float32), side, np.float32(ceiling), sums, counts
    )
    return sums, counts


@jit
def _sum(difference, error, flags, level, side, ceiling, sums, counts):
    high, wide = level.shape[0] / difference.shape[0], level.shape[1] / difference.shape[1]
    for j in range(sums.shape[0] * side):
        row = level[int(j * high)]
        for i in range(sums.shape[1] * side):
            noise = error[j, i] * row[int(i * wide)]
            if flags[j, i] == 0 and noise > 0 and np.isfinite(difference[j, i]):
                sums[j // side, i // side] += min(max(difference[j, i] / noise, -ceiling), ceiling)
                counts[j // side, i // side] += 1
