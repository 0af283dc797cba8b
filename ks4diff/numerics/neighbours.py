"""Nearest neighbours among points in a plane, by sorting them into square cells."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


def mutual_matches(a: np.ndarray, b: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return index arrays (i, j) of points a[i], b[j] that are each other's nearest within ``radius``.

    ``a`` and ``b`` are float64 [n, 2], px; points that are not finite match nothing; ``radius`` is above 0.
    """
    a, b = (np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 2) for points in (a, b))
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    forth, back = _nearest(a, b, radius), _nearest(b, a, radius)
    i = np.flatnonzero(forth >= 0)
    i = i[back[forth[i]] == i]
    return i, forth[i]


def _nearest(points: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """Return the index of the nearest of ``others`` within ``radius`` of each point, -1 without one."""
    finite = np.flatnonzero(np.isfinite(others).all(axis=1))
    if len(finite) == 0:
        return np.full(len(points), -1)
    others = others[finite]
    low, high = others.min(axis=0), others.max(axis=0)
    # two points a cell at most: smaller cells would be mostly empty, larger ones mostly too far
    cell = max(radius, float(np.sqrt(np.prod(high - low + 1.0) / len(others))))
    shape = np.floor((high - low) / cell).astype(np.int64) + 1
    place = np.floor((others - low) / cell).astype(np.int64)
    index = place[:, 1] * shape[0] + place[:, 0]
    order = np.argsort(index, kind="stable")
    start = np.searchsorted(index[order], np.arange(shape[0] * shape[1] + 1))
    found = _search(points, others[order], start, (low[0], low[1]), cell, (shape[0], shape[1]), radius)
    return np.where(found >= 0, finite[order[found]], -1)


@jit
def _search(points, others, start, low, cell, shape, radius):
    found = np.full(len(points), -1)
    for k in range(len(points)):
        x, y = points[k, 0], points[k, 1]
        column, row = np.floor((x - low[0]) / cell), np.floor((y - low[1]) / cell)
        # false for NaN too
        if not (-1 <= column <= shape[0] and -1 <= row <= shape[1]):
            continue
        best = radius * radius
        for j in range(max(int(row) - 1, 0), min(int(row) + 2, shape[1])):
            for i in range(max(int(column) - 1, 0), min(int(column) + 2, shape[0])):
                for m in range(start[j * shape[0] + i], start[j * shape[0] + i + 1]):
                    distance = (others[m, 0] - x) ** 2 + (others[m, 1] - y) ** 2
                    if distance <= best:
                        best = distance
                        found[k] = m
    return found
