"""Levels of amplifiers come back from steps at their borders, and slopes make none."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.stages.amplifier_levels import AmplifierLevelConfig, amplifier_levels

STRIPS = [(k * 300, (k + 1) * 300, 0, 2000) for k in range(4)]
HALVES = [(k * 300, (k + 1) * 300, y, y + 1000) for y in (0, 1000) for k in range(3)]
NOISE = 0.05


def measure_of(seed, level, surface, *, dead=()):
    """Return a measure of boxes: surface at their middles plus their amplifier's level, and noise."""
    rng = np.random.default_rng(seed)

    def measure(boxes):
        x, y = boxes[:, :2].mean(axis=1), boxes[:, 2:4].mean(axis=1)
        value = surface(x, y) + np.asarray(level)[boxes[:, 4]] + rng.normal(0, NOISE, len(boxes))
        value[np.isin(boxes[:, 4], dead)] = np.nan
        return value, np.where(np.isnan(value), np.nan, NOISE)

    return measure


def slope(x, y):
    return 0.004 * x - 0.002 * y


@pytest.mark.parametrize(
    ("boxes", "level"),
    [(STRIPS, [0.0, 2.0, 2.0, -1.0]), (HALVES, [0.0, 1.0, 0.0, 3.0, 4.0, 3.0])],
)
def test_levels_come_back_with_their_errors(boxes, level):
    expected = np.array(level) - np.mean(level)
    pulls = []
    for seed in range(30):
        found, error = amplifier_levels(measure_of(seed, level, slope), boxes, AmplifierLevelConfig())
        pulls.append((found - expected) / error)
    assert np.abs(pulls).max() < 5
    assert 0.4 < np.std(pulls) < 1.4


def test_a_slope_makes_no_step():
    steps = 0
    for seed in range(40):
        found, _ = amplifier_levels(measure_of(seed, np.zeros(4), slope), STRIPS, AmplifierLevelConfig())
        steps += int((found != 0).any())
    assert steps <= 2


def test_a_dead_amplifier_is_left_alone():
    found, error = amplifier_levels(
        measure_of(1, [0.0, 2.0, 0.0, 0.0], slope, dead=(3,)), STRIPS, AmplifierLevelConfig()
    )
    assert found[3] == 0
    np.testing.assert_allclose(np.diff(found[:3]), [2.0, -2.0], atol=0.2)
    assert np.isfinite(error[:3]).all()


def test_one_amplifier_has_no_level():
    found, error = amplifier_levels(measure_of(1, [5.0], slope), STRIPS[:1], AmplifierLevelConfig())
    assert found.tolist() == [0.0]
    assert np.isnan(error).all()
