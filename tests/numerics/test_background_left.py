"""Backgrounds in one image only: found where they are, left alone where there are none, their error told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.background_left import BLOCK, background_left, block_means, convolved, subtract_level

SHAPE = (600, 713)


def fringes(rms, seed=3, width=30.0):
    """Return a smooth random pattern of this rms, correlated over some 40 px."""
    drawn = np.random.default_rng(seed).normal(size=SHAPE)
    pattern = ndimage.gaussian_filter(drawn, width) - ndimage.gaussian_filter(drawn, 2 * width)
    return rms * pattern / pattern.std()


def pair(rms, seed=1):
    rng = np.random.default_rng(seed)
    science = rng.normal(0, 3.0, SHAPE) + fringes(rms)
    used = rng.uniform(size=SHAPE) < 0.9
    used[100:150, 200:260] = False
    return science.astype(np.float32), rng.normal(0, 2.0, SHAPE).astype(np.float32), used


def test_block_means_are_those_of_the_used_pixels():
    science, template, used = pair(0.0)
    means, count = block_means(science, template, used)
    assert means.shape == (38, 45)
    for j, i in ((0, 0), (7, 14), (37, 44), (20, 31)):
        box = slice(j * BLOCK, (j + 1) * BLOCK), slice(i * BLOCK, (i + 1) * BLOCK)
        left = (science[box].astype(float) - template[box])[used[box]]
        assert count[j, i] == len(left)
        assert means[j, i] == pytest.approx(left.mean() if len(left) else 0, abs=1e-5)


def test_noise_alone_is_left_alone():
    assert [background_left(*block_means(*pair(0.0, seed))) for seed in range(20)] == [None] * 20


@pytest.mark.parametrize(("rms", "part"), [(0.25, 0.65), (0.4, 0.35)])
def test_a_pattern_is_subtracted_and_what_is_left_is_stated(rms, part):
    """A tenth of the noise per pixel: a part of its variance is left, and that is what is said."""
    science, template, used = pair(rms)
    before = science.copy()
    found = background_left(*block_means(science, template, used))
    subtract_level(found.level, science)
    left = fringes(rms) - (before - science)
    assert left.var() < part * rms**2
    assert found.variance == pytest.approx(left.var(), rel=0.4)


def test_a_level_is_bilinear_between_the_middles_of_blocks():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    plane = lambda y, x: 3 + 0.01 * x - 0.02 * y  # noqa: E731
    j, i = np.mgrid[:38, :45]
    image = np.zeros(SHAPE, dtype=np.float32)
    middle = BLOCK / 2 - 0.5
    subtract_level(plane(BLOCK * j + middle, BLOCK * i + middle).astype(np.float32), image)
    inner = slice(8, -8), slice(8, -8)
    np.testing.assert_allclose(-image[inner], plane(y, x)[inner], atol=1e-4)


def test_no_source_takes_part_in_the_level_below_itself():
    science, template, used = pair(0.4)
    level = background_left(*block_means(science, template, used)).level
    science[300:306, 400:406] += 12.0  # a star of S/N 20 that no mask knows
    other = background_left(*block_means(science, template, used)).level
    at = 303 // BLOCK, 403 // BLOCK
    assert abs(other[at] - level[at]) < 0.02  # the own block's mean rises by 1.7


def test_a_field_without_sky_has_none():
    science, template, used = pair(0.4)
    assert background_left(*block_means(science, template, np.zeros_like(used))) is None


def test_convolving_row_by_row_is_scipys_to_the_bit():
    rng = np.random.default_rng(7)
    image, weights = rng.normal(size=(23, 31)), rng.normal(size=(11, 11))
    weights[4:7, 4:7] = 0
    expected = ndimage.convolve(image, weights, mode="constant")
    np.testing.assert_array_equal(convolved(image, weights), expected)
