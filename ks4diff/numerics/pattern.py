"""Match two star lists whose relative shift is unknown and whose scale and rotation are nearly known.

Triangles of neighbouring bright stars are compared by size, orientation and shape together (with scale and
rotation bounded, size and orientation are as telling as shape); each agreeing pair of triangles proposes a
similarity; proposals that agree with each other are tried on the whole lists, and one is accepted only if
its matches could not be chance. Idea of triangle matching: Groth 1986 AJ 91, 1244; of an acceptance by odds
against chance: Lang et al. 2010 AJ 139, 1782.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import poisson

NEIGHBOURS = 9  # triangles per star: 36 pairs of neighbours


def triangles(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (index [m, 3], feature [m, 4]) of the triangles between each star and its neighbours.

    The corners are ordered so that the first two end the longest side, with the third nearer the first.
    A feature is (ln length, angle in radians of that side, along, across): the third corner's place in units
    of the longest side. Stars moved by a similarity keep (along, across), add ln scale and the rotation.
    """
    points = np.stack([x, y], axis=1)
    k = min(NEIGHBOURS + 1, len(points))
    if k < 3:
        return np.empty((0, 3), dtype=np.int64), np.empty((0, 4))
    _, near = cKDTree(points).query(points, k=k)
    pairs = np.array(list(combinations(range(1, k), 2)))
    corner = np.concatenate(
        [np.repeat(near[:, :1], len(pairs), axis=1)[..., None], near[:, pairs]], axis=2
    ).reshape(-1, 3)
    corner = np.unique(np.sort(corner, axis=1), axis=0)
    sides = np.stack([points[corner[:, (j + 1) % 3]] - points[corner[:, j]] for j in range(3)], axis=1)
    longest = np.argmax(np.hypot(sides[..., 0], sides[..., 1]), axis=1)
    rows = np.arange(len(corner))
    first, second, third = (corner[rows, (longest + j) % 3] for j in range(3))
    to_first = np.hypot(*(points[third] - points[first]).T)
    to_second = np.hypot(*(points[third] - points[second]).T)
    swap = to_first > to_second
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    # shorter sides have angles worse than 2 degrees from centroid noise; of length 0, none at all
    keep = np.hypot(*(points[second] - points[first]).T) > 8.0
    first, second, third = first[keep], second[keep], third[keep]
    axis = points[second] - points[first]
    length = np.hypot(axis[:, 0], axis[:, 1])
    arm = points[third] - points[first]
    along = (arm * axis).sum(axis=1) / length**2
    across = (axis[:, 0] * arm[:, 1] - axis[:, 1] * arm[:, 0]) / length**2
    feature = np.stack([np.log(length), np.arctan2(axis[:, 1], axis[:, 0]), along, across], axis=1)
    return np.stack([first, second, third], axis=1), feature


def propose(
    science: np.ndarray, template: np.ndarray, *, max_scale: float, max_rotation: float
) -> np.ndarray:
    """Return the similarities [m, 4] that agreeing triangles propose, most agreed-on first.

    A row (a, b, tx, ty) takes science (x, y) to (a x - b y + tx, b x + a y + ty). ``science`` and
    ``template`` are float64 [n, 2], pixels; ``max_scale`` is a fraction, ``max_rotation`` radians, both above
    0. At most 12 proposals, that differ at a corner of the field by more than 6 px and 1.2 % of its size.
    """
    index_s, feature_s = triangles(*science.T)
    index_t, feature_t = triangles(*template.T)
    if len(index_s) == 0 or len(index_t) == 0:
        return np.empty((0, 4))
    tolerance = np.array([max_scale * 1.2, max_rotation * 1.2, 0.02, 0.02])
    # the angle wraps at +-pi: copies of the triangles near it stand in for the far side
    wrapped = np.abs(feature_t[:, 1]) > np.pi - 2 * max_rotation
    turned = feature_t[wrapped] - np.array([0, 2 * np.pi, 0, 0]) * np.sign(feature_t[wrapped, 1:2])
    index_t = np.concatenate([index_t, index_t[wrapped]])
    feature_t = np.concatenate([feature_t, turned])
    tree = cKDTree(feature_t / tolerance)
    hits = tree.query_ball_point(feature_s / tolerance, r=1.0)
    left = np.repeat(np.arange(len(hits)), [len(h) for h in hits])
    right = np.concatenate([np.asarray(h, dtype=np.int64) for h in hits]) if len(left) else left
    if len(left) == 0:
        return np.empty((0, 4))
    similarity = _similarity(science[index_s[left]], template[index_t[right]])
    scale = np.hypot(similarity[:, 0], similarity[:, 1])
    angle = np.arctan2(similarity[:, 1], similarity[:, 0])
    similarity = similarity[(np.abs(scale - 1) < max_scale * 1.1) & (np.abs(angle) < max_rotation * 1.1)]
    return _by_agreement(similarity, science)


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return least-squares similarities [m, 4] taking corners a [m, k, 2] to b [m, k, 2]."""
    ca, cb = a.mean(axis=1), b.mean(axis=1)
    da, db = a - ca[:, None], b - cb[:, None]
    norm = (da**2).sum(axis=(1, 2))
    cos = (da * db).sum(axis=(1, 2)) / norm
    sin = (da[..., 0] * db[..., 1] - da[..., 1] * db[..., 0]).sum(axis=1) / norm
    tx = cb[:, 0] - cos * ca[:, 0] + sin * ca[:, 1]
    ty = cb[:, 1] - sin * ca[:, 0] - cos * ca[:, 1]
    return np.stack([cos, sin, tx, ty], axis=1)


def _by_agreement(similarity: np.ndarray, science: np.ndarray, keep: int = 12) -> np.ndarray:
    """Return the proposals with most others near them, judged by where two field points land."""
    if len(similarity) == 0:
        return similarity
    low, high = science.min(axis=0), science.max(axis=0)
    landed = np.concatenate(
        [apply_similarity(similarity, corner[None])[:, 0] for corner in (low, high)], axis=1
    )
    size = float(np.hypot(*(high - low)))
    # triangles span a tenth of the field, so 0.3 px centroid noise becomes some pixels at its ends
    near = cKDTree(landed).query_ball_point(landed, r=max(6.0, 0.012 * size), return_length=True)
    chosen: list[int] = []
    for i in np.argsort(-near, kind="stable"):
        if all(np.abs(landed[i] - landed[j]).max() > max(6.0, 0.012 * size) for j in chosen):
            chosen.append(int(i))
        if len(chosen) == keep:
            break
    return similarity[chosen]


def apply_similarity(similarity: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return [m, n, 2]: points [n, 2] moved by each of m similarities [m, 4]."""
    a, b, tx, ty = (similarity[:, k, None] for k in range(4))
    x, y = points[:, 0], points[:, 1]
    return np.stack([a * x - b * y + tx, b * x + a * y + ty], axis=2)


def mutual_matches(a: np.ndarray, b: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return index arrays (i, j) of points a[i], b[j] that are each other's nearest within radius."""
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    distance, j = cKDTree(b).query(a, distance_upper_bound=radius)
    _, back = cKDTree(a).query(b)
    i = np.flatnonzero(np.isfinite(distance))
    i = i[back[j[i]] == i]
    return i, j[i]


def log_chance(n_matched: int, n_tried: int, n_template: int, area: float, radius: float) -> float:
    """Return ln of the probability that n_matched or more of n_tried stars match by chance.

    Template stars are taken as strewn over ``area`` (px²) with n_template in it, each star being matched when
    one lies within ``radius`` px. Ranges from -inf to 0.
    """
    if n_matched <= 0 or n_tried <= 0:
        return 0.0
    expected = n_tried * -np.expm1(-n_template * np.pi * radius**2 / max(area, 1.0))
    return float(poisson.logsf(n_matched - 1, max(expected, 1e-9)))
