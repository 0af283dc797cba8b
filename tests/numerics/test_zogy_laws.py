"""Laws of the proper difference that other methods put beside it: coadds, convolved templates, particles.

Where noise comes in, it does by the responses to unit pixels, not by draws.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from ks4diff.numerics import zogy
from tests import oracles
from tests.strategies import SHAPES, gaussian, lopsided, moffat

SIGMA_N, SIGMA_R = 3.0, 2.0
WIDE = gaussian(29, 4.0, axis_ratio=0.8, angle=0.5)
PSF = lopsided(WIDE / WIDE.sum())


def side(data, psf, flux, sigma, variance=None):
    variance = np.full(data.shape, sigma**2) if variance is None else variance
    return zogy.Side(
        data.astype(np.float32), variance.astype(np.float32), psf, float(flux), float(sigma) ** 2
    )


def pixel(shape, y, x, value=1.0):
    image = np.zeros(shape)
    image[y, x] = value
    return image


def placed(shape, psf, stars):
    image, half = np.zeros(shape), len(psf) // 2
    for x, y, flux in stars:
        image[y - half : y + half + 1, x - half : x + half + 1] += flux * psf
    return image


def middle(shape):
    return shape[0] // 2 + 2, shape[1] // 2 - 3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_variance_at_bright_stars_is_that_of_the_responses(shape):
    """Law 7, to 0.1 %: V at each pixel is the sum of all pixels' variances times their squared responses."""
    psfs, fluxes = (PSF, lopsided(moffat(31, 3.2), (0, 1))), (1.0, 1.6)
    variances = [
        sigma**2 + f * placed(shape, psf, [(48, 45, 8000.0), (53, 48, 900.0)])
        for sigma, f, psf in zip((SIGMA_N, SIGMA_R), fluxes, psfs, strict=True)
    ]
    empty = np.zeros(shape)
    y, x = middle(shape)

    def subtracted(n, r):
        return zogy.subtract(
            *(
                side(data, psf, f, sigma, v)
                for data, psf, f, sigma, v in zip(
                    (n, r), psfs, fluxes, (SIGMA_N, SIGMA_R), variances, strict=True
                )
            )
        )

    unit = pixel(shape, y, x)
    expected = 0.0
    for data, variance in zip(((unit, empty), (empty, unit)), variances, strict=True):
        response = subtracted(*data).score.astype(np.float64)
        half = min(y, x, shape[0] - 1 - y, shape[1] - 1 - x)
        stamp = response[y - half : y + half + 1, x - half : x + half + 1]
        expected = expected + oracles.convolve(variance, stamp**2)
    found = subtracted(empty, empty).variance
    assert found[45, 48] > 4 * found[5, 5]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


class TestCoadd:
    """Law 18: four exposures of their own seeing, transparency and depth, put together, as a template."""

    PSFS = tuple(lopsided(moffat(25, fwhm), (0, 1)) for fwhm in (2.8, 3.3, 3.9, 4.6))
    FLUXES, SIGMAS = (1.0, 0.7, 1.3, 0.9), (2.0, 1.5, 3.0, 2.5)

    def template(self, images, stamp=61):
        """Return the coadd as a `zogy.Side`: s_r = 1, F_r = F_R."""
        data, psf, flux = oracles.proper_coadd(images, self.PSFS, self.FLUXES, self.SIGMAS)
        half = stamp // 2
        psf = np.roll(psf, (half, half), (0, 1))[:stamp, :stamp]
        return side(data, psf / psf.sum(), flux, 1.0)

    def units(self, shape):
        """Return what a unit pixel of each exposure alone makes of the coadd."""
        unit, empty = pixel(shape, *middle(shape)), np.zeros(shape)
        return [
            self.template([unit if k == j else empty for k in range(len(self.PSFS))])
            for j in range(len(self.PSFS))
        ]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_its_noise_is_white_of_unit_variance_and_its_psf_has_unit_sum(self, shape):
        units = self.units(shape)
        power = sum(
            sigma**2 * np.abs(fft.rfft2(one.data.astype(float))) ** 2
            for one, sigma in zip(units, self.SIGMAS, strict=True)
        )
        np.testing.assert_allclose(power, 1, atol=1e-4)
        psf = oracles.proper_coadd([one.data for one in units], self.PSFS, self.FLUXES, self.SIGMAS)[1]
        assert psf.sum() == pytest.approx(1, abs=1e-6)
        assert psf.argmax() == 0

    @pytest.mark.parametrize("shape", SHAPES)
    def test_with_it_the_score_has_unit_variance(self, shape):
        empty = np.zeros(shape)
        science = side(pixel(shape, *middle(shape)), PSF, 1.0, SIGMA_N)
        blank = side(empty, PSF, 1.0, SIGMA_N)
        pairs = [(science, self.template([empty] * 4)), *((blank, one) for one in self.units(shape))]
        total_d, total_s = 0.0, 0.0
        for pair, sigma in zip(pairs, (SIGMA_N, *self.SIGMAS), strict=True):
            result = zogy.subtract(*pair)
            total_d += sigma**2 * (result.difference.astype(np.float64) ** 2).sum()
            total_s += sigma**2 * (result.score.astype(np.float64) ** 2).sum() / result.score_flux
        assert total_d == pytest.approx(1, abs=0.005)
        assert total_s == pytest.approx(1, abs=0.002)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_stars_cancel_and_sources_have_their_flux_to_the_depth_that_all_exposures_allow(self, shape):
        stars, new = [(45, 42, 1e5), (60, 55, 3e4)], [(52, 47, 2e4)]
        exposures = [f * placed(shape, p, stars) for f, p in zip(self.FLUXES, self.PSFS, strict=True)]
        static = placed(shape, PSF, stars)
        result = zogy.subtract(side(static, PSF, 1.0, SIGMA_N), self.template(exposures))
        alone = zogy.subtract(side(static, PSF, 1.0, SIGMA_N), self.template([0 * e for e in exposures]))
        assert np.abs(result.score).max() < 1e-3 * alone.score.max()
        shown = zogy.subtract(
            side(static + placed(shape, PSF, new), PSF, 1.0, SIGMA_N), self.template(exposures)
        )
        assert shown.score[47, 52] / shown.score_flux == pytest.approx(2e4, rel=2e-3)
        # eq 42 with F_R² |P_R|² the sum over the exposures
        grid = zogy.grid_shape(shape, 61)
        a2 = np.abs(np.fft.fft2(oracles.centred(PSF, grid))) ** 2
        b2 = sum(
            (f / s * np.abs(np.fft.fft2(oracles.centred(p, grid)))) ** 2
            for f, s, p in zip(self.FLUXES, self.SIGMAS, self.PSFS, strict=True)
        )
        assert result.score_flux == pytest.approx((a2 * b2 / (SIGMA_N**2 * b2 + a2)).mean(), rel=2e-3)
        for f, s, p in zip(self.FLUXES, self.SIGMAS, self.PSFS, strict=True):
            one = zogy.subtract(side(static, PSF, 1.0, SIGMA_N), side(static, p, f, s))
            assert one.score_flux < result.score_flux


class TestConvolvedTemplate:
    """Laws 15 and 20: beside Alard & Lupton's, Bramich's and sfft's difference, N = K * R."""

    SHARP, RATIO = gaussian(17, 2.0) / gaussian(17, 2.0).sum(), 1.3
    KERNEL = gaussian(9, 2.6, axis_ratio=0.8, angle=0.4) / gaussian(9, 2.6, axis_ratio=0.8, angle=0.4).sum()
    BROAD = oracles.convolve(np.pad(SHARP, 4), KERNEL)

    def pair(self, shape, more=0.0):
        stars = [(40, 45, 3e4), (55, 38, 9e3), (47, 60, 2e4), (62, 52, 5e3)]
        science = self.RATIO * placed(shape, self.BROAD, stars) + more
        return (
            side(science, self.BROAD, self.RATIO, SIGMA_N),
            side(placed(shape, self.SHARP, stars), self.SHARP, 1.0, SIGMA_R),
        )

    @pytest.mark.parametrize("shape", SHAPES)
    def test_both_leave_nothing_and_know_the_same_flux_ratio(self, shape):
        science, template = self.pair(shape)
        n, r = (one.data.astype(float) for one in (science, template))
        kernel = oracles.delta_basis(n, r, 4)
        left = (n - oracles.convolve(r, kernel))[4:-4, 4:-4]
        assert np.abs(left).max() < 1e-5 * n.max()
        assert kernel.sum() == pytest.approx(self.RATIO, rel=1e-5)
        np.testing.assert_allclose(kernel, self.RATIO * self.KERNEL, atol=1e-4 * kernel.max())
        ours = zogy.subtract(science, template)
        alone = zogy.subtract(science, template._replace(data=np.zeros(shape, np.float32)))
        # the price of the PSF lift: see `zogy.lifted`
        assert np.abs(ours.difference).max() < 0.006 * alone.difference.max()
        assert np.abs(ours.score).max() < 5e-5 * alone.score.max()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_new_source_shows_in_the_whitened_science_psf_with_its_flux(self, shape):
        """D / F_D has the PSF P_n * psi, psi the decorrelation kernel, whose sum is 1 (DMTN-021, eq 2)."""
        y, x = middle(shape)
        science, template = self.pair(shape, self.RATIO * placed(shape, self.BROAD, [(x, y, 1e4)]))
        grid = zogy.grid_shape(shape, len(self.BROAD))
        k = self.RATIO * np.fft.fft2(oracles.centred(self.KERNEL, grid))
        # in counts of the science image, F_n = ratio
        variance = SIGMA_N**2 + self.RATIO**2 * SIGMA_R**2
        psi = np.sqrt(variance / (SIGMA_N**2 + SIGMA_R**2 * np.abs(k) ** 2))
        assert psi[0, 0] == pytest.approx(1, rel=1e-6)
        expected = np.fft.ifft2(np.fft.fft2(oracles.centred(self.BROAD, grid)) * psi).real
        result = zogy.subtract(science, template)
        assert self.RATIO / result.flux == pytest.approx(np.sqrt(variance), rel=1e-5)
        found = result.difference / result.flux
        assert found.sum(dtype=np.float64) == pytest.approx(1e4, rel=2e-3)
        half = 12
        seen = found[y - half : y + half + 1, x - half : x + half + 1] / 1e4
        expected = np.roll(expected, (half, half), (0, 1))[: 2 * half + 1, : 2 * half + 1]
        np.testing.assert_allclose(seen, expected, atol=0.006 * expected.max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fwhm", [2.1, 3.0, 4.5])
def test_a_particle_stands_out_in_the_score_of_a_pixel_and_a_star_in_that_of_the_psf(shape, fwhm):
    """Law 19: each is the best filter of D for its own; S/N by the responses of D, beside the closed form."""
    psf, y, x = moffat(21, fwhm), *middle(shape)
    template = side(np.zeros(shape), moffat(25, 3.2), 1.0, SIGMA_R)

    def response(data):
        return zogy.subtract(side(data, psf, 1.0, SIGMA_N), template).difference.astype(np.float64)

    hit, star = response(pixel(shape, y, x)), response(placed(shape, psf, [(x, y, 1.0)]))
    of_hit, of_star = np.sqrt((hit**2).sum()), np.sqrt((star**2).sum())
    overlap = (hit * star).sum()
    # S/N of a unit of charge, and of light, in the score of a pixel's response and in S
    assert of_hit > 1.05 * overlap / of_star
    assert of_star > 1.05 * overlap / of_hit
    result = zogy.subtract(side(pixel(shape, y, x), psf, 1.0, SIGMA_N), template)
    assert of_star == pytest.approx(np.sqrt(result.score_flux), rel=1e-3)
    assert overlap / of_star == pytest.approx(result.score[y, x] / np.sqrt(result.score_flux), rel=1e-3)
