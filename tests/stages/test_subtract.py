"""Nothing where nothing changed, and every change at its flux with the right error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.noise import autocovariance
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import process_pair
from ks4diff.products.image import PixelFlag
from ks4diff.stages.forced import forced_flux
from tests import skies


class TestNothingChanged:
    def quiet(self, static):
        """Return the unflagged pixels in which no star has a third of the noise, in either image."""
        pair, quiet = static.pair, static.subtracted.difference.flags == 0
        for epoch in pair.epochs:
            counts = epoch.throughput * pair.stars.flux
            light = skies.draw(quiet.shape, pair.stars.x, pair.stars.y, counts, epoch.seeing)
            quiet &= light < 0.3 * epoch.sky_sigma
        return quiet

    def test_the_score_is_unit_normal(self, static):
        quiet = self.quiet(static)
        assert quiet.mean() > 0.5
        score = static.subtracted.difference.score_corr[quiet].astype(float)
        # some 1700 independent values: the std's own error is 0.017, of which 2 are allowed on top
        assert score.std() == pytest.approx(1, abs=0.05 + 2 * 0.017)
        assert abs(score.mean()) < 0.1
        assert static.result.report.scorr_std_sky == pytest.approx(1, abs=0.05 + 2 * 0.017)

    def test_with_its_stars_too(self, static):
        difference = static.subtracted.difference
        score = difference.score_corr[difference.flags == 0].astype(float)
        assert score.std() == pytest.approx(1, abs=0.1)
        assert static.result.report.scorr_std == pytest.approx(score.std(), rel=1e-6)

    def test_the_difference_is_white_with_the_stated_noise(self, static):
        difference = static.subtracted.difference
        quiet = self.quiet(static)
        image = difference.difference - difference.difference[quiet].mean()
        covariance = autocovariance(image, quiet, 3)
        assert np.sqrt(covariance[3, 3]) == pytest.approx(difference.noise, rel=0.04)
        covariance[3, 3] = 0
        # 70000 pixels: 4 standard errors are 0.015 of the variance; faint stars leave as much again
        assert np.abs(covariance).max() < 0.05 * difference.noise**2

    def test_no_alert_comes_of_it(self, static):
        assert static.result.alerts == []


class TestEveryChange:
    def pulls(self, changed):
        pair, out = changed.pair, []
        for sign, stars in ((1, pair.new), (-1, pair.gone)):
            counts = sign * pair.science_counts(stars)
            for x, y, truth in zip(stars.x, stars.y, counts, strict=True):
                at = pair.geometry.template(np.array([x]), np.array([y]))[:, 0]
                out.append((truth, *forced_flux(changed.subtracted, *at)))
        return np.array(out).T

    def test_fluxes_are_unbiased_and_their_errors_right(self, changed):
        truth, flux, error = self.pulls(changed)
        assert len(truth) >= 60
        assert np.isfinite(flux).all()
        pull = (flux - truth) / error
        n = len(pull)
        assert abs(pull.mean()) < 3 / np.sqrt(n)
        assert pull.std() == pytest.approx(1, abs=3 / np.sqrt(2 * n))
        weight = (truth / error) ** 2
        # in the mean ratio 66 sources of S/N 8 to 80 leave 0.4 %; PSFs are good to 1 %
        assert (weight * flux / truth).sum() / weight.sum() == pytest.approx(1, abs=0.02)

    def test_none_is_missed_and_each_is_where_it_is(self, changed):
        pair, off = changed.pair, []
        for sign, stars in ((1, pair.new), (-1, pair.gone)):
            for x, y in zip(stars.x, stars.y, strict=True):
                row, distance = changed.nearest(x, y)
                assert distance < 1.5
                assert changed.table["is_positive"][row] == (sign > 0)
                error = np.hypot(changed.table["x_err"][row], changed.table["y_err"][row])
                off.append(distance / np.hypot(error, 0.05))
        # a Rayleigh variate's rms is sqrt(2) per unit of one axis' error
        assert np.sqrt(np.mean(np.square(off))) < 1.5

    def test_the_difference_image_holds_the_same_fluxes(self, changed):
        difference = changed.subtracted.difference
        stamp = difference.psf.stamp.astype(float)
        # its wings and ringing beyond the stamp hold some 1 %
        assert stamp.sum() == pytest.approx(1, abs=0.02)
        half, ratio = len(stamp) // 2, []
        for sign, stars in ((1, changed.pair.new), (-1, changed.pair.gone)):
            truth = sign * changed.pair.science_counts(stars)
            for x, y, flux in zip(stars.x, stars.y, truth, strict=True):
                if abs(flux) < 4000 or min(x, y) < half + 2:
                    continue
                i, j = round(x), round(y)
                box = difference.difference[j - 7 : j + 8, i - 7 : i + 8]
                psf = ndimage.shift(stamp, (y - j, x - i), order=3)[half - 7 : half + 8, half - 7 : half + 8]
                if box.shape == psf.shape:
                    ratio.append((box * psf).sum() / (psf**2).sum() / flux)
        assert len(ratio) > 20
        assert np.median(ratio) == pytest.approx(1, abs=0.02)

    def test_the_candidates_fluxes_are_theirs(self, changed):
        pair, ratio = changed.pair, []
        for sign, stars in ((1, pair.new), (-1, pair.gone)):
            truth = sign * pair.science_counts(stars)
            rows = [changed.nearest(x, y)[0] for x, y in zip(stars.x, stars.y, strict=True)]
            ratio += list((changed.table["flux"][rows] / truth)[truth * sign > 3000])
        assert len(ratio) > 30
        assert np.median(ratio) == pytest.approx(1, abs=0.02)


class TestWhatIsBroken:
    def test_a_bleed_is_flagged_along_its_column(self, hurt):
        flags = hurt.subtracted.difference.flags
        column = flags[72:208, 300]
        assert (column & (PixelFlag.BLEED | PixelFlag.SATURATED) != 0).all()
        assert not (flags[20:280, 150] & PixelFlag.BLEED).any()

    def test_a_faint_trail_beside_the_core_is_flagged(self):
        pair = skies.Scene(n_stars=900).make(82)
        data = pair.science.data.copy()
        data[150:157, 197:204] = 30000.0
        data[20:290, 200] += 3 * pair.epochs[0].sky_sigma  # hidden under any star, long as the column
        hurt = replace(pair.science, data=data, saturation=30000.0)
        result = process_pair(hurt, pair.template, PipelineConfig())
        flags = result.subtracted.difference.flags
        assert (flags[30:280, 200] & (PixelFlag.BLEED | PixelFlag.SATURATED) != 0).mean() > 0.95
        bled = (flags & PixelFlag.BLEED) != 0
        assert not bled[:, 230:].any()
        assert not bled[:, :170].any()

    def test_holes_are_flagged_and_little_more(self, hurt):
        flags = hurt.subtracted.difference.flags
        assert (flags[290:310, 20:33] & PixelFlag.NO_DATA != 0).all()
        assert (flags[200:203, 330:334] & PixelFlag.NON_FINITE != 0).all()
        assert not flags[250:280, 150:170].any()

    def test_the_border_is_flagged(self, static):
        flags = static.subtracted.difference.flags
        for edge in (flags[:3], flags[-3:], flags[:, :3], flags[:, -3:]):
            assert (edge & PixelFlag.EDGE != 0).all()
        assert not (flags[8:-8, 8:-8] & PixelFlag.EDGE).any()

    def test_everything_is_finite(self, hurt):
        difference = hurt.subtracted.difference
        for name in ("difference", "score_corr", "flux", "flux_err"):
            assert np.isfinite(getattr(difference, name)).all()


def test_a_pair_leaves_its_images_as_they_were():
    pair = skies.Scene(n_stars=600).make(47)
    kept = pair.science.data.copy(), pair.template.data.copy()
    process_pair(pair.science, pair.template, PipelineConfig())
    np.testing.assert_array_equal(pair.science.data, kept[0])
    np.testing.assert_array_equal(pair.template.data, kept[1])


MOVED_SHAPE = (800, 840)


@pytest.fixture(scope="module")
def moved():
    """Return the subtraction of 130 constant stars, each moved by its own 0.03 px per axis, and their places.

    As much as the MOA series shows.
    """
    rng = np.random.default_rng(1)
    x, y = skies.apart(1, MOVED_SHAPE, 130, skies.NO_STARS, distance=48, margin=26)
    flux = np.exp(rng.uniform(np.log(4e4), np.log(4e5), 130))
    sharp, wide = (skies.Epoch(seeing=skies.Seeing(fwhm=w, beta=3.4)) for w in (3.0, 3.1))
    geometry = skies.Geometry(bend=0.0, rotation_deg=0.1, scale=1.0, shift=(20.4, 20.3))
    off = rng.normal(0, 0.03, (2, 130))
    science = skies.expose(MOVED_SHAPE, x + off[0], y + off[1], flux, sharp, [1, 0])
    template = skies.expose((860, 900), *geometry.template(x, y), flux, wide, [1, 1])
    done = process_pair(skies.raw_chip(science, sharp), skies.raw_chip(template, wide), PipelineConfig())
    return done.subtracted, x, y


class TestStarsThatMove:
    def test_their_scatter_is_told(self, moved):
        # stars beyond three times the spread are left out, and a standard error is taken off
        assert moved[0].registration.scatter_pix == pytest.approx(0.027, abs=0.006)

    def test_few_stand_out(self, moved):
        subtracted, x, y = moved
        high = ndimage.maximum_filter(np.abs(subtracted.difference.score_corr), size=7)
        out = high[np.rint(y).astype(int), np.rint(x).astype(int)] > 5
        assert out.sum() <= 3  # 12 without the scatter
        assert len(subtracted.candidates.table) <= 5  # 24
