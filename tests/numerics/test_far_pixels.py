"""What a model leaves of star stamps, and which of their pixels are too far off it."""

import numpy as np
import pytest

from ks4diff.numerics.far_pixels import clear_far, left_by

CUT = 4.5


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def cleared(off, known, variance, region):
    out = off.copy()
    clear_far(out, known, variance, CUT, region)
    return out


@pytest.mark.parametrize("patterns", [0, 1, 5])
def test_what_is_left_is_the_stamps_less_the_product(rng, patterns):
    stamps = rng.normal(size=(7, 31)).astype(np.float32)
    strengths = rng.normal(size=(patterns, 7)).astype(np.float32)
    shapes = rng.normal(size=(patterns, 40)).astype(np.float32)[:, 5:36]
    np.testing.assert_allclose(left_by(stamps, strengths, shapes), stamps - strengths.T @ shapes, atol=2e-6)


def test_unknown_and_far_pixels_alone_are_cleared(rng):
    variance = rng.uniform(0.5, 2.0, size=(400, 33)).astype(np.float32)
    off = (rng.normal(size=variance.shape) * np.sqrt(variance)).astype(np.float32)
    off[3, 5], off[8, 30] = 40.0, -40.0
    known = rng.random(off.shape) < 0.9
    out = cleared(off, known, variance, np.zeros(400, dtype=int))
    # the median of 200 squares lies above that of a normal half the time, then the limit is wider
    far = off**2 > 1.5 * CUT**2 * variance
    near = off**2 < CUT**2 * variance
    assert far.sum() == 2
    np.testing.assert_array_equal(out[~known | far], 0)
    np.testing.assert_array_equal(out[known & near], off[known & near])


def test_where_most_stars_of_a_region_are_off_the_model_is_wrong(rng):
    region = np.repeat([4, 1], 300)
    off = rng.normal(size=(600, 20)).astype(np.float32)
    off[:300, 7] += 30.0  # all of region 4
    off[350, 7] += 30.0  # one of region 1
    everything = np.ones(off.shape, dtype=bool)
    out = cleared(off, everything, np.ones_like(off), region)
    np.testing.assert_array_equal(out[:300, 7], off[:300, 7])
    assert out[350, 7] == 0


def test_the_limit_is_that_of_the_median(rng):
    off = (3 * rng.standard_t(2, size=(301, 9))).astype(np.float32)
    everything = np.ones(off.shape, dtype=bool)
    out = cleared(off, everything, np.ones_like(off), np.zeros(301, dtype=int))
    limit = CUT**2 * np.maximum(np.median(off**2, axis=0) / 0.455, 1.0)
    sure = np.abs(off**2 / limit - 1) > 0.002  # halving finds the median to 0.1 %
    np.testing.assert_array_equal((out == 0)[sure], (off**2 > limit)[sure])
    assert (out == 0).any()


def test_values_that_are_no_numbers_end():
    off = np.full((5, 3), np.nan, dtype=np.float32)
    out = cleared(off, np.ones(off.shape, dtype=bool), np.ones_like(off), np.zeros(5, dtype=int))
    np.testing.assert_array_equal(out, 0)
