"""Covariances and spectra say what coloured noise is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from ks4diff.numerics.noise import (
    LEAST_POWER,
    autocovariance,
    bilinear_covariance,
    by_lag,
    half_plane_mean,
    pair_powers,
    power_spectrum,
)
from tests import oracles
from tests.strategies import SHAPES


def bilinear_noise(rng, shape, u, v):
    white = rng.normal(0, 1, (shape[0] + 1, shape[1] + 1))
    white = (1 - v) * white[:-1] + v * white[1:]
    return (1 - u) * white[:, :-1] + u * white[:, 1:]


class TestAutocovariance:
    def test_against_the_loops(self):
        rng = np.random.default_rng(1)
        image = rng.normal(0, 3, (23, 31)).astype(np.float32)
        good = rng.random(image.shape) > 0.3
        expected = oracles.autocovariance(image.astype(float), good, 4)
        np.testing.assert_allclose(autocovariance(image, good, 4), expected, atol=1e-9 * 9)

    def test_of_bilinear_noise(self):
        noise = bilinear_noise(np.random.default_rng(2), (700, 811), 0.35, 0.1)
        got = autocovariance(noise, np.random.default_rng(3).random(noise.shape) > 0.2, 3)
        expected = np.pad(bilinear_covariance(0.35 * 0.65, 0.1 * 0.9), 2)
        np.testing.assert_allclose(got, expected, atol=0.006)

    def test_bad_pixels_do_not_count_even_nan(self):
        image = np.random.default_rng(4).normal(size=(40, 50))
        good = np.ones(image.shape, dtype=bool)
        good[10:20, 5:30] = False
        spoiled = np.where(good, image, np.nan)
        np.testing.assert_array_equal(autocovariance(spoiled, good, 5), autocovariance(image, good, 5))

    def test_nothing_good_gives_zeros(self):
        assert not autocovariance(np.ones((20, 20)), np.zeros((20, 20), dtype=bool), 3).any()


class TestSpectra:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_power_against_the_sum_of_cosines(self, shape):
        covariance = np.random.default_rng(5).normal(size=(7, 7))
        expected = oracles.power_spectrum(covariance, shape)[:, : shape[1] // 2 + 1]
        np.testing.assert_allclose(power_spectrum(covariance, shape), expected, atol=1e-11)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_mean_over_the_half_plane_is_that_of_the_plane(self, shape):
        image = np.random.default_rng(6).normal(size=shape)
        whole = (np.abs(np.fft.fft2(image)) ** 2).mean()
        assert half_plane_mean(np.abs(fft.rfft2(image)) ** 2, shape) == pytest.approx(whole, rel=1e-12)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_relative_power_has_mean_one_and_a_floor(self, shape):
        relative = oracles.relative_power(power_spectrum(bilinear_covariance(0.25, 0.25), shape), shape)
        assert relative.dtype == np.float32
        assert half_plane_mean(relative, shape) == pytest.approx(1.0, rel=1e-6)
        assert relative.min() == pytest.approx(LEAST_POWER, rel=0.01)
        assert relative.max() == pytest.approx(4.0, rel=0.02)

    def test_relative_power_whitens(self):
        """Noise divided by the root of its relative power is white with the variance that it had."""
        shape = (512, 600)
        noise = np.roll(bilinear_noise(np.random.default_rng(7), shape, 0.3, 0.2), (3, 5), axis=(0, 1))
        relative = oracles.relative_power(power_spectrum(bilinear_covariance(0.21, 0.16), shape), shape)
        white = fft.irfft2(fft.rfft2(noise) / np.sqrt(relative), shape)
        assert white.var() == pytest.approx(noise.var(), rel=0.01)
        for axis in (0, 1):
            assert abs((white * np.roll(white, 1, axis)).mean() / white.var()) < 0.008


def test_what_images_share_is_a_quarter_of_their_sum_s_covariance_less_their_difference_s():
    rng = np.random.default_rng(8)
    first, second = rng.normal(0, 1, (2, 61, 48)).astype(np.float32)
    second += 0.5 * np.roll(first, (1, 2), axis=(0, 1))
    good = rng.random(first.shape) > 0.2
    both, apart = (autocovariance(first + sign * second, good, 5) for sign in (1, -1))
    shared, difference = by_lag(pair_powers(first, second, good, 5), first.shape, 5)
    np.testing.assert_allclose(shared, 0.25 * (both - apart), atol=1e-6)
    np.testing.assert_allclose(difference, apart, atol=1e-6)


def test_powers_of_squares_add_up_to_those_of_all_their_pixels():
    rng = np.random.default_rng(9)
    first, second = rng.normal(0, 1, (2, 3, 40, 33))
    good = rng.random(first.shape) > 0.2
    powers = sum(pair_powers(*square, 4) for square in zip(first, second, good, strict=True))
    apart = np.pad(np.stack([first, second, good]), ((0, 0), (0, 0), (0, 5), (0, 0))).reshape(3, -1, 33)
    together = pair_powers(apart[0], apart[1], apart[2] > 0, 4)
    np.testing.assert_allclose(by_lag(powers, (40, 33), 4), by_lag(together, apart[0].shape, 4), atol=1e-12)
