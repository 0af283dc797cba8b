"""Bad columns are found where they begin and end, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.bad_columns import COST, GIVEN_UP, bad_columns

SHAPE = (700, 210)


def noise(seed=1, sigma=10.0):
    return np.random.default_rng(seed).normal(100, sigma, SHAPE).astype(np.float32)


def found_in(data, enough=20.0):
    return [tuple(row) for row in bad_columns(data, enough).tolist()]


def plainly(data, enough):
    """Return the runs of every column, by the definition, row by row."""
    out = []
    for x in range(3, data.shape[1] - 3):
        beside = data[:, [x - 3, x - 2, x + 2, x + 3]]
        gain = (data[:, x] > beside.max(axis=1)).astype(float) - (data[:, x] < beside.min(axis=1))
        for sign in (1, -1):
            score, peak, start, end = 0.0, 0.0, 0, 0
            for y, step in enumerate([*(sign * gain - COST), -np.inf]):
                score += step
                if score > peak:
                    peak, end = score, y + 1
                if score <= 0 or score < peak - GIVEN_UP:
                    if peak >= enough:
                        out.append((x, start, end))
                    score, peak, start = 0.0, 0.0, y + 1
    return sorted(out)


def test_runs_are_those_of_the_definition():
    data = noise()
    data[100:, 50] += 300
    data[:220, 90:92] *= 0.3
    data[60:180, 120] += 60
    data[400:520, 120] -= 60
    found = found_in(data)
    assert sorted(found) == plainly(data, 20.0)
    assert {x for x, *_ in found} == {50, 90, 91, 120}


@pytest.mark.parametrize(
    ("rows", "change"), [(slice(150, 700), 100.0), (slice(0, 40), 400.0), (slice(300, 500), -70.0)]
)
def test_ends_are_right_to_a_few_rows(rows, change):
    data = noise(2)
    data[rows, 77] += change
    ((x, first, end),) = found_in(data)
    assert x == 77
    assert abs(first - rows.start) <= 6
    assert abs(end - rows.stop) <= 6


def test_pairs_are_found_whole():
    data = noise(3)
    data[200:, 100:102] += 250
    assert [x for x, *_ in found_in(data)] == [100, 101]


@pytest.mark.parametrize("seed", range(4))
def test_noise_steps_and_stars_have_none(seed):
    """Nor an amplifier's seam, a slope, a row of stars and the halo of a star that nearly saturates."""
    data = noise(10 + seed)
    data[:, 105:] += 30
    data += np.linspace(0, 200, SHAPE[1], dtype=np.float32)
    row, column = np.indices(SHAPE)
    for y in range(40, 700, 90):
        data += (3e4 * np.exp(-0.5 * ((row - y) ** 2 + (column - 60) ** 2) / 2.5**2)).astype(np.float32)
    away = np.hypot(row - 350, column - 150)
    data += (5e4 * (1 + (away / 4) ** 2) ** -2.5).astype(np.float32)
    assert not found_in(data)


def test_small_and_broken_images_are_borne():
    assert not found_in(np.ones((50, 6), dtype=np.float32))
    data = noise(5)
    data[:, 40] = np.nan
    data[:, 80] = 0
    assert [x for x, *_ in found_in(data)] == [80]
