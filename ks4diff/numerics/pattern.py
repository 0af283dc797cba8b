"""Match two star lists whose relative shift is unknown and whose scale and rotation are nearly known.

Every pair of a science and a template star votes for the shift between them, once for each scale and rotation
of a grid: the true shift gets a vote from every star in common, a wrong one only from chance pairs. A
proposal is accepted only if its matches could not be chance: Lang et al. 2010 AJ 139, 1782.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import poisson

from ks4diff.numerics.jit import jit
from ks4diff.numerics.pools import pool

PROPOSALS = 8
_PARTS = 4  # of the turns: results do not depend on how many threads share them


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is unknown of a similarity: scale as a fraction, rotation in radians, shift in px; all >= 0."""

    scale: float
    rotation: float
    shift: float


def spread(points: np.ndarray, n: int, cells: int = 4) -> np.ndarray:
    """Return the rows of ``n`` points, the first of each of ``cells`` x ``cells`` boxes first.

    ``points`` float64 [m, 2] are brightest first; the answer has the brightest of every box, then the second
    of every box and so on, so that no bright cluster, galaxy or bleed trail fills the list.
    """
    if len(points) == 0:
        return np.empty(0, dtype=np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    box = np.minimum((points - low) / (high - low + 1e-9) * cells, cells - 1).astype(np.int64)
    key = box[:, 1] * cells + box[:, 0]
    order = np.argsort(key, kind="stable")
    first = np.searchsorted(key[order], key[order])
    rank = np.empty(len(points), dtype=np.int64)
    rank[order] = np.arange(len(points)) - first
    return np.argsort(rank, kind="stable")[:n]


def propose(science: np.ndarray, template: np.ndarray, limits: Limits, width: float) -> np.ndarray:
    """Return the similarities [m, 4] that get most votes, the best first; at most 8 different ones.

    A row (a, b, tx, ty) takes science (x, y) to (a x - b y + tx, b x + a y + ty). ``science`` and
    ``template`` are float64 [n, 2], px, finite; ``width`` px of a bin of shifts, which sets the grid of scale
    and rotation too. Shifts are those of the middle of the science stars.
    """
    if len(science) < 2 or len(template) < 2:
        return np.empty((0, 4))
    middle = 0.5 * (science.min(axis=0) + science.max(axis=0))
    reach = max(float(np.hypot(*(science - middle).T).max()), 1.0)
    scales, angles = (_grid(limit, width / reach) for limit in (limits.scale, limits.rotation))
    cos, sin = (np.outer(1 + scales, turn).ravel() for turn in (np.cos(angles), np.sin(angles)))
    bins = int(np.ceil(2 * limits.shift / width)) + 1
    turns = np.array_split(np.stack([cos, sin], axis=1), _PARTS)
    with pool() as threads:
        parts = threads.map(lambda some: _vote(science - middle, template - middle, some, bins, width), turns)
        votes, shift = (np.concatenate(part) for part in zip(*parts, strict=True))
    similarity = np.stack(
        [
            np.repeat(cos, votes.shape[1]),
            np.repeat(sin, votes.shape[1]),
            shift[..., 0].ravel(),
            shift[..., 1].ravel(),
        ],
        axis=1,
    )
    chosen: list[int] = []
    for k in np.argsort(-votes.ravel(), kind="stable"):
        if all(np.abs(similarity[k, 2:] - similarity[j, 2:]).max() > 2 * width for j in chosen):
            chosen.append(int(k))
        if len(chosen) == PROPOSALS:
            break
    similarity = similarity[chosen]
    turned = apply_similarity(similarity * [1, 1, 0, 0], middle[None])[:, 0]
    similarity[:, 2:] += middle - turned
    return similarity


def _grid(limit: float, step: float) -> np.ndarray:
    """Return values from -limit to limit about ``step`` apart, 0 among them."""
    n = int(np.ceil(limit / step))
    return np.linspace(-limit, limit, 2 * n + 1)


@jit
def _vote(science, template, turns, bins, width):
    """Return (votes [k, 2], shift [k, 2, 2]): per (cos, sin) the two shifts that most pairs agree on.

    Votes are counted in boxes of 2 x 2 bins, so that no border splits the true shift.
    """
    votes, shift = np.zeros((len(turns), 2), dtype=np.int64), np.zeros((len(turns), 2, 2))
    half = 0.5 * bins * width
    for k in range(len(turns)):
        count = np.zeros((bins + 1, bins + 1), dtype=np.int32)
        cos, sin = turns[k]
        for i in range(len(science)):
            x = cos * science[i, 0] - sin * science[i, 1] - half
            y = sin * science[i, 0] + cos * science[i, 1] - half
            for j in range(len(template)):
                column, row = (template[j, 0] - x) / width, (template[j, 1] - y) / width
                if 0 <= column < bins and 0 <= row < bins:
                    count[int(row), int(column)] += 1
        for turn in range(2):
            best, row_best, column_best = -1, 0, 0
            for row in range(bins):
                for column in range(bins):
                    n = (
                        count[row, column]
                        + count[row, column + 1]
                        + count[row + 1, column]
                        + count[row + 1, column + 1]
                    )
                    if n > best:
                        best, row_best, column_best = n, row, column
            votes[k, turn] = best
            shift[k, turn, 0] = (column_best + 1) * width - half
            shift[k, turn, 1] = (row_best + 1) * width - half
            # the second best is looked for elsewhere
            low_row, low_column = max(row_best - 1, 0), max(column_best - 1, 0)
            count[low_row : row_best + 3, low_column : column_best + 3] = 0
    return votes, shift


def apply_similarity(similarity: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return [m, n, 2]: points [n, 2] moved by each of m similarities [m, 4]."""
    a, b, tx, ty = (similarity[:, k, None] for k in range(4))
    x, y = points[:, 0], points[:, 1]
    return np.stack([a * x - b * y + tx, b * x + a * y + ty], axis=2)


def log_chance(n_matched: int, n_tried: int, n_template: int, area: float, radius: float) -> float:
    """Return ln of the probability that n_matched or more of n_tried stars match by chance.

    Template stars are taken as strewn over ``area`` (px²) with n_template in it, each star being matched when
    one lies within ``radius`` px. Ranges from -inf to 0.
    """
    if n_matched <= 0 or n_tried <= 0:
        return 0.0
    expected = n_tried * -np.expm1(-n_template * np.pi * radius**2 / max(area, 1.0))
    return float(poisson.logsf(n_matched - 1, max(expected, 1e-9)))
