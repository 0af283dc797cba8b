"""Laws of the proper difference, then its twin: every figure that a report states rests on these."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ks4diff.numerics import zogy
from ks4diff.numerics.lanczos import noise_covariance
from ks4diff.numerics.noise import bilinear_covariance, power_spectrum
from tests import oracles
from tests.strategies import SHAPES, gaussian, lopsided, moffat, resampled_noise, turned_nodes

WIDE = gaussian(29, 4.0, axis_ratio=0.8, angle=0.5)
SHARP = gaussian(21, 3.0)
PSFS = {
    "gaussian": (WIDE / WIDE.sum(), SHARP / SHARP.sum()),
    "lopsided": (lopsided(moffat(25, 2.8)), lopsided(moffat(31, 4.0), (0, 1))),
}
SIGMA_N, SIGMA_R, FLUX_N, FLUX_R = 3.0, 2.0, 1.0, 1.6


def side(data, psf, flux, sigma, correlation=None, variance=None):
    variance = np.full(data.shape, sigma**2) if variance is None else variance
    return zogy.Side(
        data.astype(np.float32), variance.astype(np.float32), psf, flux, float(sigma) ** 2, correlation
    )


def white_pair(shape, psfs, rng):
    noise = rng.normal(0, SIGMA_N, shape), rng.normal(0, SIGMA_R, shape)
    return side(noise[0], psfs[0], FLUX_N, SIGMA_N), side(noise[1], psfs[1], FLUX_R, SIGMA_R)


def coloured_pair(shape, psfs, rng, colour):
    """Return a white science image and a template whose noise was really resampled."""
    if colour == "lanczos":
        nodes = turned_nodes(shape)
        data, _ = resampled_noise(rng, shape, nodes, SIGMA_R)
        covariance = noise_covariance(nodes)
    else:
        u, v = 0.4, 0.3
        data = rng.normal(0, SIGMA_R, (shape[0] + 1, shape[1] + 1))
        data = (1 - v) * data[:-1] + v * data[1:]
        data = (1 - u) * data[:, :-1] + u * data[:, 1:]
        covariance = bilinear_covariance(u * (1 - u), v * (1 - v))
    one_pixel = covariance[len(covariance) // 2, len(covariance) // 2]
    grid = zogy.grid_shape(shape, max(len(psf) for psf in psfs))
    correlation = oracles.relative_power(power_spectrum(covariance / one_pixel, grid), grid)
    template = side(data, psfs[1], FLUX_R, SIGMA_R * np.sqrt(one_pixel), correlation)
    return side(rng.normal(0, SIGMA_N, shape), psfs[0], FLUX_N, SIGMA_N), template


def noise_pair(shape, psfs, rng, colour):
    return white_pair(shape, psfs, rng) if colour == "white" else coloured_pair(shape, psfs, rng, colour)


def moved(image, dy, dx):
    return np.roll(image, (dy, dx), axis=(0, 1))


def placed(shape, psf, positions):
    """Return the sum of unit stars at whole pixels (x, y, flux)."""
    image = np.zeros(shape)
    half = len(psf) // 2
    for x, y, flux in positions:
        image[y - half : y + half + 1, x - half : x + half + 1] += flux * psf
    return image


def with_data(one, data):
    return one._replace(data=data.astype(np.float32))


@pytest.mark.parametrize("psfs", PSFS.values(), ids=PSFS)
@pytest.mark.parametrize("colour", ["white", "bilinear", "lanczos"])
class TestPureNoise:
    """Over 8 pairs: the variance of D to 0.2 %, the std of S (correlated over a PSF) to some 0.5 %."""

    SHAPE = (301, 400)

    @pytest.fixture
    def results(self, psfs, colour):
        rng = np.random.default_rng(11)
        return [zogy.subtract(*noise_pair(self.SHAPE, psfs, rng, colour)) for _ in range(8)]

    def test_difference_is_white_with_unit_variance(self, results):
        inner = np.stack([r.difference[40:-40, 40:-40] for r in results]).astype(np.float64)
        assert abs(inner.mean()) < 0.05
        assert inner.var() == pytest.approx(1.0, abs=0.01)
        lags = [(dy, dx) for dy in range(4) for dx in range(-3, 4) if (dy, dx) > (0, 0)]
        for dy, dx in lags:
            product = (inner * np.roll(inner, (-dy, -dx), axis=(1, 2)))[:, :-4, 4:-4]
            assert abs(product.mean()) < 0.01, (dy, dx)

    def test_score_is_unit_normal_to_the_border(self, results):
        corrected = np.stack([r.score / np.sqrt(r.variance) for r in results]).astype(np.float64)
        assert corrected.std() == pytest.approx(1.0, abs=0.01)
        assert corrected[:, 40:-40, 40:-40].std() == pytest.approx(1.0, abs=0.01)
        border = np.concatenate([corrected[:, :3].ravel(), corrected[:, :, -3:].ravel()])
        assert border.std() == pytest.approx(1.0, abs=0.06)
        above, below = (corrected > 2.5).sum(), (corrected < -2.5).sum()
        assert above / below == pytest.approx(1.0, abs=0.25)
        assert (above + below) / corrected.size == pytest.approx(0.01242, rel=0.15)

    def test_variance_is_the_flux_of_the_score(self, results):
        inner = results[0].variance[60:-60, 60:-60]
        np.testing.assert_allclose(inner, results[0].score_flux, rtol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("psfs", PSFS.values(), ids=PSFS)
class TestIdentities:
    @pytest.fixture
    def pair(self, shape, psfs):
        return white_pair(shape, psfs, np.random.default_rng(2))

    def test_psf_sums_to_one_and_is_centred(self, pair):
        psf = zogy.subtract(*pair).psf
        assert psf.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-5)
        middle = len(psf) // 2
        assert np.unravel_index(psf.argmax(), psf.shape) == (middle, middle)

    def test_score_flux_is_that_of_the_difference(self, pair):
        result = zogy.subtract(*pair)
        total = (result.psf.astype(np.float64) ** 2).sum()
        assert result.score_flux == pytest.approx(result.flux**2 * total, rel=1e-4)
        expected = FLUX_N * FLUX_R / np.hypot(SIGMA_N * FLUX_R, SIGMA_R * FLUX_N)
        assert result.flux == pytest.approx(expected, rel=1e-5)

    def test_score_is_the_matched_filter_of_the_difference(self, pair):
        result = zogy.subtract(*pair)
        filtered = result.flux * oracles.convolve(
            result.difference.astype(float), result.psf[::-1, ::-1].astype(float)
        )
        inner = slice(36, -36)
        np.testing.assert_allclose(
            result.score[inner, inner], filtered[inner, inner], atol=2e-3 * result.score.std()
        )

    def test_swapping_the_images_turns_the_sign(self, pair):
        one, other = zogy.subtract(*pair), zogy.subtract(*pair[::-1])
        np.testing.assert_allclose(one.difference, -other.difference, atol=2e-5)
        np.testing.assert_allclose(one.score, -other.score, atol=2e-5 * one.score.std())
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)
        assert one.score_flux == pytest.approx(other.score_flux, rel=1e-6)

    def test_a_change_of_unit_changes_nothing(self, pair):
        science, template = pair
        unit = 7.3
        scaled = science._replace(
            data=science.data * np.float32(unit),
            variance=science.variance * np.float32(unit**2),
            flux=unit * science.flux,
            sigma2=unit**2 * science.sigma2,
        )
        one, other = zogy.subtract(science, template), zogy.subtract(scaled, template)
        np.testing.assert_allclose(one.difference, other.difference, atol=2e-5)
        np.testing.assert_allclose(one.score, other.score, atol=2e-5 * one.score.std())
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)

    def test_both_images_moved_move_the_outputs(self, pair, shape, psfs):
        sources = placed(shape, psfs[0], [(40, 37, 900.0), (51, 42, -300.0)])
        science = with_data(pair[0], sources)
        template = with_data(pair[1], np.zeros(shape))
        one = zogy.subtract(science, template)
        other = zogy.subtract(with_data(science, moved(sources, 5, -3)), template)
        np.testing.assert_allclose(moved(one.score, 5, -3), other.score, atol=1e-4 * one.score.max())

    def test_the_peak_of_the_score_is_where_the_source_is(self, pair, shape, psfs):
        for x, y in ((38, 51), (44, 40)):
            science = with_data(pair[0], placed(shape, psfs[0], [(x, y, 1000.0)]))
            result = zogy.subtract(science, with_data(pair[1], np.zeros(shape)))
            assert np.unravel_index(result.score.argmax(), shape) == (y, x)
            assert result.score[y, x] / result.score_flux == pytest.approx(1000.0, rel=1e-3)

    @pytest.fixture
    def starry(self, pair, shape, psfs):
        stars = [(40, 45, 4000.0), (52, 38, 900.0)]
        return [
            one._replace(
                data=(one.data + placed(shape, psf, stars) * one.flux).astype(np.float32),
                variance=(one.variance + placed(shape, psf, stars) * one.flux).astype(np.float32),
            )
            for one, psf in zip(pair, psfs, strict=True)
        ]

    def twin(self, pair, shape, **options):
        grid = zogy.grid_shape(shape, max(len(one.psf) for one in pair))
        return oracles.zogy(*pair, grid, sigma=(0.1, 0.07), **options)

    def test_against_the_plain_equations(self, starry, shape):
        result = zogy.subtract(*starry, sigma_x=0.1, sigma_y=0.07)
        twin = self.twin(starry, shape, lift=zogy.PSF_LIFT)
        rows, columns = shape
        score = twin["score"][:rows, :columns]
        assert result.flux == pytest.approx(twin["flux"], rel=1e-5)
        assert result.score_flux == pytest.approx(twin["score_flux"], rel=1e-5)
        np.testing.assert_allclose(result.score, score, atol=1e-4 * np.abs(score).max())
        np.testing.assert_allclose(result.variance, twin["variance"], rtol=1e-3)
        np.testing.assert_allclose(result.difference, twin["difference"][:rows, :columns], atol=1e-3)
        half = len(result.psf) // 2
        psf = np.roll(twin["psf"], (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]
        np.testing.assert_allclose(result.psf, psf, atol=1e-6)

    def test_what_the_lift_changes(self, starry, shape):
        result, twin = zogy.subtract(*starry, sigma_x=0.1, sigma_y=0.07), self.twin(starry, shape)
        assert result.score_flux == pytest.approx(twin["score_flux"], rel=2e-4)
        change = result.score - twin["score"][: shape[0], : shape[1]]
        assert change.std() < 0.015 * np.sqrt(twin["score_flux"])
        np.testing.assert_allclose(result.variance, twin["variance"], rtol=0.02)


class TestSources:
    PSFS = PSFS["gaussian"]

    @pytest.mark.parametrize("colour", ["white", "lanczos"])
    def test_fluxes_are_unbiased_with_unit_pulls(self, colour):
        """In 10 pairs, 70 sources each of S/N 13.7 with their own Poisson noise."""
        shape, flux = (300, 420), 420.0
        rng = np.random.default_rng(5)
        positions = [(x, y, flux) for y in range(30, 275, 36) for x in range(30, 395, 40)]
        x, y, _ = np.array(positions, dtype=int).T
        signal = placed(shape, self.PSFS[0], positions)
        alphas, pulls = [], []
        for _ in range(10):
            science, template = noise_pair(shape, self.PSFS, rng, colour)
            shown = rng.poisson(np.maximum(signal, 0)) + science.data
            science = with_data(science, shown)._replace(
                variance=(science.variance + signal).astype(np.float32)
            )
            result = zogy.subtract(science, template)
            alpha = result.score[y, x] / result.score_flux
            alphas.append(alpha)
            pulls.append((alpha - flux) * result.score_flux / np.sqrt(result.variance[y, x]))
        n = np.size(alphas)
        assert np.mean(alphas) == pytest.approx(flux, rel=0.01)
        assert abs(np.mean(pulls)) < 4 / np.sqrt(n)
        assert np.std(pulls) == pytest.approx(1.0, abs=4 / np.sqrt(2 * n))

    def test_astrometric_noise_covers_a_known_shift(self):
        """A static star moved by (0.25, 0.15) px: 450 sigma without the term, 3.6 with it."""
        shape = (120, 131)
        psf = gaussian(25, 3.5)
        shifted = gaussian(25, 3.5, dx=0.25, dy=0.15)
        rng = np.random.default_rng(7)
        stars = [(60, 50, 40000.0), (40, 80, 15000.0)]
        science = side(rng.normal(0, 1, shape) + placed(shape, shifted, stars), psf, 1.0, 1.0)
        template = side(rng.normal(0, 1, shape) + placed(shape, psf, stars), psf, 1.0, 1.0)

        def worst(**sigma):
            result = zogy.subtract(science, template, **sigma)
            return np.abs(result.score / np.sqrt(result.variance))[40:90, 30:75].max()

        assert worst() > 400
        assert worst(sigma_x=0.25, sigma_y=0.15) < 5
        assert worst(sigma_x=0.25) > worst(sigma_x=0.25, sigma_y=0.15)

    def test_no_astrometric_noise_where_there_is_no_star(self):
        shape = (90, 101)
        pair = [
            with_data(one, np.zeros(shape)) for one in white_pair(shape, self.PSFS, np.random.default_rng(8))
        ]
        still, jittered = zogy.subtract(*pair), zogy.subtract(*pair, sigma_x=0.5, sigma_y=0.5)
        np.testing.assert_array_equal(still.variance, jittered.variance)

    def test_identical_noiseless_images_leave_nothing(self):
        shape = (97, 110)
        psf = self.PSFS[0]
        one = side(placed(shape, psf, [(40, 50, 1e5), (60, 44, 3e4)]), psf, 1.0, 2.0)
        result = zogy.subtract(one, one)
        assert not result.difference.any()
        assert not result.score.any()

    def test_equal_psfs_give_the_plain_difference(self):
        """Law 12: with P_n = P_r, D is (N / F_n - R / F_r) F_D."""
        shape, psf = (97, 110), gaussian(21, 2.0) / gaussian(21, 2.0).sum()
        science, template = white_pair(shape, (psf, psf), np.random.default_rng(12))
        result = zogy.subtract(science, template)
        plain = (science.data / FLUX_N - template.data / FLUX_R) * result.flux
        inner = slice(30, -30)
        np.testing.assert_allclose(result.difference[inner, inner], plain[inner, inner], atol=2e-3)

    def test_a_convolved_template_gives_alard_and_luptons_difference(self):
        """Law 15: with P_n = K * P_r and F = 1, D / F_D is (N - K * R) whitened (DMTN-021, eqs 1 and 2)."""
        shape, sharp, kernel = (128, 131), gaussian(17, 2.0), gaussian(17, 2.6)
        sharp, kernel = sharp / sharp.sum(), kernel / kernel.sum()
        wide = oracles.convolve(np.pad(sharp, 8), kernel)
        rng = np.random.default_rng(13)
        noise = rng.normal(0, SIGMA_N, shape), rng.normal(0, SIGMA_R, shape)
        stars = [(50, 60, 3000.0), (77, 70, 900.0)]
        science = side(noise[0] + placed(shape, wide, stars), wide, 1.0, SIGMA_N)
        template = side(noise[1] + placed(shape, sharp, stars), sharp, 1.0, SIGMA_R)
        result = zogy.subtract(science, template)
        grid = zogy.grid_shape(shape, len(wide))
        k = np.fft.fft2(oracles.centred(kernel, grid))
        n, r = (np.fft.fft2(one.data.astype(float), grid) for one in (science, template))
        whiten = np.sqrt((SIGMA_N**2 + SIGMA_R**2) / (SIGMA_N**2 + SIGMA_R**2 * np.abs(k) ** 2))
        expected = np.fft.ifft2((n - k * r) * whiten).real[: shape[0], : shape[1]]
        inner = slice(40, -40)
        found = (result.difference / result.flux)[inner, inner]
        assert 1 / result.flux == pytest.approx(np.hypot(SIGMA_N, SIGMA_R), rel=1e-5)
        np.testing.assert_allclose(found, expected[inner, inner], atol=0.01 * found.std())

    def test_static_stars_leave_nothing_with_unequal_psfs(self):
        shape = (97, 110)
        stars = [(40, 50, 1e5), (60, 44, 3e4)]
        science = side(FLUX_N * placed(shape, self.PSFS[0], stars), self.PSFS[0], FLUX_N, SIGMA_N)
        template = side(FLUX_R * placed(shape, self.PSFS[1], stars), self.PSFS[1], FLUX_R, SIGMA_R)
        result = zogy.subtract(science, template)
        alone = zogy.subtract(science, with_data(template, np.zeros(shape)))
        # the PSF lift's price: see `zogy._lifted`
        assert np.abs(result.difference).max() < 0.006 * alone.difference.max()
        assert np.abs(result.score).max() < 5e-5 * alone.score.max()

    def test_an_infinitely_deep_template_gives_the_matched_filter(self):
        """With a much sharper PSF in a noiseless template: S = F_n N (x) P_n / s_n², P_D = P_n."""
        shape = (110, 97)
        rng = np.random.default_rng(9)
        science = side(rng.normal(0, SIGMA_N, shape), self.PSFS[0], FLUX_N, SIGMA_N)
        sharp = gaussian(21, 1.5)
        template = side(np.zeros(shape), sharp / sharp.sum(), FLUX_R, 1e-3)
        result = zogy.subtract(science, template)
        expected = oracles.convolve(science.data.astype(float), self.PSFS[0][::-1, ::-1]) / SIGMA_N**2
        np.testing.assert_allclose(result.score, expected, atol=1e-3 * expected.std())
        low = (len(result.psf) - len(self.PSFS[0])) // 2
        np.testing.assert_allclose(result.psf[low:-low, low:-low], self.PSFS[0], atol=1e-6)


class TestEdges:
    def test_inputs_stay_as_they_were_and_threads_agree(self):
        pairs = [
            coloured_pair((90, 71), PSFS["lopsided"], np.random.default_rng(k), "lanczos") for k in range(4)
        ]
        before = [
            [array.copy() for array in (one.data, one.variance, one.psf)] for pair in pairs for one in pair
        ]
        alone = [zogy.subtract(*pair, sigma_x=0.1, sigma_y=0.1) for pair in pairs]
        with ThreadPoolExecutor(4) as pool:
            together = list(
                pool.map(lambda k: zogy.subtract(*pairs[k % 4], sigma_x=0.1, sigma_y=0.1), range(16))
            )
        for k, result in enumerate(together):
            for one, other in zip(result, alone[k % 4], strict=True):
                np.testing.assert_array_equal(one, other)
        after = [[one.data, one.variance, one.psf] for pair in pairs for one in pair]
        for old, new in zip(before, after, strict=True):
            for one, other in zip(old, new, strict=True):
                np.testing.assert_array_equal(one, other)

    def test_a_hole_without_noise_has_no_variance(self):
        shape = (120, 111)
        science, template = white_pair(shape, PSFS["gaussian"], np.random.default_rng(3))
        hole = np.zeros(shape, dtype=bool)
        hole[30:90, 30:80] = True
        emptied = [
            one._replace(data=np.where(hole, 0, one.data), variance=np.where(hole, 0, one.variance))
            for one in (science, template)
        ]
        result = zogy.subtract(*emptied)
        assert (result.variance >= 0).all()
        assert result.variance[60, 55] < 1e-3 * result.score_flux
        assert result.variance[5, 100] > 0.3 * result.score_flux

    def test_an_even_psf_is_refused(self):
        science, template = white_pair((60, 60), PSFS["gaussian"], np.random.default_rng(3))
        with pytest.raises(ValueError, match="square and odd"):
            zogy.subtract(science._replace(psf=np.ones((20, 20)) / 400), template)
