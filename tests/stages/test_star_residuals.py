"""What bright stars leave around themselves is measured, and explains no more than it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.products.candidates import FLAG_BIT, Candidates, empty_table
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, StarList
from ks4diff.products.difference import Difference
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.residuals import ResidualsConfig, flag_residuals
from ks4diff.stages.star_residuals import RING_FWHM, StarResidualsConfig, leftovers
from tests import skies

SHAPE = (640, 710)
FWHM, ERROR, SCALE = 3.5, 100.0, 1.25
RING = 3.5 * FWHM  # where the stars leave something, px


def star_list(x, y, flux):
    n = len(x)
    return StarList(x=x, y=y, flux=flux, fwhm=np.full(n, FWHM), clean=np.ones(n, dtype=bool))


def scene(fraction, seed=3, strongest=20_000.0):
    """Return (Difference, AlignedTemplate): 40 stars with a ring of ``fraction`` of their S/N around each."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(40.0, 700, 88), np.arange(40.0, 640, 112))
    x, y = (v.ravel() + rng.uniform(-4, 4, v.size) for v in (x, y))
    snr = np.sort(rng.uniform(2000, strongest, x.size))[::-1]
    score = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) * np.sqrt(4 * np.pi) * 1.5
    row, column = np.indices(SHAPE)
    for px, py, strength in zip(x, y, snr, strict=True):
        away = np.abs(np.hypot(column - px, row - py) - RING)
        score += np.where(away < 0.6 * FWHM, fraction * strength * np.sign(rng.normal(size=SHAPE)), 0)
    psf = Psf(stamp=skies.Seeing(fwhm=FWHM).stamp(31).astype(np.float32), fwhm_pix=FWHM, n_stars=50)
    flags = np.zeros(SHAPE, dtype=np.uint16)
    difference = Difference(
        difference=np.zeros(SHAPE, dtype=np.float32),
        score_corr=score.astype(np.float32),
        flux_err=np.full(SHAPE, ERROR, dtype=np.float32),
        flags=flags,
        psf=psf,
        flux_scale=SCALE,
        noise=30.0,
    )
    blank = np.zeros(SHAPE, dtype=np.float32)
    template = AlignedTemplate(
        image=MaskedImage(data=blank, flags=flags, sky_variance=Cells.constant(1.0, SHAPE)),
        psf=PsfField.uniform(psf, SHAPE),
        noise=NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky"),
        gain=1.0,
        coverage=1.0,
        area=Cells.constant(1.0, SHAPE),
        stars=star_list(x, y, snr * ERROR / SCALE),
    )
    return difference, template


def flagged(difference, template, x, y, scorr):
    table = empty_table(1)
    table["x"], table["y"], table["scorr"], table["psf_chi2"] = x, y, scorr, 1.0
    found = Candidates(table=table, cutouts=np.empty((1, 0)), flux_unit="count")
    # the ring around the candidate itself is another matter: here nothing is loud
    config = ResidualsConfig(loud=np.inf)
    return bool(flag_residuals(found, difference, template, config).table["flags"][0] & FLAG_BIT["residual"])


def test_what_stars_leave_comes_back():
    difference, template = scene(1e-3)
    found = leftovers(difference, template, StarResidualsConfig())
    middles = 0.5 * FWHM * (np.array(RING_FWHM[1:]) + RING_FWHM[:-1])
    fraction = found.score[0] / (template.stars.flux[0] * SCALE / ERROR)
    assert fraction[np.argmin(np.abs(middles - RING))] == pytest.approx(1e-3, rel=0.25)
    assert fraction[middles > 1.5 * RING].max() < 1.5e-4


def test_noise_alone_leaves_nothing_that_matters():
    difference, template = scene(0.0)
    found = leftovers(difference, template, StarResidualsConfig())
    assert found.at(template.stars.x + RING, template.stars.y).max() < 1.0


def test_only_what_does_not_exceed_it_is_flagged():
    difference, template = scene(1e-3)
    x, y = float(template.stars.x[0]) + RING, float(template.stars.y[0])
    strength = float(template.stars.flux[0]) * SCALE / ERROR
    assert flagged(difference, template, x, y, 3 * 1e-3 * strength)
    assert flagged(difference, template, x, y, -3 * 1e-3 * strength)
    assert not flagged(difference, template, x, y, 8 * 1e-3 * strength)
    assert not flagged(difference, template, x + 3 * RING, y + 2 * RING, 5.2)


def test_a_new_source_beside_one_star_does_not_hide_itself():
    difference, template = scene(0.0)
    x, y = template.stars.x[5] + RING, template.stars.y[5]
    row, column = np.indices(SHAPE)
    difference.score_corr[:] += 60 * np.exp(-0.5 * ((column - x) ** 2 + (row - y) ** 2) / 2.2**2)
    assert not flagged(difference, template, x, y, 60.0)


@pytest.mark.parametrize("stars", [None, star_list(*np.empty((3, 0)))])
def test_without_stars_nothing_is_predicted(stars):
    difference, template = scene(1e-3)
    bare = AlignedTemplate(**{**vars(template), "stars": stars})
    at = template.stars.x + RING, template.stars.y
    assert (leftovers(difference, bare, StarResidualsConfig()).at(*at) == 0).all()


def test_a_saturated_star_counts_by_what_lies_beside_its_core():
    difference, template = scene(1e-3)
    x, y = float(template.stars.x[0]), float(template.stars.y[0])
    row, column = np.indices(SHAPE)
    away = np.hypot(column - x, row - y)
    profile = np.zeros(SHAPE)
    stamp = template.psf.at(x, y)
    cut = slice(round(y) - 15, round(y) + 16), slice(round(x) - 15, round(x) + 16)
    true = 5 * float(template.stars.flux[0])
    profile[cut] = true * stamp
    template.image.data[:] = profile
    template.image.flags[away < 3] = 1
    found = leftovers(difference, template, StarResidualsConfig())
    usual = leftovers(*scene(1e-3), StarResidualsConfig())
    assert (found.score[0] / usual.score[0])[4] == pytest.approx(5, rel=0.15)


class TestLoudSurroundings:
    def flagged(self, loudness, scorr, chi2=1.0):
        difference, template = scene(0.0, strongest=2001.0)
        difference.score_corr[240:360, 200:320] *= loudness
        table = empty_table(1)
        table["x"], table["y"], table["scorr"] = 260, 300, scorr
        table["psf_chi2"] = chi2
        before = table.copy()
        found = Candidates(table=table, cutouts=np.empty((1, 0)), flux_unit="count")
        out = flag_residuals(found, difference, template, ResidualsConfig()).table
        assert table.tobytes() == before.tobytes()  # NaN is not equal to itself
        return bool(out["flags"][0] & FLAG_BIT["residual"])

    def test_a_peak_among_its_like_is_one(self):
        assert self.flagged(3.0, 8.0)
        assert self.flagged(3.0, -8.0)

    def test_one_that_stands_out_or_stands_alone_is_none(self):
        assert not self.flagged(3.0, 40.0)
        assert not self.flagged(1.0, 5.1)

    def test_a_faint_one_that_fits_no_psf_is_one(self):
        assert self.flagged(1.0, 6.0, chi2=9.0)
        assert not self.flagged(1.0, 6.0, chi2=1.8)
        assert not self.flagged(1.0, 30.0, chi2=9.0)  # errors of the PSF show at high S/N
        assert not self.flagged(1.0, 6.0, chi2=np.nan)


def test_saturated_stars_tell_what_they_leave():
    """Fainter ones, whose rings are noise, would be held to leave a hundred times as much around them."""
    difference, template = scene(0.0, strongest=3000.0)
    stars = template.stars
    flux = stars.flux.copy()
    flux[:8] *= 100
    flags = difference.flags.copy()
    row, column = np.indices(SHAPE)
    for x, y in zip(stars.x[:8], stars.y[:8], strict=True):
        flags[np.hypot(column - x, row - y) < 2 * FWHM] = 4
    image = replace(template.image, flags=flags)
    brighter = replace(template, stars=replace(stars, flux=flux), image=image)
    left = leftovers(replace(difference, flags=flags), brighter, StarResidualsConfig())
    assert left.at(stars.x[:8] + RING, stars.y[:8]).max() < 1.0
