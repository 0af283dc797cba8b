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
    with np.errstate(invalid="ignore"):
        weight = np.where(image > floor, np.minimum(image, ceiling), np.float32(0)).astype(np.float32)
    y, x = np.nonzero(weight)
    length = _lengths(*image.shape, n_angles)
    votes = np.zeros_like(length)
    _vote(x, y, weight[y, x], np.cos(angles), np.sin(angles), votes)
    votes = _three(votes)
    seen = max(int(np.isfinite(image).sum()), 1)
    mean, square = float(weight.sum()) / seen, float((weight**2).sum()) / seen
    excess = (votes - length * mean) / np.sqrt(np.maximum(length * square, ceiling**2))
    k, r = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return Line(angle=float(angles[k]), offset=float(r - length.shape[1] // 2), excess=float(excess[k, r]))


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
