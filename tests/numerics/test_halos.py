"""Profiles around stars: subtracted as the plain loop over all pixels does, and measured in rings."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.halos import ring_means, subtract_halos


@pytest.mark.parametrize("shape", [(80, 61), (33, 96)])
def test_it_is_the_sum_over_all_stars_at_all_pixels(shape):
    rng = np.random.default_rng(4)
    reach = 21
    profile = np.append(rng.uniform(0, 1, reach), 0.0)
    stars = np.stack(
        [rng.uniform(-15, shape[1] + 15, 12), rng.uniform(-15, shape[0] + 15, 12), rng.uniform(1, 9, 12)]
    )
    image = rng.normal(size=shape).astype(np.float32)
    wanted = image.astype(np.float64)
    row, column = np.indices(shape)
    for x, y, flux in stars.T:
        wanted -= flux * np.interp(np.hypot(column - x, row - y), np.arange(reach + 1), profile, right=0.0)
    subtract_halos(image, stars, profile)
    np.testing.assert_allclose(image, wanted, atol=1e-4)


def test_no_star_changes_nothing():
    image = np.ones((9, 9), dtype=np.float32)
    subtract_halos(image, np.empty((3, 0)), np.ones(5))
    assert (image == 1).all()


def test_rings_are_means_of_three():
    row, column = np.indices((41, 41)) - 20
    ring = np.hypot(row, column).astype(int)
    used = np.random.default_rng(5).random((41, 41)) < 0.7
    values = np.random.default_rng(6).normal(size=(41, 41))
    mean, count = ring_means(values, used, ring, 15)
    for k in range(15):
        inside = used & (np.abs(ring - k) <= 1) & (ring < 15)
        assert count[k] == inside.sum()
        assert mean[k] == pytest.approx(values[inside].mean())
