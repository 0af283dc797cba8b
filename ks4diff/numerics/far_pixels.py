"""Pixels of star stamps that are far off a model: cosmic rays and unseen neighbours, which fits leave out."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

HALF_NORMAL2 = 0.455  # median of the square of a unit normal
MEDIAN_STARS = 300  # at least of all of a region, spread evenly: a median good to 7 %


_AT_ONCE = 16  # pixels, a line of the cache


@jit
def _left(stamps, strengths, patterns, off):
    for k in range(len(stamps)):
        row = off[k]
        row[:] = stamps[k]
        for m in range(len(patterns)):
            pattern, strength = patterns[m], strengths[m, k]
            for p in range(len(row)):
                row[p] -= strength * pattern[p]


@jit
def _half_below(values, limit):
    count = np.int32(0)
    for value in values:
        count += np.int32(value <= limit)
    return 2 * count >= len(values)


@jit
def _excess(squares):
    """Return the median of squares over that of a unit normal's, to 0.1 %, at least 1.

    By halving: counting is vector code, where sorting takes ten times as long.
    """
    low = high = np.float32(HALF_NORMAL2)
    for _ in range(100):
        if _half_below(squares, high):
            break
        low, high = high, np.float32(2) * high
    for _ in range(10):
        middle = np.float32(0.5) * (low + high)
        if _half_below(squares, middle):
            high = middle
        else:
            low = middle
    return high / np.float32(HALF_NORMAL2)


@jit
def _limits(off, variance, some, cut2, limit):
    """Write by how much of its variance the square of each pixel may exceed 0, by the stars ``some``."""
    shown = np.empty((_AT_ONCE, len(some)), dtype=np.float32)
    for start in range(0, len(limit), _AT_ONCE):
        count = min(_AT_ONCE, len(limit) - start)
        for k in range(len(some)):
            for p in range(count):
                value = off[some[k], start + p]
                shown[p, k] = value * value / variance[some[k], start + p]
        for p in range(count):
            limit[start + p] = cut2 * _excess(shown[p])


@jit
def _clear(off, known, variance, cut2, order, starts):
    limit = np.empty(off.shape[1], dtype=np.float32)
    for r in range(len(starts) - 1):
        own = order[starts[r] : starts[r + 1]]
        _limits(off, variance, own[:: max(len(own) // MEDIAN_STARS, 1)], cut2, limit)
        for star in own:
            row, there, unsure = off[star], known[star], variance[star]
            for p in range(len(limit)):
                keep = there[p] and row[p] * row[p] <= limit[p] * unsure[p]
                row[p] = row[p] if keep else np.float32(0)


def left_by(stamps: np.ndarray, strengths: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Return ``stamps`` [k, p] less ``patterns`` [m, p] times ``strengths`` [m, k], all float32.

    A product of matrices so flat takes five times as long. Releases the GIL.
    """
    off = np.empty_like(stamps)
    _left(stamps, strengths, patterns, off)
    return off


def clear_far(
    off: np.ndarray, known: np.ndarray, variance: np.ndarray, cut: float, region: np.ndarray
) -> None:
    """Put to 0, in place, the pixels of stars that are not known or farther than ``cut`` sigma off a model.

    ``off`` float32 [k, p] is what the model leaves of k stars, ``variance`` float32 and ``known`` bool as it,
    ``region`` int [k]. Where most stars of a region are far off a pixel's model, it is wrong and not they,
    and sigma grows by as much: dithers whose FWHM differ by 1.8 put peaks 50 % apart, and every star's was
    left out. Releases the GIL.
    """
    order = np.argsort(region, kind="stable")
    starts = np.append(np.flatnonzero(np.diff(region[order], prepend=-1)), len(order))
    _clear(off, known, variance, np.float32(cut**2), order, starts)
