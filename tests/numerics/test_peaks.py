"""Peaks are found once each, and placed below the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ks4diff.numerics.peaks import find_peaks, refine_peaks
from tests import oracles
from tests.strategies import fractions, gaussian, seeds


class TestFind:
    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(seeds, st.integers(1, 5))
    def test_against_brute_force(self, seed, radius):
        rng = np.random.default_rng(seed)
        score = ndimage.gaussian_filter(rng.normal(size=(31, 40)), 1.2) * 10
        usable = rng.random(score.shape) > 0.1
        found = find_peaks(score, usable, 1.5, radius)
        assert set(map(tuple, found.T.tolist())) == oracles.find_peaks(score, usable, 1.5, radius)
        height = np.abs(score[found[1], found[0]])
        assert (np.diff(height) <= 0).all()

    def test_both_signs_stand_side_by_side(self):
        score = np.zeros((20, 30))
        score[10, 10], score[10, 12] = 8.0, -9.0
        np.testing.assert_array_equal(
            find_peaks(score, np.ones(score.shape, dtype=bool), 5.0, 4), [[12, 10], [10, 10]]
        )

    def test_equals_count_once(self):
        """A plateau is one peak; equals in a row farther apart than the radius are several."""
        score = np.zeros((20, 40))
        score[5:8, 6:9] = 7.0
        score[15, 3:30:3] = 6.0
        found = find_peaks(score, np.ones(score.shape, dtype=bool), 5.0, 4)
        assert found.T.tolist() == [[6, 5], [3, 15], [9, 15], [15, 15], [21, 15], [27, 15]]

    def test_what_is_not_usable_hides_nothing(self):
        score = np.zeros((20, 30))
        score[10, 10], score[10, 11], score[4, 4] = 50.0, 8.0, np.nan
        usable = np.isfinite(score) & (score < 40)
        np.testing.assert_array_equal(find_peaks(score, usable, 5.0, 3), [[11], [10]])

    def test_no_peak(self):
        assert find_peaks(np.zeros((9, 9)), np.ones((9, 9), dtype=bool), 5.0, 2).shape == (2, 0)


class TestRefine:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(fractions, fractions, st.floats(3.0, 8.0), st.sampled_from([1.0, -250.0]))
    def test_a_round_source_is_placed_to_a_twentieth_of_a_pixel(self, dx, dy, fwhm, flux):
        image = flux * gaussian(31, fwhm, dx=dx, dy=dy)[:, 2:]
        y, x = np.unravel_index(np.abs(image).argmax(), image.shape)
        place, top = refine_peaks(image, np.array([[x], [y]]))
        np.testing.assert_allclose(place[:, 0], [13 + dx, 15 + dy], atol=0.05)
        assert top[0] == pytest.approx(flux * gaussian(3, fwhm).max(), rel=0.035)

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(fractions, fractions, st.floats(0, 3.1))
    def test_an_elongated_source_to_a_tenth(self, dx, dy, angle):
        image = gaussian(31, 3.5, axis_ratio=0.7, angle=angle, dx=dx, dy=dy)
        y, x = np.unravel_index(image.argmax(), image.shape)
        place, _ = refine_peaks(image, np.array([[x], [y]]))
        np.testing.assert_allclose(place[:, 0], [15 + dx, 15 + dy], atol=0.105)

    def test_the_pixel_alone_loses_a_seventh_at_the_corner_between_four(self):
        image = gaussian(21, 3.0, dx=0.5, dy=0.5)
        assert image.max() / gaussian(21, 3.0).max() == pytest.approx(0.86, abs=0.005)
        _, top = refine_peaks(image, np.array([[10], [10]]))
        assert top[0] == pytest.approx(gaussian(21, 3.0).max(), rel=0.04)

    def test_an_exact_paraboloid_is_exact(self):
        y, x = np.mgrid[:9, :11]
        image = 50.0 - (x - 5.3) ** 2 - 0.8 * (y - 3.8) ** 2 - 0.6 * (x - 5.3) * (y - 3.8)
        place, top = refine_peaks(image, np.array([[5], [4]]))
        np.testing.assert_allclose([*place[:, 0], top[0]], [5.3, 3.8, 50.0], atol=1e-12)

    @pytest.mark.parametrize(("x", "y"), [(0, 4), (10, 4), (5, 0), (5, 8), (0, 0), (10, 8)])
    def test_peaks_on_the_border_stay(self, x, y):
        image = np.random.default_rng(1).normal(size=(9, 11))
        place, top = refine_peaks(image, np.array([[x], [y]]))
        assert [*place[:, 0], top[0]] == [x, y, image[y, x]]

    def test_beside_nan_and_without_a_top_they_stay(self):
        image = gaussian(11, 3.0, dx=0.2)
        image[4, 4] = np.nan
        image[8, 8] = -1.0
        place, top = refine_peaks(image, np.array([[5, 8], [5, 7]]))
        np.testing.assert_array_equal(place, [[5, 8], [5, 7]])
        np.testing.assert_array_equal(top, image[[5, 7], [5, 8]])

    def test_no_peaks(self):
        place, top = refine_peaks(np.ones((5, 5)), np.empty((2, 0), dtype=np.int64))
        assert place.shape == (2, 0)
        assert top.shape == (0,)
