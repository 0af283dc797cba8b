"""Long runs along rows that stand out of the noise, and growing what was found."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

BLOCK = 256  # columns that are turned into rows at a time


@jit
def _near(core, reach, near):
    """Fill which pixels of a row lie within ``reach`` px of a core; return whether there is a core."""
    columns = len(core)
    near[:] = False
    last = -columns - reach
    for x in range(columns):
        if core[x]:
            last = x
        near[x] = x - last <= reach
    if last < 0:
        return False
    last = 2 * columns + reach
    for x in range(columns - 1, -1, -1):
        if core[x]:
            last = x
        near[x] |= last - x <= reach
    return True


@jit
def _mean(total, x, half):
    """Return the mean around x in sigma, from the running totals of a row."""
    low, high = max(x - half, 0), min(x + half + 1, len(total) - 1)
    return (total[high] - total[low]) / np.sqrt(high - low)


@jit
def _row_runs(image, core, noise, window, limit, reach, out):
    """Mark in ``out`` the runs of `runs` along the rows."""
    rows, columns = image.shape
    total = np.zeros(columns + 1)
    near = np.zeros(columns, dtype=np.bool_)
    for y in range(rows):
        if not _near(core[y], reach, near):
            continue
        for x in range(columns):
            # one residual of a bright star counts no more than 3 sigma in the mean
            total[x + 1] = total[x] + min(max(image[y, x] / noise, -3.0), 3.0)
        start, own, holds = 0, 0, False
        for x in range(columns + 1):
            if x < columns and (near[x] or abs(_mean(total, x, window // 2)) > limit):
                own += near[x]
                holds |= core[y, x]
                continue
            # a star's residual smeared by the window is at most a window longer than its core
            if holds and x - start - own > 1.2 * window:
                out[y, start:x] = True
            start, own, holds = x + 1, 0, False


def runs(
    image: np.ndarray, core: np.ndarray, *, noise: float, window: int, limit: float, reach: int
) -> np.ndarray:
    """Return bool [y, x]: pixels of rows and columns that stand out for long beside a core.

    A run holds a pixel of ``core`` (bool [y, x]) and goes on as long as the mean of ``image`` (std ``noise``,
    clipped at 3 sigma) over ``window`` px is ``limit`` sigma from 0; it is long when it leaves the core's own
    ``reach`` px by more than 1.2 windows.
    """
    out = np.zeros(core.shape, dtype=np.bool_)
    _row_runs(image, core, noise, window, limit, reach, out)
    for left in range(0, core.shape[1], BLOCK):
        part = slice(left, left + BLOCK)
        if not core[:, part].any():
            continue
        turned = np.zeros(core[:, part].shape[::-1], dtype=np.bool_)
        pixels, cores = np.ascontiguousarray(image[:, part].T), np.ascontiguousarray(core[:, part].T)
        _row_runs(pixels, cores, noise, window, limit, reach, turned)
        out[:, part] |= turned.T
    return out


@jit
def _grow(found, radius, bit, flags):
    rows, columns = found.shape
    reach = int(radius)
    limit = radius * radius
    for y in range(rows):
        for x in range(columns):
            if not found[y, x]:
                continue
            for j in range(max(y - reach, 0), min(y + reach + 1, rows)):
                for i in range(max(x - reach, 0), min(x + reach + 1, columns)):
                    if (j - y) ** 2 + (i - x) ** 2 <= limit:
                        flags[j, i] |= bit


def grow(found: np.ndarray, radius: float, bit: int, flags: np.ndarray) -> None:
    """Raise ``bit`` in ``flags`` (uint16 [y, x], in place) within ``radius`` px of the pixels ``found``."""
    _grow(found, float(radius), np.uint16(bit), flags)
