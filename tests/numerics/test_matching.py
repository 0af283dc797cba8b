"""The flux scale and background that make two images equal are found, transients or not."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics import polynomial
from ks4diff.numerics.matching import convolve, fit_scale
from tests import oracles
from tests.strategies import gaussian, moffat


@pytest.mark.parametrize("shape", [(40, 40), (41, 57), (30, 64)])
def test_convolution_against_shift_and_add(shape):
    rng = np.random.default_rng(1)
    image, stamp = rng.normal(size=shape), rng.normal(size=(9, 9))
    np.testing.assert_allclose(convolve(image, stamp), oracles.convolve(image, stamp), atol=1e-12)


def scene(rng, shape=(180, 221)):
    """Return (template, science, weight, background): stars of 4 px, scale 0.73, noise 5."""
    light = np.zeros(shape)
    n = 150
    light[rng.integers(0, shape[0], n), rng.integers(0, shape[1], n)] = rng.pareto(1.2, n) * 2000
    template = convolve(light, gaussian(25, 4.0))
    v, u = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    background = 20 + 7 * u - 4 * v + 3 * u * v
    science = 0.73 * template + background + rng.normal(0, 5, shape)
    return template, science, np.full(shape, 1 / 25), background


class TestFitScale:
    def test_scale_error_and_background(self):
        pulls = []
        for seed in range(30):
            template, science, weight, background = scene(np.random.default_rng(seed))
            scale, error, found = fit_scale(science, template, weight, degree=2)
            pulls.append((scale - 0.73) / error)
            assert np.abs(found - background).max() < 1.0
        assert abs(np.mean(pulls)) < 4 / np.sqrt(30)
        assert np.std(pulls) == pytest.approx(1.0, abs=0.4)

    def test_transients_and_masked_pixels_do_not_count(self):
        template, science, weight, _ = scene(np.random.default_rng(50))
        clean, error, _ = fit_scale(science, template, weight, degree=2)
        transient = np.pad(3e5 * moffat(25, 4.0), ((100, 55), (90, 106)))
        weight[20:40, 30:60] = 0
        spoiled = np.where(weight > 0, science + transient, np.nan)
        scale, _, _ = fit_scale(spoiled, template, weight, degree=2)
        assert scale == pytest.approx(clean, abs=4 * error)

    def test_equal_noiseless_images(self):
        template, _, weight, _ = scene(np.random.default_rng(51))
        scale, error, background = fit_scale(template, template, weight, degree=1)
        assert scale == pytest.approx(1.0, abs=1e-9)
        assert error < 1e-9
        assert np.abs(background).max() < 1e-6

    def test_an_empty_template_is_refused(self):
        with pytest.raises(np.linalg.LinAlgError):
            fit_scale(np.ones((20, 20)), np.zeros((20, 20)), np.ones((20, 20)), degree=0)


class TestPolynomial:
    def test_the_terms_are_counted_and_ordered(self):
        assert polynomial.exponents(2) == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
        assert len(polynomial.exponents(5)) == 21

    @pytest.mark.parametrize("degree", [0, 1, 3])
    def test_a_polynomial_is_fitted_exactly(self, degree):
        rng = np.random.default_rng(2)
        u, v = rng.uniform(-1, 1, (2, 60))
        coefficients = rng.normal(size=(2, len(polynomial.exponents(degree))))
        values = polynomial.evaluate(coefficients, u, v, degree)
        direct = sum(
            c * u**i * v**j for c, (i, j) in zip(coefficients[1], polynomial.exponents(degree), strict=True)
        )
        np.testing.assert_allclose(values[1], direct, atol=1e-12)
        np.testing.assert_allclose(polynomial.fit(u, v, values, degree), coefficients, atol=1e-11)
