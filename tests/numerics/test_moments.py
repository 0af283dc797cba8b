"""Shapes of PSFs and sources are measured as they were made; PSFs land in the middle of a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from ks4diff.numerics import moments, psf_grid
from tests.strategies import fractions, gaussian, moffat, widths


class TestWidths:
    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(widths, fractions, fractions)
    def test_half_max_width(self, fwhm, dx, dy):
        """To 4 % at any sub-pixel place."""
        assert moments.half_max_width(gaussian(35, fwhm, dx=dx, dy=dy)) == pytest.approx(fwhm, rel=0.04)

    def test_half_max_width_of_a_moffat(self):
        assert moments.half_max_width(moffat(41, 4.0)) == pytest.approx(4.0, rel=0.03)

    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(widths, st.floats(0.6, 1.0), st.floats(0, 3.1), fractions)
    def test_gaussian_shape(self, fwhm, ratio, angle, dx):
        stamp = 300 * gaussian(63, fwhm, axis_ratio=ratio, angle=angle, dx=0.4 * dx)
        width, elongation = moments.gaussian_shape(stamp, 4.0)
        assert width == pytest.approx(fwhm, rel=0.03)
        assert elongation == pytest.approx(1 / ratio, rel=0.05)

    def test_gaussian_shape_of_nothing(self):
        assert np.isnan(moments.gaussian_shape(np.full((21, 21), -1.0), 3.0)).all()
        assert np.isnan(moments.gaussian_shape(np.full((21, 21), np.nan), 3.0)).all()

    def test_a_flat_patch_is_as_wide_as_can_be_told(self):
        width, elongation = moments.gaussian_shape(np.ones((61, 61)), 3.0)
        assert 10 < width <= 30.001
        assert elongation == pytest.approx(1.0, abs=1e-6)


class TestStamps:
    def test_pixels_around_the_nearest_one(self):
        image = np.arange(20.0 * 30).reshape(20, 30)
        got = moments.stamps(image, np.array([7.4, 28.6]), np.array([9.6, 0.2]), 2)
        np.testing.assert_array_equal(got[0], image[8:13, 5:10])
        np.testing.assert_array_equal(got[1, 2:, :3], image[:3, 27:30])
        assert np.isnan(got[1, :2]).all()
        assert np.isnan(got[1, :, 3:]).all()

    @pytest.mark.parametrize(("x", "y"), [(-50.0, 5.0), (5.0, 500.0), (33.0, -3.0)])
    def test_beyond_the_image_there_is_only_fill(self, x, y):
        got = moments.stamps(np.ones((20, 30)), np.array([x]), np.array([y]), 2, fill=-7.0)
        np.testing.assert_array_equal(got, np.full((1, 5, 5), -7.0))

    def test_no_position(self):
        assert moments.stamps(np.ones((9, 9)), np.empty(0), np.empty(0), 3).shape == (0, 7, 7)


class TestMoved:
    @settings(deadline=None, derandomize=True, max_examples=20)
    @given(fractions, fractions, st.sampled_from([15, 25, 33]))
    def test_a_stamp_moves_right_and_up(self, dx, dy, n):
        got = moments.moved(gaussian(25, 4.0), dx, dy, n)
        np.testing.assert_allclose(got, gaussian(n, 4.0, dx=dx, dy=dy), atol=0.006 * got.max())


class TestCorrelation:
    def test_of_equals_opposites_and_constants(self):
        a = np.random.default_rng(1).normal(size=(9, 9))
        used = np.ones(a.shape, dtype=bool)
        assert moments.correlation(a, 3 * a + 2, used) == pytest.approx(1.0)
        assert moments.correlation(a, -a, used) == pytest.approx(-1.0)
        assert moments.correlation(a, np.ones(a.shape), used) == 0.0
        assert moments.correlation(a, a, ~used) == 0.0

    def test_only_used_pixels_count(self):
        rng = np.random.default_rng(2)
        a, b = rng.normal(size=(2, 9, 9))
        used = rng.random((9, 9)) > 0.5
        assert moments.correlation(a, b, used) == pytest.approx(np.corrcoef(a[used], b[used])[0, 1])


class TestGrid:
    @pytest.mark.parametrize("shape", [(30, 30), (31, 44), (30, 29)])
    def test_embed_and_extract_are_inverse(self, shape):
        stamp = np.random.default_rng(3).normal(size=(13, 13))
        grid = psf_grid.embed(stamp, shape)
        assert grid[0, 0] == stamp[6, 6]
        assert grid[-1, 2] == stamp[5, 8]
        np.testing.assert_array_equal(psf_grid.extract(grid, 13), stamp)

    @pytest.mark.parametrize("shape", [(30, 30), (31, 44), (30, 29)])
    def test_a_symmetric_stamp_has_a_real_transform_and_moves_nothing(self, shape):
        hat = psf_grid.transform(gaussian(21, 3.0), shape)
        assert np.abs(hat.imag).max() < 1e-15
        image = np.zeros(shape)
        image[17, 11] = 1
        moved = fft.irfft2(fft.rfft2(image) * hat, shape)
        assert np.unravel_index(moved.argmax(), shape) == (17, 11)

    @pytest.mark.parametrize("stamp", [np.ones((4, 4)), np.ones((5, 7)), np.ones((6, 5))])
    def test_stamps_that_have_no_middle_are_refused(self, stamp):
        with pytest.raises(ValueError, match="square and odd"):
            psf_grid.embed(stamp, (30, 30))

    def test_a_stamp_larger_than_the_grid_is_refused(self):
        with pytest.raises(ValueError, match="does not fit"):
            psf_grid.embed(np.ones((31, 31)), (40, 30))

    def test_good_shapes_are_fast_and_large_enough(self):
        rows, columns = psf_grid.good_shape((1021, 997), 50)
        assert rows >= 1071
        assert columns >= 1047
        assert fft.next_fast_len(rows, real=True) == rows

    def test_taper(self):
        window = psf_grid.taper(31, 8.0, 14.0)
        y, x = np.mgrid[-15:16, -15:16]
        radius = np.hypot(x, y)
        assert (window[radius <= 8] == 1).all()
        assert np.abs(window[radius >= 14]).max() < 1e-15
        assert ((window >= 0) & (window <= 1)).all()
        assert window[15, 15 + 11] == pytest.approx(0.5)
