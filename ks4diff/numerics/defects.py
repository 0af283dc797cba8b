"""Find pixels without data, above saturation and above thresholds, a strip of rows at a time."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

_CHUNK = 64  # pixels of a row that are looked at together: most hold nothing, and counting runs 8 at a time


@jit
def _zero_block(data, y, x, enough, queue):
    """Return whether the zeros joined to the zero at (y, x) are at least ``enough``; ``queue`` [n, 2]."""
    height, width = data.shape
    queue[0, 0], queue[0, 1] = y, x
    found, done = 1, 0
    while done < found and found < enough:
        for step in range(4):
            j = queue[done, 0] + (step == 0) - (step == 1)
            i = queue[done, 1] + (step == 2) - (step == 3)
            if 0 <= j < height and 0 <= i < width and data[j, i] == 0:
                new = True
                for k in range(found):
                    new = new and not (queue[k, 0] == j and queue[k, 1] == i)
                if new:
                    queue[found, 0], queue[found, 1] = j, i
                    found += 1
        done += 1
    return found >= enough


@jit
def _odd(row, absurd):
    """Return how many values are 0, absurd or not finite."""
    n = 0
    for x in range(len(row)):
        n += (row[x] == 0) | (not abs(row[x]) < absurd)
    return n


@jit
def _flag_strip(data, flags, y0, y1, enough, absurd, bits):
    """Raise bits[0] where zeros hang together and bits[1] where values are absurd or not finite."""
    queue = np.empty((enough + 4, 2), dtype=np.int64)
    width = data.shape[1]
    for y in range(y0, y1):
        before = False
        for start in range(0, width, _CHUNK):
            end = min(start + _CHUNK, width)
            if _odd(data[y, start:end], absurd) == 0:
                before = False
                continue
            for x in range(start, end):
                value = data[y, x]
                if value == 0:
                    # beside a zero of a block the block is known already
                    before = (
                        before
                        or (y > y0 and data[y - 1, x] == 0 and flags[y - 1, x] & bits[0] != 0)
                        or _zero_block(data, y, x, enough, queue)
                    )
                    if before:
                        flags[y, x] |= bits[0]
                else:
                    before = False
                    if not abs(value) < absurd:
                        flags[y, x] |= bits[1]


def flag_pixels(
    data: np.ndarray,
    flags: np.ndarray,
    rows: tuple[int, int],
    *,
    block: int,
    absurd: float,
    bits: tuple[int, int],
) -> None:
    """Raise flags of rows [y0, y1) in place: ``bits`` (no data, not finite).

    No data are zeros joined along rows and columns to at least ``block``; not finite is what is not below
    ``absurd`` in size. ``data`` float32 [y, x]; ``flags`` uint16 [y, x], 0 in bits[0] where data are 0.
    """
    _flag_strip(data, flags, rows[0], rows[1], block, absurd, np.array(bits, dtype=np.uint16))


@jit
def _top(data, y0, y1, absurd):
    """Return (the largest believable value, how many pixels have it, how many are believable)."""
    top, count, total = -np.inf, 0, 0
    for y in range(y0, y1):
        for x in range(data.shape[1]):
            value = data[y, x]
            if abs(value) < absurd:
                total += 1
                if value > top:
                    top, count = value, 1
                elif value == top:
                    count += 1
    return top, count, total


def highest(data: np.ndarray, rows: tuple[int, int], absurd: float) -> tuple[float, int, int]:
    """Return (the largest value, how many pixels hold it, how many were looked at) of rows [y0, y1).

    Only values below ``absurd`` in size are looked at; with none (-inf, 0, 0). ``data`` float32 [y, x].
    """
    top, count, total = _top(data, rows[0], rows[1], absurd)
    return float(top), int(count), int(total)


@jit
def _hits(row, limit, absolute):
    """Return how many values, or sizes of values, are at or above the limit."""
    n = 0
    if absolute:
        for x in range(len(row)):
            n += abs(row[x]) >= limit
    else:
        for x in range(len(row)):
            n += row[x] >= limit
    return n


@jit
def _spread(data, limit, rows, reach, absolute, out, value, replace):
    """Mark in ``rows`` [y0, y1) of ``out`` all within ``reach`` steps of a pixel at or above its limit."""
    y0, y1 = rows
    height, width = data.shape
    high, wide = limit.shape
    for y in range(max(y0 - reach, 0), min(y1 + reach, height)):
        j = y * high // height
        for i in range(wide):
            # the pixels x with x * wide // width == i
            end = -(-(i + 1) * width // wide)
            for start in range(-(-i * width // wide), end, _CHUNK):
                stop = min(start + _CHUNK, end)
                if _hits(data[y, start:stop], limit[j, i], absolute) == 0:
                    continue
                for x in range(start, stop):
                    v = abs(data[y, x]) if absolute else data[y, x]
                    if not v >= limit[j, i]:
                        continue
                    for b in range(max(y - reach, y0), min(y + reach + 1, y1)):
                        far = reach - abs(b - y)
                        for a in range(max(x - far, 0), min(x + far + 1, width)):
                            if replace:
                                out[b, a] = value
                            else:
                                out[b, a] |= value


def mark_above(
    data: np.ndarray, level: float, rows: tuple[int, int], reach: int, flags: np.ndarray, bit: int
) -> None:
    """Raise ``bit`` in place in rows [y0, y1) of ``flags`` (uint16 [y, x]) around all pixels >= ``level``.

    Around is up to ``reach`` steps along rows and columns. ``data`` [y, x] of any type, NaN is not above.
    """
    limit = np.full((1, 1), level, dtype=np.float64)
    _spread(data, limit, rows, reach, False, flags, np.uint16(bit), False)


def clear_above(
    data: np.ndarray, limit: np.ndarray, rows: tuple[int, int], reach: int, mask: np.ndarray
) -> None:
    """Set False in place in rows [y0, y1) of ``mask`` (bool [y, x]) around all |pixels| >= their limit.

    ``limit`` float64 [n, m]: of each of the n x m equal cells that tile ``data`` [y, x]; around as above.
    """
    _spread(data, limit, rows, reach, True, mask.view(np.uint8), np.uint8(0), True)


@jit
def _grow(levels, seeds, stack):
    """Raise each 2 and the 1s joined to it to 3; ``stack`` is working space, replaced where too short."""
    height, width = levels.shape
    for seed in seeds:
        if levels[seed // width, seed % width] != 2:
            continue
        levels[seed // width, seed % width] = 3
        stack[0] = seed
        n = 1
        while n > 0:
            n -= 1
            j, i = stack[n] // width, stack[n] % width
            if n + 4 > len(stack):
                larger = np.empty(2 * len(stack), dtype=np.int64)
                larger[: len(stack)] = stack
                stack = larger
            for step in range(4):
                b = j + (step == 0) - (step == 1)
                a = i + (step == 2) - (step == 3)
                if 0 <= b < height and 0 <= a < width and (levels[b, a] == 1 or levels[b, a] == 2):
                    levels[b, a] = 3
                    stack[n] = b * width + a
                    n += 1


def grow_seeds(levels: np.ndarray) -> None:
    """Raise to 3, in place, each 2 and each 1 joined to one by rows and columns; uint8 [y, x] of 0, 1, 2."""
    _grow(levels, np.flatnonzero(levels == 2), np.empty(65536, dtype=np.int64))
