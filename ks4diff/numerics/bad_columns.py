"""Find columns that stand out of their neighbours for many rows: traps and hot pixels of the detector."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

# a pixel of noise is above the four columns beside it (2 and 3 px away on both sides) in 1 of 5 rows, and
# below them as often; two bad columns 2 and 3 px away make that 1 in 3: the cost must exceed it
COST = 0.4
GIVEN_UP = 10.0  # below its peak, a score is another run's
BLOCK = 32  # rows that are counted together first
LOOKED_AT = 22  # of two blocks' rows: 4 sigma of noise, and what a run of 34 rows or a long faint one has


@jit
def _counts(data, first, last, out):
    """Write per column how many more rows are above their four neighbours than below, int32 [columns]."""
    out[:] = 0
    n = out.size - 6
    middle = out[3 : 3 + n]
    for y in range(first, last):
        row = data[y]
        here, far, near, after, beyond = row[3:], row, row[1:], row[5:], row[6:]
        for x in range(n):
            high = max(max(far[x], near[x]), max(after[x], beyond[x]))
            low = min(min(far[x], near[x]), min(after[x], beyond[x]))
            middle[x] += np.int32(here[x] > high) - np.int32(here[x] < low)


@jit
def _columns(data, sums):
    """Return int8 [columns]: 1 or -1 where two blocks in a row are above or below, both 2, else 0."""
    rows, columns = data.shape
    out = np.zeros(columns, dtype=np.int8)
    before = np.zeros(columns, dtype=np.int32)
    for first in range(0, rows, BLOCK):
        _counts(data, first, min(first + BLOCK, rows), sums)
        for x in range(3, columns - 3):
            both = before[x] + sums[x]
            if both >= LOOKED_AT:
                out[x] = 1 if out[x] == 0 or out[x] == 1 else 2
            elif both <= -LOOKED_AT:
                out[x] = -1 if out[x] == 0 or out[x] == -1 else 2
            before[x] = sums[x]
    return out


@jit
def _runs(data, x, sign, enough, out):
    """Write (first row, end) of the runs of a column into ``out`` [rows, 2] and return how many there are."""
    rows = data.shape[0]
    score, peak, start, end, n = 0.0, 0.0, 0, 0, 0
    for y in range(rows + 1):
        if y < rows:
            here = sign * data[y, x]
            far, near = sign * data[y, x - 3], sign * data[y, x - 2]
            after, beyond = sign * data[y, x + 2], sign * data[y, x + 3]
            score -= COST
            if here > far and here > near and here > after and here > beyond:
                score += 1
            elif here < far and here < near and here < after and here < beyond:
                score -= 1
            if score > peak:
                peak, end = score, y + 1
        if score <= 0 or score < peak - GIVEN_UP or y == rows:
            if peak >= enough:
                out[n, 0], out[n, 1] = start, end
                n += 1
            score, peak, start = 0.0, 0.0, y + 1
    return n


def bad_columns(data: np.ndarray, enough: float) -> np.ndarray:
    """Return int64 [n, 3]: column, first row and end of each run of rows above or below all four neighbours.

    ``data`` float32 [y, x], the sky still in it. Each row in which the pixel is above the columns 2 and 3 px
    away on either side counts 1, below them -1, less 0.4; a run is where the sum rises by ``enough``
    (Kadane's maximal sum): some ``enough`` / 0.6 rows of a bad column, three times as many of one that stands
    out by a sigma and a half. In noise a sum of 20 has a chance of e^-36 to begin at a pixel. A star at the
    brim of saturation has one of 15, a brighter one more. The outermost three columns are not looked at.
    """
    rows, columns = data.shape
    if columns < 7:
        return np.empty((0, 3), dtype=np.int64)
    sides = _columns(data, np.empty(columns, dtype=np.int32))
    out, found = np.empty((rows + 1, 2), dtype=np.int64), [np.empty((0, 3), dtype=np.int64)]
    for x in np.flatnonzero(sides).tolist():
        for sign in (1.0, -1.0):
            if sides[x] in (sign, 2):
                runs = out[: _runs(data, x, sign, enough, out)]
                found.append(np.concatenate([np.full((len(runs), 1), x), runs], axis=1))
    return np.concatenate(found)
