"""Peaks of both signs, their flags and their cut-outs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import process_pair
from ks4diff.products.candidates import COLUMNS, FLAG_BIT, REJECTING_BITS
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate
from ks4diff.products.difference import Difference
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.psf import Psf
from ks4diff.stages.detect import DetectConfig, detect
from ks4diff.stages.measure import MeasureConfig, measure
from tests import skies
from tests.stages.test_register import NOISE, chip

SHAPE = (120, 170)
PSF = skies.Seeing(fwhm=4.0, ratio=0.9, angle_deg=30)


def scored(peaks, flags=None):
    """Return a Difference whose score is the sum of round peaks (x, y, height), without noise."""
    score = np.zeros(SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for px, py, height in peaks:
        score += height * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.4**2))
    score = score.astype(np.float32)
    return Difference(
        difference=score,
        score_corr=score,
        flux_err=np.full(SHAPE, 10, dtype=np.float32),
        flags=np.zeros(SHAPE, dtype=np.int32) if flags is None else flags,
        psf=Psf(stamp=PSF.stamp(21).astype(np.float32), fwhm_pix=4.0, n_stars=9),
        flux_scale=1.0,
        noise=1.0,
    )


class TestDetect:
    def test_both_signs_below_the_pixel_strongest_first(self):
        peaks = [(40.37, 30.71, 9.0), (101.8, 77.24, -14.0), (70.5, 50.5, 6.0)]
        found = detect(scored(peaks), DetectConfig())
        order = np.argsort([-abs(p[2]) for p in peaks])
        assert found.score == pytest.approx([peaks[k][2] for k in order], rel=0.02)
        assert found.x == pytest.approx([peaks[k][0] for k in order], abs=0.05)
        assert found.y == pytest.approx([peaks[k][1] for k in order], abs=0.05)

    def test_the_threshold(self):
        peaks = [(40, 30, 5.1), (80, 60, 4.9), (120, 90, -4.9)]
        assert len(detect(scored(peaks), DetectConfig())) == 1
        assert len(detect(scored(peaks), DetectConfig(threshold=4.0))) == 3
        assert len(detect(scored([]), DetectConfig())) == 0
        # between four pixels, which show 0.957 of it
        between = [(40.5, 30.5, 5.05), (80.5, 60.5, -4.95)]
        assert len(detect(scored(between), DetectConfig())) == 1
        assert np.abs(scored(between).score_corr).max() < 4.9
        with pytest.raises(ValueError, match="threshold"):
            DetectConfig(threshold=1.9)

    @pytest.mark.parametrize(
        ("flag", "n"),
        [
            (PixelFlag.NO_DATA, 0),
            (PixelFlag.NON_FINITE, 0),
            (PixelFlag.TEMPLATE_NO_DATA, 0),
            (PixelFlag.SATURATED, 1),
            (PixelFlag.EDGE, 1),
        ],
    )
    def test_nothing_is_detected_where_there_is_no_data(self, flag, n):
        flags = np.zeros(SHAPE, dtype=np.int32)
        flags[20:60, 30:70] = flag
        assert len(detect(scored([(50.2, 40.1, 50.0)], flags), DetectConfig())) == n


class TestMeasured:
    def test_the_table(self, changed):
        table = changed.table
        assert table.dtype.names == tuple(column.name for column in COLUMNS)
        assert (table["id"] == np.arange(len(table))).all()
        assert (np.diff(np.abs(table["scorr"])) <= 1e-5).all()
        assert (np.sign(table["flux"]) == np.where(table["is_positive"], 1, -1)).all()
        assert table["snr"] == pytest.approx(np.abs(table["flux"]) / table["flux_err"], rel=1e-5)
        assert np.isnan(table["ra"]).all()
        assert np.isnan(table["mag"]).all()

    def test_real_changes_raise_no_rejecting_flag(self, changed):
        new, gone = changed.pair.new, changed.pair.gone
        places = zip([*new.x, *gone.x], [*new.y, *gone.y], strict=True)
        rows = [changed.nearest(x, y)[0] for x, y in places]
        rejected = (changed.table["flags"][rows] & REJECTING_BITS) != 0
        assert rejected.mean() < 0.05

    def test_shapes_are_those_of_the_psf(self, changed):
        rows = [changed.nearest(x, y)[0] for x, y in zip(changed.pair.new.x, changed.pair.new.y, strict=True)]
        strong = changed.table[rows][changed.table["snr"][rows] > 25]
        assert len(strong) > 10
        assert np.median(strong["fwhm"]) == pytest.approx(
            changed.subtracted.difference.psf.fwhm_pix, rel=0.06
        )
        # the brightest of nine noisy pixels is above the true one by up to its error
        assert abs(np.median(strong["sharpness"]) - 1) < np.median(strong["sharpness_err"])
        assert np.median(strong["psf_chi2"]) == pytest.approx(1, abs=0.3)
        assert np.median(strong["psf_corr"]) > 0.9

    def flags_near(self, hurt, x, y, within):
        near = np.hypot(hurt.table["x"] - x, hurt.table["y"] - y) < within
        assert near.any()
        return hurt.table["flags"][near]

    def test_a_cosmic_ray_is_sharp(self, hurt):
        assert (self.flags_near(hurt, 250, 59, 3) & FLAG_BIT["sharp"]).all()

    def test_a_bleeding_star_is_saturated_or_bled(self, hurt):
        bits = int(PixelFlag.SATURATED | PixelFlag.BLEED)
        assert (hurt.subtracted.difference.flags[136:145, 300] & bits).all()
        near = np.hypot(hurt.table["x"] - 300, hurt.table["y"] - 140) < 25
        assert (hurt.table["flags"][near] & REJECTING_BITS).all()

    def test_the_new_source_among_all_this_is_clean(self, hurt):
        row, distance = hurt.nearest(96.3, 247.8)
        assert distance < 0.3
        assert not hurt.table["flags"][row] & REJECTING_BITS
        assert hurt.table["rb"][row] > 0.5

    def test_no_candidate_lies_where_there_is_no_data(self, hurt):
        x, y = np.rint([hurt.table["x"], hurt.table["y"]]).astype(int)
        assert not ((x >= 20) & (x < 33) & (y >= 290) & (y < 310)).any()

    def test_cutouts(self, hurt):
        candidates, table = hurt.subtracted.candidates, hurt.table
        passed = np.flatnonzero((table["flags"] & REJECTING_BITS) == 0)
        assert set(passed) <= set(candidates.shown)
        assert len(candidates.shown) == min(len(table), len(passed) + 30)
        assert candidates.cutouts.shape == (len(candidates.shown), 3, 63, 63)
        row, _ = hurt.nearest(96.3, 247.8)
        cutouts = candidates.cutout(row)
        assert cutouts.dtype == np.float32
        x, y = round(float(table["x"][row])), round(float(table["y"][row]))
        chip, template = hurt.subtracted.chip.image, hurt.subtracted.template.image
        inside = (slice(y - 31, y + 32), slice(x - 31, x + 32))
        np.testing.assert_array_equal(cutouts[0], np.where(chip.good[inside], chip.data[inside], np.nan))
        scale = np.float32(hurt.subtracted.match.flux_scale)
        np.testing.assert_allclose(
            cutouts[1], np.where(template.good[inside], template.data[inside] * scale, np.nan), rtol=1e-5
        )

    def test_cutouts_beyond_the_border_are_nan(self):
        pair = skies.Scene(
            n_stars=900, new=skies.Stars(x=np.array([12.6]), y=np.array([150.2]), flux=np.array([2e4]))
        ).make(91)
        candidates = process_pair(pair.science, pair.template, PipelineConfig()).subtracted.candidates
        row = int(np.argmin(np.hypot(candidates.table["x"] - 12.6, candidates.table["y"] - 150.2)))
        x = round(float(candidates.table["x"][row]))
        assert x == 13
        stamp = candidates.cutout(row)[0]
        assert np.isnan(stamp[:, : 31 - x]).all()
        assert np.isfinite(stamp[:, 31 - x :]).all()


@pytest.mark.parametrize(
    "bit", [PixelFlag.BAD_PIXEL, PixelFlag.SEAM, PixelFlag.CROSSTALK, PixelFlag.COSMIC_RAY]
)
def test_masked_is_what_no_measurement_is_left_of_by_its_own_pixels(bit):
    """Holes on, beside and off peaks, of which the difference says that they take it or that they do not."""
    none = np.empty(0)
    holes, taken = (np.zeros(SHAPE, dtype=np.uint16) for _ in range(2))
    holes[30, 40] = holes[30, 82] = holes[59, 120] = holes[90, 41] = bit
    taken[30, 40] = taken[90, 40] = taken[90, 120] = bit
    peaks = [(40.3, 30.2, 20.0), (80.0, 30.0, 20.0), (120.2, 60.1, -20.0)]
    peaks += [(40.1, 90.0, 20.0), (120.0, 90.0, 20.0)]
    difference = scored(peaks, taken)
    lone = chip(none, none, none, shape=SHAPE)
    science = replace(lone, image=replace(lone.image, flags=holes))
    template = AlignedTemplate(
        image=lone.image, psf=lone.psf, noise=NOISE, gain=1.0, coverage=1.0, area=Cells.constant(1.0, SHAPE)
    )
    table = measure(detect(difference, DetectConfig()), science, template, difference, MeasureConfig()).table
    masked = (table["flags"] & FLAG_BIT["masked"]) != 0
    assert len(table) == len(peaks)
    np.testing.assert_array_equal(masked, np.rint(table["x"]) == 40)
    assert FLAG_BIT["masked"] & REJECTING_BITS


def test_sources_with_a_bad_pixel_in_their_middle_are_masked_and_those_beside_one_are_not():
    x, y = (v.ravel() + 0.2 for v in np.meshgrid(np.arange(60, 310, 60), np.arange(55, 280, 50)))
    new = skies.Stars(x=x, y=y, flux=np.full(len(x), 2e4))
    pair = skies.Scene(n_stars=500, new=new).make(61)
    flags = np.zeros(pair.science.data.shape, dtype=np.uint16)
    hurt = np.arange(len(x)) % 2 == 0
    flags[np.rint(y).astype(int), np.rint(x).astype(int) + np.where(hurt, 0, 4)] = PixelFlag.BAD_PIXEL
    done = process_pair(replace(pair.science, flags=flags), pair.template, PipelineConfig()).subtracted
    table = done.candidates.table
    rows = [int(np.argmin(np.hypot(table["x"] - a, table["y"] - b))) for a, b in zip(x, y, strict=True)]
    assert np.hypot(table["x"][rows] - x, table["y"][rows] - y).max() < 1
    np.testing.assert_array_equal((table["flags"][rows] & FLAG_BIT["masked"]) != 0, hurt)
    assert ((table["flags"][rows] & REJECTING_BITS) != 0)[~hurt].sum() <= 1


def test_flags_of_neighbourhoods():
    """Each flag by what stands beside a detection, on a difference without noise."""
    none = np.empty(0)
    peaks = [(30.2, 30.1, 20.0), (70.0, 30.0, 20.0), (74.5, 30.0, -18.0), (110.0, 60.0, -20.0)]
    peaks += [(40.0, 90.0, 20.0), (3.0, 60.0, 20.0), (140.0, 90.0, 20.0)]
    flags = np.zeros(SHAPE, dtype=np.uint16)
    flags[60, 113] = PixelFlag.SATURATED
    flags[90, 42] = PixelFlag.NON_FINITE
    border = np.ones(SHAPE, dtype=bool)
    border[4:-4, 4:-4] = False
    difference = scored(peaks, np.where(border, np.uint16(PixelFlag.EDGE), np.uint16(0)))
    lone = chip(none, none, none, shape=SHAPE)
    science = replace(lone, image=replace(lone.image, flags=flags))
    data = np.zeros(SHAPE, dtype=np.float32)
    data[88:93, 138:143] = 50
    below = MaskedImage(
        data=data, flags=np.zeros(SHAPE, dtype=np.uint16), sky_variance=Cells.constant(1.0, SHAPE)
    )
    template = AlignedTemplate(
        image=below, psf=lone.psf, noise=NOISE, gain=1.0, coverage=1.0, area=Cells.constant(1.0, SHAPE)
    )
    table = measure(detect(difference, DetectConfig()), science, template, difference, MeasureConfig()).table

    def names(x, y):
        row = int(np.argmin(np.hypot(table["x"] - x, table["y"] - y)))
        return {name for name, bit in FLAG_BIT.items() if table["flags"][row] & bit}

    assert names(30.2, 30.1) == set()
    assert "dipole" in names(70, 30)
    assert "dipole" in names(74.5, 30)
    assert names(110, 60) == {"saturated", "near_saturated"}
    assert names(40, 90) == {"no_data"}
    assert "edge" in names(3, 60)
    assert names(140, 90) == {"on_source"}
