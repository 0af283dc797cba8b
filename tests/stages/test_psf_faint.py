"""A median of unlike exposures shows stars of every S/N with another shape; its PSF is that of S/N 300."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.numerics.psf_modes import radii
from ks4diff.stages.psf_clean import weighted_mean
from ks4diff.stages.psf_faint import LEAST_SNR, REFERENCE_SNR, faintness
from ks4diff.stages.psf_field import _as_bright, _regressed
from ks4diff.stages.psf_stars import Sample
from tests import skies

N, GAIN, SKY = 31, 1.5, 150.0  # electrons² of a sky pixel of one exposure
FWHM = 3.6
CORE = radii(N) <= 1.5 * FWHM
EXPOSURES = np.stack([skies.Seeing(fwhm=f, beta=3.5).stamp(N) for f in (2.4, 4.3, 4.1)])
EXPOSURES /= EXPOSURES.sum(axis=(1, 2), keepdims=True)
MEAN = EXPOSURES.mean(axis=0)


def shown(rng, flux, combine):
    """Return stars [k, N, N] of fluxes in electrons of one exposure, combined from three with noise."""
    light = flux[:, None, None, None] * EXPOSURES
    drawn = light + np.sqrt(SKY + light) * rng.standard_normal(light.shape)
    return combine(drawn, axis=1) / flux[:, None, None]


def flux_of(snr):
    """Return the flux whose S/N in the mean of three is ``snr``."""
    grid = np.geomspace(1e2, 1e8, 300)
    light = grid[:, None, None] * MEAN
    return np.interp(snr, np.sqrt((3 * light**2 / (SKY + light)).sum(axis=(1, 2))), grid)


def stars(seed, combine, k=240):
    """Return a sample of stars of S/N 60 to 1500."""
    rng = np.random.default_rng(seed)
    flux = flux_of(np.exp(rng.uniform(*np.log((60, 1500)), k)))
    stamps = shown(rng, flux, combine)
    inside = radii(N) <= FWHM
    return Sample(
        # as they are fitted: of one flux under the PSF
        stamps=(stamps * (MEAN[inside].sum() / stamps[:, inside].sum(axis=1))[:, None, None]).astype(
            np.float32
        ),
        known=np.ones(stamps.shape, dtype=bool),
        row=np.arange(k),
        x=rng.uniform(0, 2000, k),
        y=rng.uniform(0, 2000, k),
        flux=flux,
        sky=np.full(k, SKY / 3),
        region=np.zeros(k, dtype=np.int64),
        gain=3.0,
    )


def model_of(sample):
    start = weighted_mean(sample, MEAN, CORE)[None]
    found, _ = _regressed(sample, start, np.empty((0, len(sample.x))), CORE)
    return found[0] / found[0].sum()


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(1)
    many = [shown(rng, np.full(500, flux_of(REFERENCE_SNR)), np.median).mean(axis=0) for _ in range(12)]
    mean = np.mean(many, axis=0)
    return mean / mean.sum()


def test_the_psf_of_a_median_is_that_of_its_reference(truth):
    before, after = [], []
    for seed in range(4):
        sample = stars(seed, np.median)
        start = weighted_mean(sample, MEAN, CORE)[None]
        even = _as_bright(sample, start, np.empty((0, len(sample.x))), FWHM)
        before.append(model_of(sample) - truth)
        after.append(model_of(even) - truth)
    wrong, left = (np.mean(part, axis=0) / truth.max() for part in (before, after))
    assert np.abs(wrong).max() > 0.01
    assert np.abs(left).max() < 0.4 * np.abs(wrong).max()


def test_a_mean_and_a_lone_exposure_have_one_shape():
    for seed in range(6):
        for combine in (np.mean, lambda drawn, axis: drawn[:, 1]):
            sample = stars(seed, combine)
            model = weighted_mean(sample, MEAN, CORE)[None]
            assert not len(faintness(sample, model, np.empty((0, len(sample.x))), CORE))


def test_regions_are_asked_one_by_one():
    median, mean = stars(7, np.median), stars(8, np.mean)
    both = Sample(
        gain=3.0,
        **{
            name: np.concatenate([getattr(median, name), getattr(mean, name)])
            for name in ("stamps", "known", "row", "x", "y", "flux", "sky")
        },
        region=np.repeat([0, 5], len(mean.x)),
    )
    model = np.stack(
        [weighted_mean(both, MEAN, CORE), *(weighted_mean(s, MEAN, CORE) for s in (median, mean))]
    )
    model[1:] -= model[0]
    found = faintness(both, model, (both.region == np.array([[0], [5]])) * 1.0, CORE)
    assert found.shape == (1, len(both.x))
    assert (found[0, both.region == 5] == 0).all()
    bright = median.flux.argmax()
    assert found[0, bright] == pytest.approx(REFERENCE_SNR / 1500 - 1, abs=0.05)
    assert found.max() == pytest.approx(REFERENCE_SNR / LEAST_SNR - 1)


def test_stars_of_one_brightness_tell_nothing():
    sample = stars(9, np.median)
    sample = replace(sample, flux=np.full(len(sample.x), flux_of(60.0)))
    model = weighted_mean(sample, MEAN, CORE)[None]
    assert not len(faintness(sample, model, np.empty((0, len(sample.x))), CORE))
