"""Find straight ridges in a small image by a weighted Hough transform."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit


class Line(NamedTuple):
    """A line x cos(angle) + y sin(angle) = offset in pixels of the image, and how far votes exceed chance."""

    angle: float
    offset: float
    excess: float  # in standard deviations of the votes that noise gives


def strongest_line(image: np.ndarray, *, floor: float, ceiling: float, n_angles: int) -> Line:
    """Return the straight line that the brightest pixels favour most.

    ``image`` float32 [y, x], noise of unit variance, NaN where there is none. Pixels above ``floor`` vote
    with their value, ``ceiling`` at most; lines are a pixel apart and three wide. The votes that chance gives
    a line follow from its length and the mean and mean square vote over the image.
    """
    angles = np.arange(n_angles) * np.pi / n_angles
    length = _lengths(*image.shape, n_angles)
    found = np.zeros(3)
    _strongest(
        np.asarray(image, dtype=np.float32), (floor, ceiling), np.cos(angles), np.sin(angles), length, found
    )
    return Line(
        angle=float(angles[int(found[0])]),
        offset=float(found[1] - length.shape[1] // 2),
        excess=float(found[2]),
    )


@lru_cache(maxsize=8)
def _lengths(rows: int, columns: int, n_angles: int) -> np.ndarray:
    """Return float64 [angles, offsets]: how many pixels each line, three wide, has on the image."""
    reach = int(np.ceil(np.hypot(rows, columns))) + 2
    angles = np.arange(n_angles) * np.pi / n_angles
    y, x = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    out = np.zeros((n_angles, 2 * reach + 1))
    _vote(x, y, np.ones(len(x), dtype=np.float32), np.cos(angles), np.sin(angles), out)
    return _three(out)


def _three(votes: np.ndarray) -> np.ndarray:
    """Return the sums over each offset and its two neighbours."""
    out = votes.copy()
    out[:, 1:] += votes[:, :-1]
    out[:, :-1] += votes[:, 1:]
    return out


@jit
def _vote(x, y, weight, cosine, sine, votes):
    reach = votes.shape[1] // 2
    for k in range(len(cosine)):
        for n in range(len(x)):
            votes[k, int(np.rint(x[n] * cosine[k] + y[n] * sine[k])) + reach] += weight[n]


@jit
def _strongest(image, limits, cosine, sine, length, found):
    """Write (angle's number, offset's number, excess) of the best line into ``found``."""
    rows, columns = image.shape
    floor, ceiling = limits
    x, y = np.empty(rows * columns, dtype=np.int64), np.empty(rows * columns, dtype=np.int64)
    weight = np.empty(rows * columns, dtype=np.float32)
    n, seen, mean, square = 0, 0, 0.0, 0.0
    for j in range(rows):
        for i in range(columns):
            seen += np.isfinite(image[j, i])
            if image[j, i] > floor:
                x[n], y[n], weight[n] = i, j, min(image[j, i], ceiling)
                mean += weight[n]
                square += weight[n] * weight[n]
                n += 1
    mean, square = mean / max(seen, 1), square / max(seen, 1)
    votes = np.zeros(length.shape)
    _vote(x[:n], y[:n], weight[:n], cosine, sine, votes)
    best = -np.inf
    for k in range(length.shape[0]):
        for r in range(length.shape[1]):
            total = votes[k, r]
            if r > 0:
                total += votes[k, r - 1]
            if r < length.shape[1] - 1:
                total += votes[k, r + 1]
            above = total - length[k, r] * mean
            spread2 = max(length[k, r] * square, ceiling * ceiling)
            # the root is taken only of those that may win
            if best < 0 or (above > 0 and above * above > best * best * spread2):
                excess = above / np.sqrt(spread2)
                if excess > best:
                    best = excess
                    found[0], found[1], found[2] = k, r, best
