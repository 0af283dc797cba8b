"""Holes are filled with the smooth surface that their rims demand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from ks4diff.numerics.inpaint import fill, fill_holes
from tests import oracles
from tests.strategies import seeds


def disc(shape, diameter):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - shape[0] // 2, x - shape[1] // 2) <= diameter / 2


def test_a_plane_is_restored():
    y, x = np.mgrid[:40, :51]
    plane = (3.0 * x - 2.0 * y + 7).astype(np.float32)
    bad = disc(plane.shape, 14)
    np.testing.assert_allclose(fill(plane, bad, sweeps=300), plane, atol=2e-3)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seeds)
def test_the_result_solves_laplace_and_stays_between_its_rims(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 30, (33, 41)).astype(np.float32)
    bad = rng.random(image.shape) < 0.35
    filled = fill(image, bad, sweeps=400)
    np.testing.assert_array_equal(filled[~bad], image[~bad])
    assert np.abs(oracles.laplace_residual(filled, bad)).max() < 1e-3
    assert image[~bad].min() <= filled.min() <= filled.max() <= image[~bad].max()


@pytest.mark.parametrize(("diameter", "reached"), [(20, 0.999), (30, 0.917), (60, 0.257), (120, 0.005)])
def test_how_far_sixty_sweeps_reach(diameter, reached):
    image = np.full((151, 151), 100, dtype=np.float32)
    middle = fill(image, disc(image.shape, diameter))[75, 75]
    assert middle == pytest.approx(100 * reached, abs=0.2)


def test_what_bad_pixels_hold_does_not_matter():
    rng = np.random.default_rng(2)
    image = rng.normal(size=(20, 30)).astype(np.float32)
    bad = rng.random(image.shape) < 0.2
    spoiled = np.where(bad, np.nan, image)
    np.testing.assert_array_equal(fill(spoiled, bad), fill(image, bad))
    assert fill(image.astype(np.float64), bad).dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 9)])
def test_nothing_good_gives_the_sky(shape):
    assert not fill(np.full(shape, 5.0), np.ones(shape, dtype=bool)).any()


def test_nothing_bad_gives_a_copy():
    image = np.ones((5, 6), dtype=np.float32)
    filled = fill(image, np.zeros(image.shape, dtype=bool))
    np.testing.assert_array_equal(filled, image)
    assert not np.shares_memory(filled, image)


def test_deep_holes_stay_at_sky_and_holes_are_told_apart():
    image = np.full((600, 500), 7.0, dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool)
    bad[70:530, 60:440] = True
    bad[3, :490] = True
    bad[4:10, 20] = True  # of one hole with the row above
    image[bad] = np.nan
    filled = fill(image, bad)
    np.testing.assert_array_equal(filled[210:390, 200:300], 0)
    np.testing.assert_allclose(filled[3:10, 20], 7.0, rtol=1e-4)
    np.testing.assert_array_equal(filled[~bad], 7.0)


def test_an_image_of_any_layout_is_filled_in_place():
    image = np.ones((40, 30), dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool)
    bad[10:13, 5:9] = True
    image[bad] = np.nan
    view = np.asfortranarray(image)
    fill_holes(view, bad)
    np.testing.assert_array_equal(view, fill(image, bad))
