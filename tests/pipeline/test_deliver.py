"""What a pair leaves behind, and that it leaves the same when run again."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.packets import read_container, without_times
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.deliver import DELIVERY_DEADLINE_S, run_pair
from ks4diff.pipeline.pair import exposure_id, process_pair
from ks4diff.products.errors import ConfigError, SkipChip
from tests import skies
from tests.broker.broker import black_hole, free_port
from tests.pipeline.test_report import CHIP_KEYS, RUN_KEYS

SAME = ("candidates.fits", "difference.fits")


@pytest.fixture(scope="module")
def pair():
    stars = skies.star_field(101, (310, 350), 900)
    x, y = np.array([101.2, 222.7, 60.4]), np.array([88.3, 199.6, 240.1])
    new = skies.Stars(x=x[:2], y=y[:2], flux=np.array([9000.0, 6000.0]))
    gone = skies.Stars(x=x[2:], y=y[2:], flux=np.array([8000.0]))
    return skies.Scene(stars=stars, new=new, gone=gone).make(101)


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    return out, run_pair(pair.science, pair.template, out, PipelineConfig())


def test_every_promised_file_is_there(done):
    out, outcome = done
    for name in (*SAME, "alerts.avro", "report.json"):
        assert (out / name).stat().st_size > 0
    assert list((out / "triplets").glob("*.png"))
    assert not list(out.rglob("*.tmp*"))
    assert outcome.undelivered == 0
    assert all(path.exists() for path in outcome.files)


def test_they_agree_with_each_other(done):
    out, outcome = done
    report = json.loads((out / "report.json").read_text())
    assert set(report) >= RUN_KEYS
    chip = report["chips"][0]
    assert set(chip) >= CHIP_KEYS
    table = fits.getdata(out / "candidates.fits", 1)
    records = read_container(out / "alerts.avro").records
    assert len(table) == chip["n_candidates"]
    assert len(records) == chip["n_alerts"] == len(outcome.records) == 3
    assert chip["n_alerts"] + sum(chip["dropped"].values()) == chip["n_candidates"]
    assert {record["exposure"] if "exposure" in record else report["exposure"] for record in records} == {
        report["exposure"]
    }
    # three changes of S/N 50 and more widen the score, whose std has sources in it
    assert chip["quality"] == "warn"
    assert [reason.split()[0] for reason in chip["quality_reasons"]] == ["scorr_std"]
    assert set(chip["seconds"]) >= {"calibrate", "register", "align", "match", "subtract", "detect"}


def test_a_rerun_writes_the_same_bytes(pair, done, tmp_path):
    out, _ = done
    again = tmp_path / "again"
    run_pair(pair.science, pair.template, again, PipelineConfig())
    for name in SAME:
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    alerts = [read_container(folder / "alerts.avro").records for folder in (out, again)]
    assert without_times(alerts[0]) == without_times(alerts[1]) != []
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (out, again))
    for report in (one, other):
        for name in ("seconds_total", "peak_rss_mb"):
            report.pop(name)
        report["chips"][0].pop("seconds")
    assert one == other


def test_a_rerun_into_the_same_folder_doubles_nothing(pair, done):
    out, _ = done
    before = {path: path.read_bytes() for path in map(out.joinpath, SAME)}
    alerts = read_container(out / "alerts.avro").records
    (out / "triplets" / "stale.png").write_bytes(b"of an earlier run")
    run_pair(pair.science, pair.template, out, PipelineConfig())
    assert {path: path.read_bytes() for path in before} == before
    assert without_times(read_container(out / "alerts.avro").records) == without_times(alerts)
    assert not (out / "triplets" / "stale.png").exists()


def test_a_refused_pair_leaves_nothing(pair, tmp_path):
    noise = skies.expose((310, 350), [], [], [], skies.SHARP, 5)
    for science, template in (
        (pair.science, skies.raw_chip(noise, skies.SHARP)),
        (skies.raw_chip(noise, skies.SHARP), pair.template),
    ):
        with pytest.raises(SkipChip, match=r"made/sky.fits, HDU 0: too few stars"):
            run_pair(science, template, tmp_path / "out", PipelineConfig())
    other = skies.Scene(n_stars=900).make(999)
    with pytest.raises(SkipChip, match="do not show the same stars"):
        run_pair(pair.science, other.template, tmp_path / "out", PipelineConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(pair, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="--out"):
        run_pair(pair.science, pair.template, tmp_path / "file", PipelineConfig())
    assert (tmp_path / "file").read_text() == "mine"


def test_without_a_broker_alerts_wait(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("ks4diff.pipeline.deliver.DELIVERY_DEADLINE_S", 1.0)
    outcome = run_pair(
        pair.science, pair.template, tmp_path / "out", PipelineConfig(), kafka=f"127.0.0.1:{free_port()}"
    )
    assert outcome.undelivered == outcome.delivery.waiting == 4  # three alerts, and that the exposure is done
    assert (tmp_path / "out" / "report.json").exists()
    assert len(read_container(tmp_path / "out" / "alerts.avro").records) == 3


def test_what_is_to_be_sent_is_on_disk_before_the_report_is(pair, tmp_path, monkeypatch):
    """The report says that an exposure is done; whoever has it may rely on its alerts being sent."""
    out, seen = tmp_path / "out", []

    def watched(path, data):
        if path.name == "report.json":
            assert len(read_container(out / "alerts.avro").records) == 3
            (done,) = read_container(out / "exposure.avro").records
            assert done["n_alerts"] == 3
            with closing(sqlite3.connect(f"file:{out}/outbox.db?mode=ro", uri=True)) as db:
                seen.extend(db.execute("SELECT topic, state FROM outbox ORDER BY seq"))
            # another process's view: what it sees is committed, and commits are synced (test_outbox.py)
        atomic_write_bytes(path, data)

    monkeypatch.setattr("ks4diff.pipeline.ledger.atomic_write_bytes", watched)
    monkeypatch.setattr("ks4diff.pipeline.deliver.DELIVERY_DEADLINE_S", 1.0)
    run_pair(pair.science, pair.template, out, PipelineConfig(), kafka=f"127.0.0.1:{free_port()}")
    assert seen == [("ks4.alerts.v1", "pending")] * 3 + [("ks4.exposures.v1", "pending")]


def test_an_exposure_without_alerts_is_told_as_done(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("ks4diff.pipeline.deliver.DELIVERY_DEADLINE_S", 1.0)
    outcome = run_pair(
        pair.science,
        pair.template,
        tmp_path,
        replace(PipelineConfig(), min_rb=1.0),
        kafka=f"127.0.0.1:{free_port()}",
    )
    assert (outcome.records, outcome.undelivered) == ([], 1)
    (done,) = read_container(tmp_path / "exposure.avro").records
    assert (done["n_alerts"], done["status"]) == (0, "complete")
    assert done["n_candidates"] == outcome.report.chips[0].n_candidates > 0


def test_a_broker_that_never_answers_costs_its_deadline_at_most(pair, tmp_path):
    with black_hole() as servers:
        started = time.monotonic()
        outcome = run_pair(pair.science, pair.template, tmp_path, PipelineConfig(), kafka=servers)
        waited = time.monotonic() - started - outcome.report.seconds_total
    assert outcome.delivery.waiting == 4
    assert (tmp_path / "report.json").exists()
    assert waited < DELIVERY_DEADLINE_S


def test_a_malformed_broker_is_refused_before_any_work(pair, tmp_path):
    with pytest.raises(ConfigError):
        run_pair(pair.science, pair.template, tmp_path / "out", PipelineConfig(), kafka="no port")
    assert not (tmp_path / "out").exists()


def test_an_exposure_is_its_name_and_its_pixels(pair):
    here = exposure_id(pair.science)
    assert here.startswith("new-")
    assert exposure_id(replace(pair.science, file="/elsewhere/new.fits.fz")) == here
    assert exposure_id(replace(pair.science, file="other.fits")) != here
    data = pair.science.data.copy()
    data[7, 9] += 1
    assert exposure_id(replace(pair.science, data=data)) != here


def test_fluxes_in_nanojansky_with_a_zero_point(pair):
    plain = process_pair(pair.science, pair.template, PipelineConfig()).subtracted.candidates
    # 26.4 AB of one count is 100 nJy
    known = replace(pair.science, zeropoint=26.4)
    result = process_pair(known, pair.template, PipelineConfig())
    candidates = result.subtracted.candidates
    assert (plain.flux_unit, candidates.flux_unit) == ("count", "nJy")
    for name in ("flux", "flux_err", "ap_flux", "template_flux"):
        np.testing.assert_allclose(candidates.table[name], 100 * plain.table[name], rtol=1e-5)
    expected = 31.4 - 2.5 * np.log10(np.abs(candidates.table["flux"]))
    np.testing.assert_allclose(candidates.table["mag"], expected, rtol=1e-6)
    assert result.report.limiting_mag == pytest.approx(31.4 - 2.5 * np.log10(result.report.limiting_flux))
    assert {alert.candidate.flux_unit for alert in result.alerts} == {"nJy"}


def test_a_wcs_gives_places_and_arcseconds(pair):
    wcs = skies.sky_wcs()
    known = replace(pair.science, wcs=wcs)
    result = process_pair(known, pair.template, PipelineConfig())
    table = result.subtracted.candidates.table
    x, y = wcs.all_world2pix(table["ra"], table["dec"], 0)
    np.testing.assert_allclose([x, y], [table["x"], table["y"]], atol=1e-6)
    assert result.report.seeing_arcsec == pytest.approx(0.4 * result.report.seeing_pix, rel=1e-4)
