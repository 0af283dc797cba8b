"""A kept difference: what few bits leave of it, and fluxes measured in it at positions known beforehand."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy import ndimage

from ks4diff.io.kept import KEPT, open_kept, prune_kept, write_kept
from ks4diff.products.difference import Difference
from ks4diff.products.errors import InputError
from ks4diff.products.image import PixelFlag
from ks4diff.products.psf import Psf
from ks4diff.stages.keep import ERROR_STEP, REACH_PIX, KeepConfig, flux_at, kept_planes, typical_error
from tests import skies

SHAPE = (610, 735)
SIGMA = 4.0
TILT = 0.3  # noise grows by this from left to right


def difference(seed, sources=(), *, fwhm=3.1, noise=True):
    """White noise, stronger to the right, and point sources (x, y, flux), through the matched filter."""
    rng = np.random.default_rng(seed)
    seeing = skies.Seeing(fwhm=fwhm, beta=3.0, ratio=0.85, angle_deg=30)
    psf = seeing.stamp(31)
    psf /= psf.sum()
    sigma = SIGMA * (1 + TILT * np.arange(SHAPE[1]) / SHAPE[1])[None, :] * np.ones(SHAPE)
    image = rng.normal(0, 1, SHAPE) * sigma * noise
    for x, y, flux in sources:
        column, row = round(x), round(y)
        stamp = seeing.stamp(31, x - column, y - row)
        image[row - 15 : row + 16, column - 15 : column + 16] += flux * stamp / seeing.stamp(31).sum()
    matched = ndimage.correlate(image, psf, mode="constant") / (psf**2).sum()
    error = sigma / np.sqrt((psf**2).sum())
    return Difference(
        difference=image.astype(np.float32),
        score_corr=(matched / error).astype(np.float32),
        flux_err=error.astype(np.float32),
        flags=np.zeros(SHAPE, dtype=np.uint16),
        psf=Psf(stamp=psf.astype(np.float32), fwhm_pix=fwhm, n_stars=9),
        flux_scale=1.0,
        noise=SIGMA,
    )


@pytest.fixture
def kept(tmp_path):
    """Return a function that keeps a difference and measures it at positions: (flux, error, bits) of each."""

    def measure(one, x, y):
        cards = {"FLUXERR": (typical_error(one), ""), "FWHM": (one.psf.fwhm_pix, ""), "ZPMAG": (27.0, "")}
        path = tmp_path / KEPT
        planes = kept_planes(one, typical_error(one))
        write_kept(path, planes, wcs=None, psf=one.psf.stamp, cards=cards)
        with open_kept(path) as stored:
            parts = [stored.part(a, b, REACH_PIX) for a, b in zip(x, y, strict=True)]
        found = [flux_at(part, a, b) for part, a, b in zip(parts, x, y, strict=True)]
        return (np.array(column) for column in zip(*found, strict=True))

    return measure


def places(seed, step=16):
    """Positions between pixels, further apart than a PSF is wide."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[30 : SHAPE[0] - 30 : step, 30 : SHAPE[1] - 30 : step]
    return x.ravel() + rng.uniform(-0.5, 0.5, x.size), y.ravel() + rng.uniform(-0.5, 0.5, x.size)


class TestFlux:
    def test_is_nothing_on_noise_with_the_error_that_is_said(self, kept):
        x, y = places(1)
        flux, error, bits = kept(difference(2), x, y)
        pull = flux / error
        assert len(pull) > 1400
        assert (bits == 0).all()
        assert abs(pull.mean()) < 3.5 / len(pull) ** 0.5
        assert pull.std() == pytest.approx(1, abs=3.5 / (2 * len(pull)) ** 0.5 + 0.01)

    @pytest.mark.parametrize("fwhm", [2.2, 3.1, 6.0])
    @pytest.mark.parametrize("flux", [300.0, -3000.0, 80000.0])
    def test_is_that_of_a_source_within_a_percent(self, fwhm, flux, kept):
        x, y = places(3, step=45)
        sources = [(a, b, flux) for a, b in zip(x, y, strict=True)]
        found, error, _ = kept(difference(4, sources, fwhm=fwhm, noise=False), x, y)
        assert found.mean() == pytest.approx(flux, rel=0.01)
        assert np.abs(found / flux - 1).max() < 0.02
        assert (error > 0).all()

    def test_is_unbiased_in_noise(self, kept):
        x, y = places(5, step=41)
        error = difference(0).flux_err.mean()
        sources = [(a, b, 20 * error) for a, b in zip(x, y, strict=True)]
        found, _, _ = kept(difference(6, sources), x, y)
        assert found.mean() / (20 * error) == pytest.approx(1, abs=0.01)

    def test_tells_the_flags_within_one_fwhm(self, kept):
        one = difference(7)
        one.flags[200, 300], one.flags[400, 500] = PixelFlag.SATURATED, PixelFlag.NO_DATA
        x, y = np.array([300.2, 302.5, 306.0, 500.0]), np.array([200.1, 201.0, 200.0, 400.0])
        flux, _, bits = kept(one, x, y)
        assert bits.tolist() == [PixelFlag.SATURATED, PixelFlag.SATURATED, 0, PixelFlag.NO_DATA]
        assert np.isfinite(flux).tolist() == [True, True, True, False]

    def test_is_not_known_where_nothing_is(self, kept):
        one = difference(8)
        one.flux_err[100:140, 100:140] = np.nan
        one.score_corr[100:140, 100:140] = np.nan
        flux, error, _ = kept(one, np.array([120.0, 145.0]), np.array([120.0, 145.0]))
        assert np.isnan([flux[0], error[0]]).all()
        assert np.isfinite([flux[1], error[1]]).all()


class TestPlanes:
    def test_lose_a_thirtysecond_of_sigma_at_most(self):
        one = difference(9, [(300.3, 200.2, 1e5)])
        typical = typical_error(one)
        planes = dict(kept_planes(one, typical))
        assert {name: plane.dtype.itemsize for name, plane in planes.items()} == {
            "SCORE": 4,
            "ERROR": 2,
            "MASK": 2,
        }
        assert np.abs(planes["SCORE"] / 16 - one.score_corr).max() <= 1 / 32 + 1e-6
        assert np.abs(np.log(typical * np.exp(planes["ERROR"] * ERROR_STEP) / one.flux_err)).max() < 1 / 500

    def test_of_noise_take_less_than_the_limit(self, tmp_path):
        one = difference(10)
        path = tmp_path / KEPT
        write_kept(path, kept_planes(one, 1.0), wcs=None, psf=one.psf.stamp, cards={})
        chip = 9216 * 9232 / (SHAPE[0] * SHAPE[1])
        assert path.stat().st_size * chip < 120e6

    def test_are_the_same_bytes_twice(self, tmp_path):
        for name in ("a", "b"):
            one = difference(11)
            write_kept(
                tmp_path / name / KEPT, kept_planes(one, 9.0), wcs=WCS(naxis=2), psf=one.psf.stamp, cards={}
            )
        assert (tmp_path / "a" / KEPT).read_bytes() == (tmp_path / "b" / KEPT).read_bytes()


class TestFiles:
    def test_are_removed_when_old_or_too_many_the_oldest_first(self, tmp_path):
        paths = [tmp_path / "20250301" / f"e{k}" / "K" / KEPT for k in range(4)]
        for k, path in enumerate(paths):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * 1000)
            made = time.time() - 86400 * (4 - k) - 100
            os.utime(path, (made, made))
        assert prune_kept(tmp_path, days=10, gigabytes=1) == 0
        assert prune_kept(tmp_path, days=3.5, gigabytes=1) == 1
        assert [path.exists() for path in paths] == [False, True, True, True]
        assert prune_kept(tmp_path, days=10, gigabytes=2.5e-6) == 1
        assert [path.exists() for path in paths] == [False, False, True, True]

    def test_that_are_damaged_are_named(self, tmp_path):
        path = tmp_path / KEPT
        path.write_bytes(b"SIMPLE  =                    T" + b" " * 3000)
        with pytest.raises(InputError, match=r"kept\.fits: cannot be read"), open_kept(path) as stored:
            stored.part(3, 3, 2)

    def test_have_no_part_off_the_chip(self, tmp_path):
        one = difference(12)
        cards = {"FLUXERR": (1.0, ""), "FWHM": (3.0, "")}
        write_kept(tmp_path / KEPT, kept_planes(one, 1.0), wcs=None, psf=one.psf.stamp, cards=cards)
        with open_kept(tmp_path / KEPT) as stored:
            assert stored.part(-1.0, 5.0, 12) is None
            assert stored.part(5.0, SHAPE[0], 12) is None
            corner = stored.part(0.2, 0.4, 12)
        assert corner.score.shape == (13, 13)
        assert np.isfinite(flux_at(corner, 0.2, 0.4)[0])

    @pytest.mark.parametrize("changes", [{"days": -1.0}, {"gigabytes": -1.0}])
    def test_limits_below_nothing_are_refused(self, changes):
        with pytest.raises(ValueError, match="negative"):
            KeepConfig(**changes)
