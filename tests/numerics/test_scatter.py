"""Scatter over an image and around places as numpy has it; that beyond noise comes back."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.scatter import excess_scatter, masked_std, ring_scatter


@pytest.mark.parametrize("put", [0.0, 0.5, 3.0])
def test_what_was_put_in_comes_back(put):
    rng = np.random.default_rng(3)
    noise = rng.uniform(0.5, 2.0, 20_000)
    residual = np.hypot(noise, put) * rng.standard_normal(20_000)
    assert excess_scatter(residual, noise) == pytest.approx(put, abs=0.12)
    pull = residual / np.hypot(noise, excess_scatter(residual, noise))
    assert np.median(pull**2) == pytest.approx(0.455, abs=0.02)


def test_outliers_do_not_set_it():
    rng = np.random.default_rng(4)
    noise = np.full(3000, 1.0)
    residual = np.hypot(1.0, 2.0) * rng.standard_normal(3000)
    residual[::10] *= 1000
    assert excess_scatter(residual, noise) == pytest.approx(2.0, rel=0.25)


def blotched(shape=(90, 71)):
    rng = np.random.default_rng(5)
    values = rng.normal(3, 2, shape).astype(np.float32)
    values[rng.random(shape) < 0.02] = np.nan
    return values, np.where(rng.random(shape) < 0.3, 8, 0).astype(np.uint16)


def test_the_masked_standard_deviation_is_that_of_what_is_left():
    values, flags = blotched()
    values = np.nan_to_num(values)
    sky = np.random.default_rng(6).random(values.shape) < 0.5
    assert masked_std(values, flags) == pytest.approx(np.std(values[flags == 0], dtype=float), rel=1e-9)
    left = values[(flags == 0) & sky]
    assert masked_std(values, flags, sky) == pytest.approx(np.std(left, dtype=float), rel=1e-9)
    assert np.isnan(masked_std(values, np.ones_like(flags)))


def test_a_ring_s_scatter_is_the_median_of_what_is_known_there():
    values, flags = blotched()
    flags[:25, :30] = 1
    places = np.array([(20, 10), (40, 40), (35, 60), (2, 88), (66, 45)]).T
    y, x = np.mgrid[:90, :71]
    found = ring_scatter(values, flags, places, inner=2.5, outer=8.5)
    quarter = ring_scatter(values, flags, places, inner=2.5, outer=8.5, quantile=0.75)
    for (px, py), scatter, other in zip(places.T, found, quarter, strict=True):
        away = np.hypot(x - px, y - py)
        known = (away > 2.5) & (away <= 8.5) & (flags == 0) & np.isfinite(values)
        if 2 * known.sum() < 208:  # pixels of a whole ring
            assert np.isnan(scatter)
        else:
            assert scatter == pytest.approx(np.median(np.abs(values[known])) / 0.6744898, rel=1e-6)
            assert other == pytest.approx(np.quantile(np.abs(values[known]), 0.75) / 1.1503494, rel=1e-6)
    assert np.isnan(found).tolist() == [True, False, False, True, False]
