"""The measured noise is the detector's, whatever stars and structure lie over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import fftconvolve

from ks4diff.numerics.noise import bilinear_covariance
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.noise import NoiseConfig, measure_noise, unshared_noise
from tests import skies

SHAPE = (310, 350)


def field(n, seed, epoch):
    stars = skies.star_field(seed, SHAPE, n)
    return skies.expose(SHAPE, stars.x, stars.y, stars.flux, epoch, seed)


def psf_of(epoch, n=25):
    psf = Psf(stamp=epoch.seeing.stamp(n).astype(np.float32), fwhm_pix=epoch.seeing.fwhm, n_stars=50)
    return PsfField.uniform(psf, SHAPE)


def noise_of(data, epoch):
    chip = reduce_chip(skies.raw_chip(data, epoch), BackgroundConfig())
    return measure_noise(chip, psf_of(epoch), NoiseConfig())


@pytest.mark.parametrize("epoch", [skies.BLURRED, skies.SHARP], ids=["gauss", "moffat"])
@pytest.mark.parametrize("n", [0, 900])
def test_white_noise(epoch, n):
    model = noise_of(field(n, 21, epoch), epoch)
    assert model.method == "sky"
    assert model.sigma == pytest.approx(epoch.sky_sigma, rel=0.02)
    correlation = model.correlation.copy()
    middle = len(correlation) // 2
    assert correlation[middle, middle] == pytest.approx(1)
    correlation[middle, middle] = 0
    assert np.abs(correlation).max() < 0.03


@pytest.mark.parametrize("n", [0, 900])
def test_bilinearly_resampled_noise(n):
    fx, fy = 0.4, 0.25
    data = field(n, 22, skies.SHARP)
    data = ((1 - fx) * data[:, :-1] + fx * data[:, 1:]).astype(np.float32)
    data = (1 - fy) * data[:-1] + fy * data[1:]
    model = noise_of(data, skies.SHARP)
    truth = bilinear_covariance(fx * (1 - fx), fy * (1 - fy))
    assert model.sigma == pytest.approx(skies.SHARP.sky_sigma * np.sqrt(truth[1, 1]), rel=0.03)
    middle = len(model.correlation) // 2
    near = model.correlation[middle - 1 : middle + 2, middle - 1 : middle + 2]
    np.testing.assert_allclose(near, truth / truth[1, 1], atol=0.04)


@pytest.mark.parametrize("epoch", [skies.BLURRED, skies.SHARP], ids=["gauss", "moffat"])
@pytest.mark.parametrize("seed", [11, 12])
def test_crowded_fields_are_read_where_starlight_has_no_power(epoch, seed):
    chip = calibrate(skies.raw_chip(field(8000, seed, epoch), epoch), CalibrateConfig())
    assert chip.noise.method == "high frequencies"
    assert chip.noise.sigma == pytest.approx(epoch.sky_sigma, rel=0.05)


def in_squares(images):
    return tuple(image[None] for image in images)


class TestUnshared:
    sky = np.ones(SHAPE, dtype=bool)
    psfs = (psf_of(skies.BLURRED), psf_of(skies.SHARP))

    def white(self, seed, sigma):
        return np.random.default_rng(seed).normal(0, sigma, SHAPE)

    def model(self, image):
        """Return a model that took all structure of an image for noise."""
        lags = range(-4, 5)
        covariance = np.array([[np.mean(image * np.roll(image, (j, i), (0, 1))) for i in lags] for j in lags])
        return NoiseModel(
            sigma=float(np.sqrt(covariance[4, 4])), correlation=covariance / covariance[4, 4], method="sky"
        )

    def test_a_pattern_in_both_is_taken_away(self):
        pattern = ndimage.gaussian_filter(self.white(1, 1.0), 1.3, mode="wrap")
        pattern *= 6.0 / pattern.std()
        images = (self.white(2, 10.0) + pattern, self.white(3, 12.0) + pattern)
        models = tuple(self.model(image) for image in images)
        assert models[0].sigma == pytest.approx(np.hypot(10, 6), rel=0.01)
        left = unshared_noise(in_squares(images), models, self.psfs, self.sky[None], NoiseConfig())
        assert [m.sigma for m in left] == pytest.approx([10.0, 12.0], rel=0.03)

    def test_independent_noise_is_left_alone(self):
        images = (self.white(4, 10.0), self.white(5, 12.0))
        models = tuple(self.model(image) for image in images)
        left = unshared_noise(in_squares(images), models, self.psfs, self.sky[None], NoiseConfig())
        assert [m.sigma for m in left] == pytest.approx([10.0, 12.0], rel=0.02)

    def test_starlight_that_the_models_lack_is_not_taken_from_them_again(self):
        # what both images show below the mask has 3 times the noise's power; the models are white already
        rng = np.random.default_rng(6)
        faint = np.where(rng.random(SHAPE) < 0.05, rng.exponential(1.0, SHAPE), 0)
        drawn = [ndimage.convolve(faint, psf.stamp, mode="wrap") for psf in self.psfs]
        scale = np.sqrt(3 * 100 / faint.var())
        images = tuple(self.white(7 + k, 10.0) + scale * (d - d.mean()) for k, d in enumerate(drawn))
        white = NoiseModel(sigma=10.0, correlation=np.pad([[1.0]], 4), method="sky")
        for model in unshared_noise(
            in_squares(images), (white, white), self.psfs, self.sky[None], NoiseConfig()
        ):
            # power at k = 0 is variance times the sum of the correlation
            assert model.sigma**2 * model.correlation.sum() == pytest.approx(100, rel=0.1)
            assert model.sigma == pytest.approx(10, rel=0.03)

    def test_no_more_is_left_than_the_plain_difference_shows(self):
        """Faint light of the PSF's shape in both, which the models take for noise: what a star's sum sees."""
        rng, psf = np.random.default_rng(16), self.psfs[1].stamp
        faint = np.where(rng.random(SHAPE) < 0.05, rng.exponential(1.0, SHAPE), 0)
        light = ndimage.convolve(faint, psf, mode="wrap")
        light = 2.5 * (light - light.mean()) / light.std()
        images = tuple(self.white(17 + k, 10.0) + light for k in (0, 1))
        models = tuple(self.model(image) for image in images)

        def seen(some):
            """Return the variance of the PSF's sum over both images' noise, over that of white noise."""
            square = fftconvolve(psf, psf[::-1, ::-1], mode="same")
            near = square[tuple(slice(n // 2 - 4, n // 2 + 5) for n in square.shape)]
            return sum(m.sigma**2 * (m.correlation * near).sum() for m in some) / (200 * (psf**2).sum())

        assert seen(models) > 1.4
        left = unshared_noise(in_squares(images), models, (self.psfs[1],) * 2, self.sky[None], NoiseConfig())
        assert seen(left) == pytest.approx(1, abs=0.04)

    @pytest.mark.parametrize("rows", [0, 28])
    def test_too_few_pixels_change_nothing(self, rows):
        images = tuple(self.white(9 + k, 10.0) for k in (0, 1))
        models = tuple(self.model(image) for image in images)
        sky = np.zeros(SHAPE, dtype=bool)
        sky[:rows] = True
        assert unshared_noise(in_squares(images), models, self.psfs, sky[None], NoiseConfig()) == models

    def test_nothing_is_taken_in_a_crowded_field(self):
        images = (self.white(8, 10.0),) * 2
        model = NoiseModel(sigma=10.0, correlation=np.pad([[1.0]], 1), method="high frequencies")
        left = unshared_noise(in_squares(images), (model, model), self.psfs, self.sky[None], NoiseConfig())
        assert left == (model, model)


class TestLargeImages:
    """Noise that doubles its variance halfway across, on a chip too large to be looked at whole."""

    shape = (1050, 1200)
    small = NoiseConfig(patch_pix=128)

    def chip(self, seed):
        rng = np.random.default_rng(seed)
        white = rng.normal(0, 12.0, self.shape) * np.where(np.arange(self.shape[1]) < 600, 1.0, np.sqrt(2))
        return reduce_chip(
            skies.raw_chip((400 + white).astype(np.float32), skies.BLURRED), BackgroundConfig()
        )

    @pytest.mark.parametrize("seed", [31, 32])
    def test_a_sample_of_patches_has_the_noise_of_the_whole(self, seed):
        chip = self.chip(seed)
        whole = measure_noise(chip, psf_of(skies.BLURRED), NoiseConfig())
        part = measure_noise(chip, psf_of(skies.BLURRED), self.small)
        assert part.method == whole.method == "sky"
        assert part.sigma == pytest.approx(whole.sigma, rel=0.02)
        np.testing.assert_allclose(part.correlation, whole.correlation, atol=0.02)

    def test_the_map_follows_the_variance(self):
        chip = self.chip(33)
        cells = chip.image.sky_variance.values
        assert cells.shape == (4, 4)
        np.testing.assert_allclose(cells[:, :2], 144.0, rtol=0.04)
        np.testing.assert_allclose(cells[:, 2:], 288.0, rtol=0.04)

    def test_structure_in_one_patch_alone_is_no_noise(self):
        chip = self.chip(34)
        before = measure_noise(chip, psf_of(skies.BLURRED), self.small)
        data = chip.image.data.copy()
        y, x = np.mgrid[: self.shape[0], : self.shape[1]]
        data += np.where((y < 260) & (x < 300), 30 * np.sin(x / 3.0), 0).astype(np.float32)
        after = measure_noise(
            replace(chip, image=replace(chip.image, data=data)), psf_of(skies.BLURRED), self.small
        )
        assert after.sigma == pytest.approx(before.sigma, rel=0.02)

    def test_crowded_patches_agree_with_the_whole(self):
        epoch = skies.SHARP
        stars = skies.star_field(35, (600, 640), 22000)
        data = skies.expose((600, 640), stars.x, stars.y, stars.flux, epoch, 35)
        chip = reduce_chip(skies.raw_chip(data, epoch), BackgroundConfig())
        whole = measure_noise(chip, psf_of(epoch), NoiseConfig())
        part = measure_noise(chip, psf_of(epoch), NoiseConfig(patch_pix=140))
        assert part.method == whole.method == "high frequencies"
        assert part.sigma == pytest.approx(whole.sigma, rel=0.05)
