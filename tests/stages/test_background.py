"""Masking and background: what counts as no data, what as full, and a sky level without bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.products.cells import Cells
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.variance import pixel_variance
from tests import skies

SHAPE = (250, 330)


def blank(seed=1, epoch=skies.BLURRED):
    return skies.expose(SHAPE, [], [], [], epoch, seed)


def reduced(data, **facts):
    return reduce_chip(skies.raw_chip(data, skies.BLURRED, **facts), BackgroundConfig())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_blank_sky_has_its_own_level_and_noise(seed):
    chip = reduced(blank(seed))
    sigma = skies.BLURRED.sky_sigma
    # a bias of 0.02 sigma would hold 1 % of a star of S/N 300 in its PSF's stamp
    assert np.median(chip.background.values) == pytest.approx(skies.BLURRED.sky, abs=0.02 * sigma)
    assert chip.rms == pytest.approx(sigma, rel=0.01)
    assert chip.sky.mean() > 0.98


def test_a_sloping_sky_is_followed():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    slope = 0.15 * x - 0.1 * y + 3e-4 * (x - 100) * (y - 120)
    chip = reduced((blank() + slope).astype(np.float32))
    error = chip.background.over(slice(None), slice(None)) - (skies.BLURRED.sky + slope)
    assert np.abs(error[30:-30, 30:-30]).max() < 0.25 * skies.BLURRED.sky_sigma


def test_stars_do_not_lift_the_sky():
    stars = skies.star_field(4, SHAPE, 500)
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, skies.BLURRED, 4)
    assert np.median(reduced(data).background.values) == pytest.approx(
        skies.BLURRED.sky, abs=0.1 * skies.BLURRED.sky_sigma
    )


def test_variance_is_sky_plus_the_smoothed_source():
    data = skies.draw((61, 81), [33.4], [28.7], [5e5], skies.Seeing(fwhm=4.0)).astype(np.float32)
    image = MaskedImage(
        data=data, flags=np.zeros(data.shape, np.uint16), sky_variance=Cells.constant(90.0, data.shape)
    )
    np.testing.assert_allclose(pixel_variance(image, 2.5, smooth_pix=0.0), 90.0 + data / 2.5, rtol=1e-6)
    smooth = 90.0 + ndimage.gaussian_filter(data.astype(float), 1.7) / 2.5
    rows, columns = slice(3, 50), slice(0, 77)
    part = pixel_variance(image, 2.5, smooth_pix=1.7, rows=rows, columns=columns)
    np.testing.assert_allclose(part, smooth[rows, columns], rtol=1e-5)
    negative = replace(image, data=-data)
    assert pixel_variance(negative, 2.5, smooth_pix=1.0).min() == pytest.approx(90.0)


class TestFlags:
    def test_a_block_of_zeros_is_no_data_and_a_lone_zero_is_a_pixel(self):
        data = blank()
        data[100:103, 40:43] = 0
        data[200, 77] = 0
        flags = reduced(data).image.flags
        assert (flags[100:103, 40:43] & PixelFlag.NO_DATA).all()
        assert flags[200, 77] == 0
        assert np.count_nonzero(flags) == 9

    def test_zeros_must_hang_together(self):
        data = blank()
        data[10:200:9, 33] = 0
        assert not reduced(data).image.flags.any()

    def test_what_is_not_finite_is_flagged_and_reaches_nothing_else(self):
        data = blank()
        data[60, 70], data[61, 70], data[62, 71] = np.nan, np.inf, -np.inf
        chip = reduced(data, saturation=3e4)
        assert np.argwhere(chip.image.flags & PixelFlag.NON_FINITE).tolist() == [[60, 70], [61, 70], [62, 71]]
        assert np.isfinite(chip.image.data).all()
        assert np.isfinite(chip.image.sky_variance.values).all()

    def test_the_headers_level_saturates_with_a_margin_for_spilt_charge(self):
        data = blank()
        data[100, 200] = 20000.0
        flags = reduced(data, saturation=20000.0).image.flags
        assert flags[100, 200] & PixelFlag.SATURATED
        assert flags[100, 202] & PixelFlag.SATURATED
        assert not flags[100, 203]
        assert not reduced(data, saturation=20001.0).image.flags.any()

    def test_a_plateau_betrays_the_level_that_no_header_tells(self):
        data = skies.bleed(blank(), 200, 100, 20000.0, radius=2, length=10)
        data[100, 150] = 19500.0  # above 95 % of the plateau: response bends before it clips
        data[50, 150] = 18000.0
        flags = reduced(data).image.flags
        assert flags[100, 200] & PixelFlag.SATURATED
        assert flags[100, 150] & PixelFlag.SATURATED
        assert not flags[50, 150]

    def test_one_brightest_pixel_is_no_plateau(self):
        data = blank()
        data[100, 200] = 20000.0
        assert not reduced(data).image.flags.any()


class TestGain:
    def test_given(self):
        assert (reduced(blank()).gain, reduced(blank()).gain_source) == (skies.BLURRED.gain, "given")

    def test_from_the_sky(self):
        epoch = replace(skies.BLURRED, gain=2.2, read_noise=0.0)
        chip = reduce_chip(skies.raw_chip(blank(epoch=epoch)), BackgroundConfig())
        assert chip.gain == pytest.approx(2.2, rel=0.03)
        assert "sky" in chip.gain_source

    def test_assumed_without_a_sky(self):
        data = blank() - np.float32(skies.BLURRED.sky)
        chip = reduce_chip(skies.raw_chip(data), BackgroundConfig())
        assert chip.gain == 1
        assert "assumed" in chip.gain_source


class TestRefusals:
    def test_too_few_pixels(self):
        data = blank()
        data[:200] = np.nan
        with pytest.raises(SkipChip, match="too few usable pixels") as refusal:
            reduced(data)
        assert refusal.value.numbers["bad_fraction"] == pytest.approx(200 / 250)

    def test_no_noise(self):
        data = np.full(SHAPE, 400, dtype=np.float32)
        data[100, 100] = 401
        with pytest.raises(SkipChip, match="no noise"):
            reduced(data)

    @pytest.mark.parametrize("bad", [{"background_mesh_pix": 8}, {"plateau_fraction": 0.0}])
    def test_limits_out_of_range(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BackgroundConfig(**bad)


def test_the_raw_chip_is_left_alone():
    data = blank()
    data[100:110, 40:50] = 0
    kept = data.copy()
    reduced(data)
    np.testing.assert_array_equal(data, kept)
