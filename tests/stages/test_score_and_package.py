"""What looks like a source scores high; what scores high becomes an alert; everything else is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy import ndimage

from ks4diff.io.fits_image import read_chip
from ks4diff.io.packets import alert_record, datum_bytes, without_times
from ks4diff.products.alert import Scoring
from ks4diff.products.candidates import CANDIDATE_FLAGS, COLUMNS, FLAG_BIT, REJECTING_BITS
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate
from ks4diff.products.difference import Difference, Quality
from ks4diff.products.errors import SkipChip
from ks4diff.products.ids import ExposureId, Site
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.detect import DetectConfig, detect
from ks4diff.stages.guards import static_stars
from ks4diff.stages.measure import MeasureConfig, measure
from ks4diff.stages.package import package, row_of, select, with_history
from ks4diff.stages.photometry import magnitude
from ks4diff.stages.quality import QualityConfig, judge, pixel_arcsec, scorr_std
from ks4diff.stages.score import ScoreConfig, rank, score
from tests import skies
from tests.sample_alert import make_history
from tests.stages.test_register import NOISE, chip

SHAPE = (91, 91)  # square for once: it is turned
PSF = Psf(stamp=skies.Seeing(fwhm=4.0).stamp(25).astype(np.float32), fwhm_pix=4.0, n_stars=50)
NONE = np.empty(0)


def star(x, y, flux):
    return skies.draw(SHAPE, [x], [y], [flux], skies.Seeing(fwhm=4.0))


def pixel(x, y, flux):
    image = np.zeros(SHAPE)
    image[y, x] = flux
    return image


THINGS = {
    "star": star(45.3, 44.6, 900.0),
    "faint star": star(45.3, 44.6, 220.0),
    "dipole": star(44.2, 45.0, 1500.0) - star(46.2, 45.4, 1480.0),
    "cosmic ray": pixel(45, 45, 300.0) + pixel(46, 45, 120.0),
    "trail": sum(pixel(k, 45, 60.0) for k in range(20, 70)),
}


def rb_of(image, seed=1, *, turns=0, sign=1):
    """Return rb of the strongest detection of an image in white noise of sigma 1, turned and signed."""
    noise = np.random.default_rng(seed).normal(0, 1, SHAPE)
    seen = (sign * np.rot90(image + noise, turns)).astype(np.float32)
    matched = ndimage.correlate(seen.astype(float), PSF.stamp.astype(float), mode="constant")
    norm = float(np.sqrt((PSF.stamp.astype(float) ** 2).sum()))
    difference = Difference(
        difference=seen,
        score_corr=(matched / norm).astype(np.float32),
        flux_err=np.full(SHAPE, 1 / norm, dtype=np.float32),
        flags=np.zeros(SHAPE, dtype=np.uint16),
        psf=PSF,
        flux_scale=1.0,
        noise=1.0,
    )
    lone = chip(NONE, NONE, NONE, shape=SHAPE)
    blank = MaskedImage(
        data=seen * 0, flags=np.zeros(SHAPE, dtype=np.uint16), sky_variance=Cells.constant(1.0, SHAPE)
    )
    field = PsfField.uniform(PSF, SHAPE)
    template = AlignedTemplate(
        image=blank, psf=field, noise=NOISE, gain=1.0, coverage=1.0, area=Cells.constant(1.0, SHAPE)
    )
    found = measure(detect(difference, DetectConfig()), lone, template, difference, MeasureConfig())
    return score(found, PSF.fwhm_pix, ScoreConfig()).table["rb"]


class TestScore:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_point_source_scores_high(self, seed):
        assert rb_of(THINGS["star"], seed)[0] > 0.5

    @pytest.mark.parametrize("name", ["dipole", "cosmic ray", "trail"])
    @pytest.mark.parametrize("seed", range(3))
    def test_what_is_none_scores_low(self, name, seed):
        assert rb_of(THINGS[name], seed).max() < 0.2

    @pytest.mark.parametrize("name", THINGS)
    @pytest.mark.parametrize(("turns", "sign"), [(1, 1), (2, 1), (3, 1), (0, -1), (1, -1)])
    def test_neither_rotation_nor_polarity_matters(self, name, turns, sign):
        upright, turned = rb_of(THINGS[name])[0], rb_of(THINGS[name], turns=turns, sign=sign)[0]
        assert turned == pytest.approx(upright, abs=1e-3)

    def test_it_is_between_0_and_1_or_withheld(self, hurt):
        rb = hurt.table["rb"]
        assert ((rb >= 0) & (rb <= 1) | np.isnan(rb)).all()
        assert np.isnan(rb[hurt.table["masked_fraction"] > 0.3]).all()
        assert (hurt.table["masked_fraction"] > 0.3).any()

    def test_real_changes_pass(self, changed):
        pair, passed = changed.pair, []
        for stars in (pair.new, pair.gone):
            rows = [changed.nearest(x, y)[0] for x, y in zip(stars.x, stars.y, strict=True)]
            strong = changed.table["snr"][rows] > 15
            passed += list(changed.table["rb"][rows][strong] >= 0.5)
        assert np.mean(passed) > 0.9

    def test_scoring_leaves_its_input_alone(self, changed):
        before = changed.table.tobytes()
        score(changed.subtracted.candidates, 4.0, ScoreConfig(strong_score=70.0))
        assert changed.table.tobytes() == before

    def test_rank_puts_the_rejected_last(self, hurt):
        table = hurt.table[rank(hurt.subtracted.candidates)]
        rejected = (table["flags"] & REJECTING_BITS) != 0
        assert rejected.any()
        assert not rejected[0]
        assert (np.diff(rejected.astype(int)) >= 0).all()
        worth = np.nan_to_num(table["rb"]) * np.abs(table["scorr"])
        assert (np.diff(worth[~rejected]) <= 0).all()


class TestSelect:
    def test_every_candidate_is_an_alert_or_counted_once(self, hurt, changed):
        for run in (hurt, changed):
            rows, dropped = select(run.subtracted, min_rb=0.5)
            assert len(rows) + sum(dropped.values()) == len(run.table)
            assert len(set(rows)) == len(rows)
            good = (run.table["flags"] & REJECTING_BITS == 0) & (run.table["rb"] >= 0.5)
            assert sorted(rows) == np.flatnonzero(good).tolist()

    def test_alerts_of_both_signs(self, changed):
        rows, _ = select(changed.subtracted, min_rb=0.5)
        assert len(set(changed.table["is_positive"][rows])) == 2

    def test_reasons(self, changed):
        table = changed.table[:6].copy()
        table["flags"] = [0, FLAG_BIT["dipole"] | FLAG_BIT["saturated"], FLAG_BIT["on_source"], 0, 0, 0]
        table["rb"] = [0.9, 0.9, 0.9, np.nan, 0.3, 0.5]
        few = replace(changed.subtracted, candidates=replace(changed.subtracted.candidates, table=table))
        rows, dropped = select(few, min_rb=0.5)
        assert rows.tolist() == [0, 2, 5]
        assert dropped == {"saturated": 1, "rb_withheld": 1, "rb_below_threshold": 1}

    def test_a_failed_chip_gives_none(self, changed):
        failed = replace(changed.subtracted, quality=Quality(verdict="fail", reasons=("why",)))
        would, _ = select(changed.subtracted, min_rb=0.5)
        rows, dropped = select(failed, min_rb=0.5)
        assert len(rows) == 0
        assert dropped["quality_fail"] == len(would) > 0


class TestPackage:
    def packed(self, run, exposure="e1"):
        rows, _ = select(run.subtracted, min_rb=0.5)
        return rows, package(run.subtracted, rows, run.result.provenance, exposure=exposure, min_rb=0.5)

    def test_ids_are_distinct_and_the_same_again(self, changed):
        rows, alerts = self.packed(changed)
        assert len(alerts) > 40
        assert len({a.candid for a in alerts}) == len({a.alert_id for a in alerts}) == len(alerts)
        assert all(0 < a.candid < 2**63 for a in alerts)
        assert [row_of(a) for a in alerts] == list(rows)
        again = self.packed(changed)[1]
        assert [(a.candid, a.alert_id) for a in again] == [(a.candid, a.alert_id) for a in alerts]
        other = self.packed(changed, "e2")[1]
        assert not {a.candid for a in other} & {a.candid for a in alerts}

    def test_another_processing_gives_other_alert_ids_of_the_same_candidates(self, changed):
        rows, alerts = self.packed(changed)
        provenance = replace(changed.result.provenance, config_digest="another")
        other = package(changed.subtracted, rows, provenance, exposure="e1", min_rb=0.5)
        assert [a.candid for a in other] == [a.candid for a in alerts]
        assert not {a.alert_id for a in other} & {a.alert_id for a in alerts}

    def test_they_say_what_was_measured(self, changed):
        rows, alerts = self.packed(changed)
        for row, alert in zip(rows, alerts, strict=True):
            measured = changed.table[row]
            assert alert.candidate.flux == measured["flux"]
            assert alert.candidate.isdiffpos == (measured["flux"] > 0)
            assert alert.candidate.ra is None
            assert alert.candidate.magpsf is None
            assert alert.object_id is None
            assert alert.candidate.rbthreshold == 0.5
            rejecting = {flag.name for flag in CANDIDATE_FLAGS if flag.rejecting}
            assert not rejecting & set(alert.candidate.flags)
            np.testing.assert_array_equal(
                alert.cutouts.difference, changed.subtracted.candidates.cutout(row)[2]
            )

    def on_sky(self, run, **facts):
        """The same chip with a WCS, a zero point and a date, and its table changed to suit."""
        wcs = skies.sky_wcs()
        raw = replace(
            run.subtracted.chip.raw, wcs=wcs, zeropoint=26.4, mjd_mid=60000.25, exptime=120.0, **facts
        )
        table = run.table.copy()
        table["ra"], table["dec"] = wcs.all_pix2world(table["x"], table["y"], 0)
        table["xy_cov"] = 0.3 * table["x_err"] * table["y_err"]
        candidates = replace(run.subtracted.candidates, table=table, flux_unit="nJy")
        return replace(run.subtracted, chip=replace(run.subtracted.chip, raw=raw), candidates=candidates)

    def sent(self, subtracted, run, **options):
        rows, _ = select(subtracted, min_rb=0.5)
        return package(subtracted, rows, run.result.provenance, exposure="e1", min_rb=0.5, **options)

    def test_stamps_know_their_place(self, changed):
        subtracted = self.on_sky(changed)
        wcs = subtracted.chip.raw.wcs
        for alert in self.sent(subtracted, changed)[:5]:
            grid, x, y = alert.cutouts.grid, np.rint(alert.candidate.x), np.rint(alert.candidate.y)
            local = WCS(naxis=2)
            local.wcs.ctype, local.wcs.crpix = ["RA---TAN", "DEC--TAN"], [32, 32]
            local.wcs.crval, local.wcs.cd = [grid.ra, grid.dec], grid.cd
            corners = np.array([[0, 62, 0, 62], [0, 0, 62, 62]])
            ra, dec = local.all_pix2world(*corners, 0)
            back = wcs.all_world2pix(ra, dec, 0)
            np.testing.assert_allclose(back, corners + np.array([[x - 31], [y - 31]]), atol=0.01)
            assert alert.cutouts.zeropoint == 26.4
            assert alert.cutouts.science[31, 31] == pytest.approx(
                changed.subtracted.candidates.cutout(row_of(alert))[0, 31, 31], nan_ok=True
            )

    def test_errors_on_the_sky_are_those_of_the_pixels(self, changed):
        """Against a cloud of positions drawn with the pixel covariance and put through the WCS."""
        subtracted = self.on_sky(changed)
        wcs = subtracted.chip.raw.wcs
        for alert in self.sent(subtracted, changed)[:3]:
            c = alert.candidate
            covariance = [[c.xerr**2, c.xycov], [c.xycov, c.yerr**2]]
            x, y = np.random.default_rng(3).multivariate_normal([c.x, c.y], covariance, 40_000).T
            ra, dec = wcs.all_pix2world(x, y, 0)
            drawn = np.cov((ra - c.ra) * np.cos(np.radians(c.dec)), dec - c.dec)
            assert c.raerr == pytest.approx(np.sqrt(drawn[0, 0]), rel=0.02)
            assert c.decerr == pytest.approx(np.sqrt(drawn[1, 1]), rel=0.02)
            assert c.radeccov == pytest.approx(drawn[0, 1], abs=0.02 * c.raerr * c.decerr)

    def test_every_column_of_the_table_flows_in(self, changed):
        table = changed.table
        wider = np.zeros(len(table), dtype=[*table.dtype.descr, ("brand_new", "f4"), ("injected", "?")])
        for name in table.dtype.names:
            wider[name] = table[name]
        wider["brand_new"], wider["injected"] = np.arange(len(table)) + 0.5, True
        candidates = replace(changed.subtracted.candidates, table=wider)
        for alert in self.sent(replace(changed.subtracted, candidates=candidates), changed):
            assert alert.candidate.measured["brand_new"] == row_of(alert) + 0.5
            assert alert.candidate.injected
            known = vars(alert.candidate).keys() | alert.candidate.measured.keys()
            assert {column.name for column in COLUMNS} - known <= set(RENAMED)
            record = alert_record(alert)
            assert record["candidate"]["measurements"]["brand_new"] == row_of(alert) + 0.5
            datum_bytes(record)

    def test_what_the_chip_tells(self, changed):
        subtracted = self.on_sky(changed, object="0412.123-34", filter="R")
        scoring = Scoring(
            flag_names={4: "few_pixels", 2: "crowded"}, reasons=(("why",),) * len(changed.table)
        )
        subtracted.candidates.table["rb_flags"] = 6
        alert = self.sent(subtracted, changed, scoring=scoring, now=60000.5)[0]
        made, seen = alert.provenance, alert.candidate
        assert made.t_shutter_close == pytest.approx(60000.25 + 60 / 86400, abs=1e-9)
        assert made.t_packed == 60000.5
        assert made.depth == seen.diffmaglim == pytest.approx(magnitude(subtracted.limiting_flux, 26.4))
        assert made.pixel_arcsec == pytest.approx(pixel_arcsec(subtracted.chip.raw))
        assert made.quality == subtracted.quality.verdict
        assert (seen.field, seen.target_name, seen.zeropoint) == (412, "0412.123-34", 26.4)
        assert (seen.rb_flags, seen.rb_reasons) == (("crowded", "few_pixels"), ("why",))
        assert seen.magap == pytest.approx(31.4 - 2.5 * np.log10(abs(seen.ap_flux)))
        assert self.sent(self.on_sky(changed, object="bulge"), changed)[0].candidate.field is None

    def test_the_time_of_packing_is_not_in_the_ids(self, changed):
        one, other = (self.sent(changed.subtracted, changed, now=now) for now in (60000.0, 60001.0))
        assert [a.alert_id for a in one] == [a.alert_id for a in other]
        records = [[alert_record(alert) for alert in alerts] for alerts in (one, other)]
        assert records[0] != records[1]
        assert without_times(records[0]) == without_times(records[1])

    def test_bad_pixels_in_the_middle_are_counted(self, changed):
        cutouts = changed.subtracted.candidates.cutouts.copy()
        cutouts[:, 2, 29:34, 29:34] = 0
        cutouts[:, 2, 29, 29], cutouts[:, 2, 33, 30:33], cutouts[:, 2, 28, 31] = np.nan, np.nan, np.nan
        candidates = replace(changed.subtracted.candidates, cutouts=cutouts)
        alerts = self.sent(replace(changed.subtracted, candidates=candidates), changed)
        assert {alert.candidate.nbad for alert in alerts} == {4}

    def test_a_history_gives_name_past_and_type(self, changed):
        alert = self.packed(changed)[1][0]
        history = make_history()
        told = with_history(alert, history)
        assert (told.object_id, told.alert_type) == (history.object.object_id, "update")
        assert told.history == history
        assert (told.alert_id, told.candid) == (alert.alert_id, alert.candid)
        silent = tuple(replace(past, alerted=False) for past in history.detections)
        assert with_history(alert, replace(history, detections=silent)).alert_type == "new"
        assert alert.history is None


RENAMED = ("id", "x_err", "y_err", "xy_cov", "mag", "mag_err", "is_positive", "elongation")


def psf_field(stamp, fwhm, n_stars=50, error=0.0):
    psf = Psf(stamp=(stamp / stamp.sum()).astype(np.float32), fwhm_pix=fwhm, n_stars=n_stars)
    return PsfField.uniform(psf, (310, 350), error=error)


ROUND = psf_field(skies.Seeing(fwhm=4.0).stamp(25), 4.0)
TRAILED = psf_field(skies.Seeing(fwhm=4.0, ratio=0.45, angle_deg=20).stamp(25), 4.0)
LONG = psf_field(skies.Seeing(fwhm=4.0, ratio=0.7, angle_deg=20).stamp(25), 4.0)
DOUGHNUT = psf_field(skies.Seeing(fwhm=9.0).stamp(41) - 0.5 * skies.Seeing(fwhm=5.0).stamp(41), 10.0)
EXPOSURE = ExposureId(Site.CTIO, "20250207", 4413)


def bad_cells(share):
    return Cells(values=(np.arange(10)[None] < 10 * share).astype(np.float32), shape=(310, 350))


class TestQuality:
    def verdict(self, run, *, rms=0.03, std=1.0, left=0, bad=0.0, coverage=1.0, psfs=(ROUND, ROUND), **facts):
        s = run.subtracted
        image = np.random.default_rng(1).normal(0, std, s.difference.score_corr.shape).astype(np.float32)
        image += facts.pop("more", np.float32(0))
        table = s.candidates.table[:left].copy()
        table["flags"] = FLAG_BIT["on_source"]
        scale = facts.pop("scale", [[0.9, 0.92], [0.91, 0.9]])
        area = Cells(values=np.array(facts.pop("area", [[1.0]])), shape=(310, 350))
        error, noise = facts.pop("error", 0.004), facts.pop("noise", 5.0)
        source = facts.pop("gain_source", "given")
        match = replace(
            s.match,
            flux_scale=float(np.median(scale)),
            flux_scale_error=error,
            scale=Cells(values=np.array(scale), shape=(310, 350)),
            science_noise=replace(s.match.science_noise, sigma=5.0),
            template_noise=replace(s.match.template_noise, sigma=noise),
        )
        return judge(
            replace(s.chip, psf=psfs[0], gain_source=source, raw=replace(s.chip.raw, **facts)),
            replace(s.template, psf=psfs[1], coverage=coverage, area=area),
            replace(s.registration, rms_pix=rms, n_matched=20, bad=bad_cells(bad)),
            replace(s.difference, score_corr=image),
            replace(s.candidates, table=table),
            QualityConfig(),
            match=match,
        )

    def test_nothing_odd_passes(self, changed):
        judged = self.verdict(changed)
        assert (judged.verdict, judged.reasons) == ("pass", ())

    @pytest.mark.parametrize(
        ("odd", "reason"),
        [
            ({"rms": 0.2}, "astrometric_rms_pix 0.20 above 0.15"),
            ({"std": 1.5}, "scorr_std 1.50 above 1.2"),
            ({"bad": 0.2}, "bad astrometric cells 0.20 above 0.1"),
            ({"coverage": 0.3}, "template covers 0.30, below 0.5"),
            ({"psfs": (psf_field(ROUND.mean, 4.0, n_stars=5), ROUND)}, "PSF from 5 stars, fewer than 10"),
            ({"psfs": (psf_field(ROUND.mean, 4.0, error=0.05), ROUND)}, "PSF error 0.05 above 0.03"),
            ({"psfs": (ROUND, psf_field(skies.Seeing(fwhm=7.0).stamp(41), 7.0))}, "poor template: FWHM"),
            ({"psfs": (LONG, LONG)}, "trailed: elongation"),
            ({"gain_source": "guess"}, "gain"),
            ({"error": 0.05}, "flux scale error 0.05 above 0.02"),
            ({"noise": 15.0}, "poor template: noise"),
            ({"scale": [[0.9, 0.7], [0.91, 0.9]]}, "clouds: scale range"),
            (
                {"exposure": EXPOSURE, "filter": "V", "exptime": 240.0, "zeropoint": 27.8},
                "clouds: magnitudes lost 1.25 above 0.6",
            ),
        ],
    )
    def test_one_odd_thing_is_one_reason(self, changed, odd, reason):
        judged = self.verdict(changed, **odd)
        assert judged.verdict == "warn"
        assert len(judged.reasons) == 1
        assert judged.reasons[0].startswith(reason)

    @pytest.mark.parametrize(
        "bad",
        [
            {"left": 60},
            {"rms": 0.7},
            {"std": 9.0},
            {"rms": float("nan")},
            {"std": float("nan")},
            {"error": float("nan")},
            {"bad": 1.0},
            {"psfs": (TRAILED, ROUND)},
            {"psfs": (DOUGHNUT, ROUND)},
            {"scale": [[0.9, 0.1], [0.91, 0.9]]},
            {"exposure": EXPOSURE, "filter": "V", "exptime": 120.0, "zeropoint": 24.0},
        ],
    )
    def test_what_cannot_be_used_fails(self, changed, bad):
        assert self.verdict(changed, **bad).verdict == "fail"

    def test_a_clear_sky_has_no_clouds(self, changed):
        clear = {"exposure": EXPOSURE, "filter": "V", "exptime": 240.0, "zeropoint": 28.9}
        assert self.verdict(changed, **clear).verdict == "pass"

    def test_the_pixels_area_is_no_cloud_and_does_not_hide_one(self, changed):
        clouds = [[0.9, 0.7], [0.91, 0.9]]
        bent = np.array([[1.06, 0.98], [1.0, 0.94]])
        clear = self.verdict(changed, scale=0.9 * bent, area=bent)
        assert (clear.verdict, clear.reasons) == ("pass", ())
        for area in (np.ones((2, 2)), bent, 5 * bent):
            judged = self.verdict(changed, scale=clouds * area / np.median(area), area=area)
            assert judged.reasons == ("clouds: scale range over median 0.23 above 0.1",)

    def test_out_of_focus_is_told_in_arcseconds(self, changed):
        wide = psf_field(skies.Seeing(fwhm=16.0).stamp(61), 16.0)
        judged = self.verdict(changed, psfs=(wide, wide), wcs=skies.sky_wcs(pixel=0.4))
        assert judged.verdict == "fail"
        assert judged.reasons == ("bad focus or seeing: FWHM arcsec 6.40 above 6",)

    def test_the_std_is_of_unmasked_pixels(self, changed):
        difference = changed.subtracted.difference
        wild = difference.score_corr.copy()
        wild[difference.flags != 0] = 1e6
        assert scorr_std(replace(difference, score_corr=wild)) == pytest.approx(scorr_std(difference))
        assert np.isnan(scorr_std(replace(difference, flags=difference.flags | np.uint16(PixelFlag.EDGE))))

    @pytest.mark.realdata
    def test_a_trailed_frame_is_refused(self, realdata):
        frame = realdata / "LCOGT+neoexchange/neoexchange/photometrics/tests/banzai_test_frame.fits.fz"
        with pytest.raises(SkipChip, match="trailed"):
            calibrate(read_chip(frame), CalibrateConfig())

    def at_stars(self, run, *, of_flux=0.0, moved=0.0):
        """Return what a share of the stars' flux, and stars ``moved`` by FWHM, leave in S_corr."""
        difference = run.subtracted.difference
        stars = static_stars(run.subtracted.template, difference)
        out = np.zeros(difference.score_corr.shape, dtype=np.float32)
        for x, y, flux in zip(
            np.rint(stars.x).astype(int), np.rint(stars.y).astype(int), stars.flux, strict=True
        ):
            if 2 <= x < out.shape[1] - 2 and 2 <= y < out.shape[0] - 2:
                strength = flux / difference.flux_err[y, x]
                out[y, x] += of_flux * strength
                out[y, [x - 1, x + 1]] += np.array([-1, 1]) * moved * strength
        return out

    def test_a_scale_that_stars_show_wrong_is_told(self, changed):
        assert not any("stars" in reason for reason in self.verdict(changed).reasons)
        seen = self.verdict(changed, more=self.at_stars(changed, of_flux=0.05))
        assert any(reason.startswith("flux scale left in stars 0.05 above 0.02") for reason in seen.reasons)
        assert not any(
            "left" in r for r in self.verdict(changed, more=self.at_stars(changed, of_flux=0.005)).reasons
        )

    def test_dipoles_at_stars_are_told(self, changed):
        seen = self.verdict(changed, more=self.at_stars(changed, moved=0.2))
        assert any("share of dipoles" in reason for reason in seen.reasons)
        assert any("rms of S_corr" in reason for reason in seen.reasons)
