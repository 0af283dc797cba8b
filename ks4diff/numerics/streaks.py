"""Long runs along rows that stand out of the noise, and growing what was found."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _stands(row, x, noise, half, limit):
    """Return whether the mean around x is ``limit`` sigma from 0."""
    low, high = max(x - half, 0), min(x + half + 1, len(row))
    total = 0.0
    for i in range(low, high):
        # one residual of a bright star counts no more than 3 sigma in the mean
        total += min(max(row[i] / noise, -3.0), 3.0)
    return abs(total) > limit * np.sqrt(high - low)


@jit
def _row_runs(image, y, x, noise, window, limit, reach, out):
    """Mark in ``out`` the runs of `runs` along the rows that hold the cores (y, x), in reading order.

    From each core outwards: few rows of a chip have any, and few pixels of those stand out.
    """
    columns, half, k = image.shape[1], window // 2, 0
    while k < len(y):
        line, row = y[k], image[y[k]]
        start = max(x[k] - reach, 0)
        stop, own = start, 0
        while True:
            if k < len(y) and y[k] == line and x[k] - reach <= stop:
                own += min(x[k] + reach + 1, columns) - stop
                stop = min(x[k] + reach + 1, columns)
                k += 1
            elif stop < columns and _stands(row, stop, noise, half, limit):
                stop += 1
            else:
                break
        while start > 0 and _stands(row, start - 1, noise, half, limit):
            start -= 1
        # a star's residual smeared by the window is at most a window longer than its core
        if stop - start - own > 1.2 * window:
            out[line, start:stop] = True


def runs(
    image: np.ndarray, core: np.ndarray, *, noise: float, window: int, limit: float, reach: int
) -> np.ndarray:
    """Return bool [y, x]: pixels of rows and columns that stand out for long beside a core.

    A run holds a pixel of ``core`` (int64 [n], where in the flat image, in reading order) and goes on as long
    as the mean of ``image`` (std ``noise``, clipped at 3 sigma) over ``window`` px is ``limit`` sigma from 0;
    it is long when it leaves the core's own ``reach`` px by more than 1.2 windows.
    """
    out = np.zeros(image.shape, dtype=np.bool_)
    y, x = np.divmod(core, image.shape[1])
    _row_runs(image, y, x, noise, window, limit, reach, out)
    by_column = np.argsort(x, kind="stable")
    _row_runs(image.T, x[by_column], y[by_column], noise, window, limit, reach, out.T)
    return out


@jit
def _grow(at, radius, bit, flags):
    rows, columns = flags.shape
    reach = int(radius)
    limit = radius * radius
    for k in range(len(at)):
        y, x = at[k] // columns, at[k] % columns
        for j in range(max(y - reach, 0), min(y + reach + 1, rows)):
            for i in range(max(x - reach, 0), min(x + reach + 1, columns)):
                if (j - y) ** 2 + (i - x) ** 2 <= limit:
                    flags[j, i] |= bit


def grow(found: np.ndarray, radius: float, bit: int, flags: np.ndarray) -> None:
    """Raise ``bit`` in ``flags`` (uint16 [y, x], in place) within ``radius`` px of the pixels ``found``."""
    _grow(np.flatnonzero(found), float(radius), np.uint16(bit), flags)
