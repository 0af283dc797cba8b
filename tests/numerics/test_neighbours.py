"""Mutual nearest neighbours are those that comparing every pair finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.numerics.neighbours import mutual_matches
from tests.strategies import field, seeds


def slow_matches(a, b, radius):
    """Return the pairs (i, j) by comparing every point with every other."""
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    forth, back = distance.argmin(axis=1), distance.argmin(axis=0)
    return [(i, int(j)) for i, j in enumerate(forth) if back[j] == i and distance[i, j] <= radius]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seeds, st.integers(1, 80), st.integers(1, 120), st.floats(0.5, 300.0))
def test_matches_are_those_of_every_pair(seed, n, m, radius):
    rng = np.random.default_rng(seed)
    a, b = field(rng, n, 300, 200), field(rng, m, 260, 240) - 30
    i, j = mutual_matches(a, b, radius)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == slow_matches(a, b, radius)


def test_each_is_the_others_nearest():
    a = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [50.0, 50.0]])
    b = np.array([[10.5, 0.0], [0.9, 0.0], [80.0, 80.0]])
    i, j = mutual_matches(a, b, 2.0)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 1), (2, 0)]


@pytest.mark.parametrize("empty", [(0, 3), (3, 0), (0, 0)])
def test_empty_lists_match_nothing(empty):
    i, j = mutual_matches(np.ones((empty[0], 2)), np.ones((empty[1], 2)), 2.0)
    assert len(i) == len(j) == 0


def test_points_that_are_not_finite_match_nothing():
    a = np.array([[np.nan, 1.0], [5.0, 5.0], [np.inf, 0.0]])
    b = np.array([[5.1, 5.0], [np.nan, np.nan], [1.0, -np.inf]])
    i, j = mutual_matches(a, b, 3.0)
    assert (i.tolist(), j.tolist()) == ([1], [0])
    assert len(mutual_matches(a, b[1:2], 3.0)[0]) == 0
