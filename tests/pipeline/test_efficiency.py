"""Injected sources come back as many and as bright as they went in, and the report counts them right."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io.charts import Panel, Series, write_chart
from ks4diff.pipeline import efficiency as pipeline_efficiency
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.efficiency import (
    ChipEfficiency,
    ChipOutcome,
    EfficiencyConfig,
    Unflagged,
    measure_chip,
    pair_subject,
    round_seed,
)
from ks4diff.pipeline.efficiency_report import (
    FULL_CHIP_MPIX,
    efficiency_panels,
    efficiency_report,
    half_efficiency,
)
from ks4diff.products.errors import SkipChip
from ks4diff.stages.inject import InjectConfig
from ks4diff.stages.recover import ALERT, FLAGGED, MISSED, RECOVERED, UNFLAGGED, efficiency
from tests import skies

PLENTY = EfficiencyConfig(rounds=2, inject=InjectConfig(seed=4, per_mpix=150, snr_range=(8.0, 90.0)))


@pytest.fixture(scope="module")
def pair():
    """Return (science, template) as read: stars, one new source."""
    shape = (380, 420)
    stars = skies.star_field(7, shape, 900)
    bright = skies.Stars(**{n: getattr(stars, n)[stars.flux > 2000] for n in ("x", "y", "flux")})
    x, y = skies.apart([7, 1], shape, 1, bright)
    scene = skies.Scene(
        shape=shape,
        template_shape=(440, 480),
        stars=stars,
        new=skies.Stars(x=x, y=y, flux=np.array([9000.0])),
        geometry=skies.Geometry(shift=(28.4, 19.3)),
    )
    made = scene.make(7)
    return made.science, made.template


@pytest.fixture(scope="module")
def measured(pair):
    config = PipelineConfig()
    return measure_chip(pair_subject(*pair, config), config, PLENTY)


class TestAChip:
    def test_bright_sources_come_back_with_their_flux_and_place(self, measured):
        rows = measured.rows
        (bright,) = efficiency(rows, rows["snr"], (15.0, np.inf), 1.96)
        assert bright.injected >= 10
        assert bright.unflagged.fraction >= 0.85
        assert bright.flux_bias == pytest.approx(0, abs=0.05)
        assert 0.6 < bright.pull < 1.6
        assert bright.scatter < 0.6

    def test_what_the_exposure_itself_holds_is_told_apart(self, measured):
        assert measured.plain.alert.sum() >= 1
        assert measured.plain.scorr.max() > 20
        # the new source is no false alert of an injection
        assert max(made.scorr.max(initial=0) for made in measured.made) < 20

    def test_rounds_differ_and_reruns_do_not(self, pair, measured):
        config = PipelineConfig()
        subject = pair_subject(*pair, config)
        before = pair[0].data.copy()
        again = measure_chip(subject, config, replace(PLENTY, rounds=1))
        assert (pair[0].data == before).all()
        first = measured.rows[: len(again.rows)]
        assert all(np.array_equal(first[name], again.rows[name], equal_nan=True) for name in RECOVERED.names)
        assert len(set(measured.seeds)) == 2
        assert measured.seeds[0] == again.seeds[0] == round_seed(4, subject, 0)
        assert round_seed(5, subject, 0) != measured.seeds[0]

    def test_no_rounds_are_refused(self):
        with pytest.raises(ValueError, match="rounds"):
            EfficiencyConfig(rounds=0)


def made_chip(became, snr, flux=1000.0, zeropoint=None, **more):
    rows = np.zeros(len(became), RECOVERED)
    rows["became"], rows["snr"], rows["flux"] = became, snr, flux
    rows["found"], rows["error"] = flux, flux / 10
    none = Unflagged(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))
    facts = {"mpix": FULL_CHIP_MPIX / 2, "quality": "pass", "seeds": (1, 2), "taken": 0}
    values = {"plain": none, "made": (none, none), **facts, **more}
    return ChipEfficiency(exposure="e", chip="K", zeropoint=zeropoint, rows=rows, **values)


def outcome(chip):
    return ChipOutcome(exposure="e", chip="K", status="ok", reason=None, measured=chip)


class TestTheReport:
    def test_shares_are_counted_by_snr(self):
        chip = made_chip([MISSED, FLAGGED, UNFLAGGED, ALERT, ALERT], [5.5, 5.5, 5.5, 5.5, 12.0])
        report = efficiency_report([outcome(chip)], PipelineConfig(), EfficiencyConfig())
        five = next(one for one in report["snr"]["bins"] if one["low"] == 5.0)
        counts = [five[name]["count"] for name in ("detected", "unflagged", "alerts")]
        assert (five["injected"], counts) == (4, [3, 2, 1])
        assert report["snr"]["bins"][-1]["high"] is None
        assert report["interval"] == pytest.approx(0.95, abs=1e-3)
        assert report["places"]["field"]["injected"] == 1
        json.dumps(report, allow_nan=False)

    def test_magnitudes_are_ab_only_where_all_zero_points_are_known(self):
        known = made_chip([ALERT], [9.0], zeropoint=30.0)
        config = PipelineConfig(), EfficiencyConfig()
        told = efficiency_report([outcome(known)], *config)["magnitude"]
        assert told["system"] == "AB"
        (one,) = [b for b in told["bins"] if b["injected"]]
        assert one["low"] <= 22.5 < one["high"]
        both = [outcome(known), outcome(made_chip([ALERT], [9.0]))]
        assert efficiency_report(both, *config)["magnitude"]["system"] != "AB"

    def test_false_alerts_are_counted_above_thresholds_and_for_a_full_chip(self):
        plain = Unflagged(np.array([5.2, 6.5, 30.0]), np.array([0.2, 0.6, 0.9]), np.ones(3, dtype=bool))
        one = Unflagged(np.array([7.0]), np.array([0.7]), np.ones(1, dtype=bool))
        none = Unflagged(*(part[:0] for part in one))
        chip = made_chip([ALERT], [9.0], plain=plain, made=(one, none))
        false = efficiency_report([outcome(chip)], PipelineConfig(min_rb=0.5), EfficiencyConfig())[
            "false_alerts"
        ]
        by_rb = {row["rb"]: row for row in false["by_rb"]}
        assert [by_rb[least]["plain"] for least in (0.1, 0.5, 0.8)] == [3, 2, 1]
        assert by_rb[0.5]["plain_per_full_chip"] == pytest.approx(4)
        assert (by_rb[0.5]["made_per_chip"], by_rb[0.5]["made_per_full_chip"]) == (0.5, pytest.approx(1))
        by_scorr = {row["scorr"]: row["plain"] for row in false["by_scorr"]}
        assert (by_scorr[5.0], by_scorr[7.0]) == (2, 1)

    def test_a_half_is_where_the_line_between_bins_crosses_it(self):
        rows = np.ones(20, RECOVERED)
        rows["became"] = MISSED
        rows["became"][:8], rows["became"][10:12] = ALERT, ALERT
        value = np.repeat([1.5, 2.5], 10)
        assert half_efficiency(efficiency(rows, value, (1.0, 2.0, 3.0), 1.0)) == pytest.approx(2.0)
        assert half_efficiency(efficiency(rows, value, (1.0, 2.0), 1.0)) is None

    def test_without_any_chip_there_is_a_report_and_a_figure(self, tmp_path):
        skipped = ChipOutcome(exposure="e", chip="K", status="skipped", reason="no stars", measured=None)
        report = efficiency_report([skipped], PipelineConfig(), EfficiencyConfig())
        assert report["chips"] == [{"exposure": "e", "chip": "K", "status": "skipped", "reason": "no stars"}]
        write_chart(tmp_path / "a.png", efficiency_panels(report))
        assert (tmp_path / "a.png").stat().st_size > 1000


def test_equal_charts_are_equal_files_and_points_show(tmp_path):
    points = Series(label="a", x=[1, 2], y=[0.2, np.nan], low=[0, 0], high=[1, 1])
    panel = Panel(title="t", x_label="x", y_label="y", series=[points])
    for name, series in (("a", panel.series), ("b", panel.series), ("c", [])):
        write_chart(tmp_path / name, [replace(panel, series=series)], columns=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    a, c = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("a", "c"))
    assert a.shape == c.shape
    assert (a != c).any(axis=2).sum() > 20


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Return a folder with one simulated exposure of one chip and its template store."""
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    folder = tmp_path_factory.mktemp("sky")
    night = ["--preset", "tiny", "--band", "R", "--form", "trimmed", "--seed", "5", "--exposures", "1"]
    words = [*night, "--chips", "M", "--size", "768x700"]
    assert CliRunner().invoke(app, ["simulate", str(folder), *words]).exit_code == 0
    tiles = sorted(map(str, folder.glob("templates/*/*.fits")))
    assert CliRunner().invoke(app, ["templates", "add", str(folder / "store"), *tiles]).exit_code == 0
    return folder


def ran(*words):
    return CliRunner().invoke(app, ["efficiency", *map(str, words)])


class TestTheCommand:
    def test_exposures_against_a_store(self, sky, tmp_path):
        def digests():
            files = sorted(path for path in sky.rglob("*") if path.is_file())
            return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

        before = digests()
        done = ran(
            sky / "raw", "--templates", sky / "store", "--out", tmp_path, "--rounds", 1, "--per-mpix", 60
        )
        assert done.exit_code == 0, done.output
        assert before.items() <= digests().items()  # the store indexes itself, at its first use
        report = json.loads((tmp_path / "efficiency.json").read_text())
        (chip,) = report["chips"]
        assert (chip["chip"], chip["status"]) == ("M", "ok")
        assert chip["injected"] > 15
        assert report["magnitude"]["system"] == "AB"
        assert sum(one["injected"] for one in report["snr"]["bins"]) <= chip["injected"]
        strong = [one for one in report["snr"]["bins"] if one["low"] >= 10]
        found = sum(one["unflagged"]["count"] for one in strong)
        assert found >= 0.8 * sum(one["injected"] for one in strong) > 3
        with Image.open(tmp_path / "efficiency.png") as figure:
            assert figure.width > 800

    def test_a_chip_that_fails_gives_code_4(self, sky, tmp_path, monkeypatch):
        def broken(*_):
            raise KeyError("amplifier")

        monkeypatch.setattr(pipeline_efficiency, "prepared", broken)
        done = ran(sky / "raw", "--templates", sky / "store", "--out", tmp_path, "--rounds", 1)
        assert done.exit_code == 4
        (chip,) = json.loads((tmp_path / "efficiency.json").read_text())["chips"]
        assert chip["status"] == "failed"
        assert "KeyError" in chip["reason"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["a.fits"], "exactly two images"),
            (["a.fits", "b.fits", "--snr", "9", "5"], "snr_range"),
            (["a.fits", "--templates", ".", "--gain", "2"], "--gain"),
            (["a.fits", "--templates", ".", "--chips", "K,X"], "--chips X"),
        ],
    )
    def test_bad_usage_is_one_line(self, words, said, tmp_path):
        done = ran(*words, "--out", tmp_path / "out")
        assert said in str(done.exception)
        assert not (tmp_path / "out").exists()

    def test_a_pair_that_cannot_be_subtracted_stops_the_command(self, tmp_path, monkeypatch):
        def skip(*_):
            raise SkipChip("too few stars")

        monkeypatch.setattr(pipeline_efficiency, "subtract_chips", skip)
        sample = "templates/sample/AKB13475I0028.fits"
        done = ran(sample, sample, "--out", tmp_path / "out")
        assert isinstance(done.exception, SkipChip)
        assert not (tmp_path / "out").exists()
