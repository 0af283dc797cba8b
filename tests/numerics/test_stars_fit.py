"""Stars fitted together come out where and as bright as they were put in."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.stars_fit import draw_stars, fit_stars, star_stamps
from tests import oracles
from tests.strategies import gaussian, moffat

PSF = moffat(21, 3.2)
CORE = 4


def blends(rng, shape, n):
    """Return stars [3, n], brightest first, at least 2.5 px apart, a few of them partly outside."""
    kept: list[tuple[float, float]] = []
    while len(kept) < n:
        x, y = rng.uniform(-2, shape[1] + 1), rng.uniform(-2, shape[0] + 1)
        if all(np.hypot(x - u, y - v) > 2.5 for u, v in kept):
            kept.append((x, y))
    return np.stack([*np.array(kept).T, np.sort(rng.uniform(500, 20000, n))[::-1]])


def fit(image, stars, *, good=None, variance=100.0, sweeps=60):
    good = np.ones(image.shape, dtype=bool) if good is None else good
    variance = np.full(image.shape, variance, dtype=np.float32)
    return fit_stars(image.astype(np.float32), good, variance, PSF, stars, core=CORE, sweeps=sweeps)


class TestDrawing:
    def test_against_the_direct_sum(self):
        stars = np.array([[12.3, 3.9, 30.5, -1.7], [9.8, 20.0, 25.5, 14.2], [100.0, 50.0, 75.0, 60.0]])
        expected = oracles.draw_stars((30, 37), PSF, stars)
        np.testing.assert_allclose(draw_stars((30, 37), PSF, stars), expected, atol=2e-4 * expected.max())

    def test_flux_and_place(self):
        image = draw_stars((51, 60), gaussian(25, 3.0), np.array([[27.3], [24.6], [1000.0]]))
        expected = np.zeros((51, 60))
        expected[25 - 12 : 25 + 13, 27 - 12 : 27 + 13] = 1000 * gaussian(25, 3.0, dx=0.3, dy=-0.4)
        assert image.sum() == pytest.approx(1000.0, rel=1e-3)
        assert np.abs(image - expected).max() < 0.0065 * image.max()

    def test_stars_far_outside_draw_nothing(self):
        stars = np.array([[-500.0, 900.0, 20.0], [10.0, 10.0, 1e9], [1.0, 1.0, 1.0]])
        assert not draw_stars((30, 40), PSF, stars).any()

    def test_no_star(self):
        assert not draw_stars((9, 9), PSF, np.empty((3, 0))).any()


class TestFit:
    def test_noiseless_blends_are_recovered(self):
        rng = np.random.default_rng(4)
        truth = blends(rng, (80, 97), 60)
        image = draw_stars((80, 97), PSF, truth)
        start = truth + np.array([[0.2], [-0.2], [0.0]]) * rng.normal(size=(1, 60))
        fitted, residual = fit(image, start, variance=1.0)
        inside = (truth[0] > 0) & (truth[1] > 0) & (truth[0] < 96) & (truth[1] < 79)
        np.testing.assert_allclose(fitted[:2, inside], truth[:2, inside], atol=0.005)
        np.testing.assert_allclose(fitted[2, inside], truth[2, inside], rtol=0.005)
        assert np.abs(residual[3:-3, 3:-3]).max() < 2e-3 * image.max()

    def test_residual_is_the_image_less_the_stars(self):
        rng = np.random.default_rng(5)
        truth = blends(rng, (60, 71), 25)
        image = (draw_stars((60, 71), PSF, truth) + rng.normal(0, 10, (60, 71))).astype(np.float32)
        fitted, residual = fit(image, truth, sweeps=4)
        np.testing.assert_allclose(
            residual, image - draw_stars((60, 71), PSF, fitted), atol=1e-6 * image.max()
        )

    def test_fluxes_of_one_sweep_settle_on_dense_least_squares(self):
        """With stars farther apart than the fitted disc, each alone: one sweep is the weighted fit there."""
        positions = np.array([[12.2, 30.7, 47.1], [15.4, 18.3, 14.8]])
        rng = np.random.default_rng(6)
        image = draw_stars((34, 60), PSF, np.vstack([positions, [[3000.0, 900.0, 5000.0]]]))
        image = (image + rng.normal(0, 10, image.shape)).astype(np.float32)
        good = rng.random(image.shape) > 0.05
        variance = rng.uniform(60, 140, image.shape).astype(np.float32)
        start = np.vstack([positions, [[3000.0, 900.0, 5000.0]]])
        fitted, _ = fit_stars(image, good, variance, PSF, start, core=CORE, sweeps=1)
        y, x = np.mgrid[:34, :60]
        for k, (sx, sy) in enumerate(positions.T):
            disc = (x - np.rint(sx)) ** 2 + (y - np.rint(sy)) ** 2 <= CORE**2
            others = np.delete(start, k, axis=1)
            # Gauss-Seidel: those before it are already refitted
            others[2, :k] = fitted[2, :k]
            alone = image - oracles.draw_stars(image.shape, PSF, others)
            expected = oracles.fit_fluxes(
                alone, good & disc, variance.astype(float), PSF, positions[:, k : k + 1]
            )
            assert fitted[2, k] == pytest.approx(expected[0], rel=1e-4)

    def test_pulls_are_unit(self):
        """Fluxes and positions of 300 isolated stars of S/N 56 scatter as least squares predicts."""
        rng = np.random.default_rng(7)
        shape, noise = (620, 420), 10.0
        y, x = (a.ravel().astype(float) for a in np.mgrid[20:610:30, 20:410:26])
        truth = np.stack([x, y, np.full(x.size, 3000.0)])
        truth[:2] += rng.uniform(-0.5, 0.5, (2, x.size))
        image = draw_stars(shape, PSF, truth) + rng.normal(0, noise, shape)
        fitted, _ = fit(image, truth, variance=noise**2, sweeps=6)
        v, u = np.mgrid[-10:11, -10:11]
        disc = u**2 + v**2 <= CORE**2
        fine = [
            draw_stars((21, 21), PSF, np.array([[10 + dx], [10 + dy], [3000.0]]))
            for dx, dy in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05))
        ]
        design = np.stack([PSF[disc], (fine[0] - fine[1])[disc] / 0.1, (fine[2] - fine[3])[disc] / 0.1])
        error = noise * np.sqrt(np.diag(np.linalg.inv(design @ design.T)))
        pull = (fitted - truth)[[2, 0, 1]] / error[:, None]
        assert np.abs(pull.mean(axis=1)).max() < 4 / np.sqrt(x.size)
        np.testing.assert_allclose(pull.std(axis=1), 1.0, atol=0.15)

    def test_a_saturated_star_is_fitted_on_its_wings(self):
        truth = np.array([[30.2], [25.7], [50000.0]])
        image = draw_stars((52, 61), PSF, truth)
        good = image < 1500
        fitted, _ = fit(np.where(good, image, 1500.0), truth * 1.001, good=good)
        assert not good[26, 30]
        np.testing.assert_allclose(fitted, truth, rtol=0.01)

    def test_a_star_with_no_light_ends_at_zero(self):
        fitted, residual = fit(np.full((40, 40), -5.0), np.array([[20.0], [20.0], [100.0]]))
        assert fitted[2, 0] == 0
        np.testing.assert_allclose(residual, -5.0, rtol=1e-12)

    def test_a_star_off_the_image_or_all_masked_stays(self):
        stars = np.array([[-40.0, 20.0], [10.0, 20.0], [500.0, 300.0]])
        good = np.ones((40, 40), dtype=bool)
        good[10:31, 10:31] = False
        fitted, _ = fit(np.zeros((40, 40)), stars, good=good)
        np.testing.assert_array_equal(fitted, stars)

    @pytest.mark.parametrize("core", [0, 10, 30])
    def test_a_core_outside_the_psf_is_refused(self, core):
        ones = np.ones((30, 30), dtype=np.float32)
        with pytest.raises(ValueError, match=r"core must be in 1 \.\. 9"):
            fit_stars(ones, ones > 0, ones, PSF, np.array([[9.0], [9.0], [1.0]]), core=core, sweeps=1)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_stars_must_be_finite(self, value):
        stars = np.array([[9.0, 4.0], [9.0, value], [1.0, 1.0]])
        with pytest.raises(ValueError, match="1 stars are not finite"):
            fit(np.ones((30, 30)), stars)


class TestStamps:
    def test_stamps_are_the_psf_of_each_star_alone(self):
        rng = np.random.default_rng(9)
        stars = blends(rng, (70, 80), 40)
        inside = (stars[0] > 16) & (stars[1] > 16) & (stars[0] < 63) & (stars[1] < 53)
        image = draw_stars((70, 80), PSF, stars)
        good = np.ones(image.shape, dtype=bool)
        stamps, weights = star_stamps(
            image - draw_stars(image.shape, PSF, stars), good, PSF, stars[:, inside]
        )
        np.testing.assert_allclose(stamps, np.broadcast_to(PSF, stamps.shape), atol=1e-9)
        assert (weights == 1).all()

    def test_a_wrong_psf_is_put_right(self):
        """With stars that are really rounder than the model, the stamps show what the stars are."""
        real = gaussian(21, 4.0)
        star = np.array([[40.4], [33.7], [8000.0]])
        image = draw_stars((70, 80), real, star)
        residual = image - draw_stars(image.shape, PSF, star)
        stamps, _ = star_stamps(residual, np.ones(image.shape, dtype=bool), PSF, star)
        np.testing.assert_allclose(stamps[0], real, atol=0.015 * real.max())

    def test_masked_pixels_and_those_beyond_the_border_weigh_nothing(self):
        star = np.array([[4.0, 40.0], [30.0, 30.0], [100.0, 100.0]])
        good = np.ones((60, 70), dtype=bool)
        good[33, 42] = False
        _, weights = star_stamps(np.zeros((60, 70)), good, PSF, star)
        assert not weights[0, :, : 10 - 4].any()
        assert weights[0, 10, 14] == 1
        assert weights[1, 13, 12] == 0
        assert weights[1, 10, 10] == 1
