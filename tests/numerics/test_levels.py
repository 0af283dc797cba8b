"""Mean levels of boxes are those of their free pixels, outliers or not."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.levels import levels, paint_discs

SHAPE = (83, 140)
BOXES = np.array([[0, 70, 0, 83], [70, 140, 3, 60], [100, 103, 10, 12]])


def images(seed, *, level=7.0, sigma=4.0):
    rng = np.random.default_rng(seed)
    template = rng.normal(0, 30, SHAPE).astype(np.float32)
    science = (0.7 * template + level + rng.normal(0, sigma, SHAPE)).astype(np.float32)
    return science, template


def test_the_mean_is_that_of_free_pixels():
    science, template = images(1)
    masked = np.random.default_rng(2).random(SHAPE) < 0.3
    found = levels(science, template, masked, BOXES, np.full(3, 0.7), every=2, clip=50.0)
    for k, (x0, x1, y0, y1) in enumerate(BOXES[:2]):
        part = np.s_[y0:y1:2, x0:x1]
        left = (science.astype(float) - 0.7 * template)[part][~masked[part]]
        np.testing.assert_allclose(found[:, k], [left.mean(), left.std(), left.size], rtol=1e-5)
    assert np.isnan(found[0, 2])


def test_outliers_of_either_sign_are_left_out():
    science, template = images(3)
    rng = np.random.default_rng(4)
    struck = rng.random(SHAPE) < 0.03
    science[struck] += rng.choice([4000.0, -900.0], SHAPE)[struck]
    found = levels(science, template, np.zeros(SHAPE, bool), BOXES[:2], np.full(2, 0.7), every=1)
    # 5810 pixels of sigma 4: 0.05, four of them
    assert np.abs(found[0] - 7.0).max() < 0.25
    np.testing.assert_allclose(found[1], 4.0, rtol=0.05)


def test_the_mean_scatters_as_its_pixels_say():
    values = []
    for seed in range(80):
        found = levels(*images(seed), np.zeros(SHAPE, bool), BOXES[:1], np.full(1, 0.7), every=1)
        values.append((found[0, 0] - 7.0) / (found[1, 0] / np.sqrt(found[2, 0])))
    assert abs(np.mean(values)) < 4 / np.sqrt(80)
    assert np.std(values) == pytest.approx(1.0, abs=3 / np.sqrt(160))


def test_nothing_free_is_nan():
    science, template = images(5)
    found = levels(science, template, np.ones(SHAPE, bool), BOXES, np.full(3, 0.7), every=1)
    assert np.isnan(found[:2]).all()
    assert (found[2] == 0).all()


def test_discs_are_those_of_a_plain_distance():
    mask = np.zeros(SHAPE, bool)
    x, y = np.array([20.3, 139.6, -4.0, 70.0]), np.array([40.7, 2.0, 50.0, 200.0])
    radius = np.array([6.4, 9.0, 7.5, 3.0])
    paint_discs(mask, x, y, radius)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(columns - x[:, None, None], rows - y[:, None, None])
    np.testing.assert_array_equal(mask, (distance <= radius[:, None, None]).any(axis=0))
