"""The history of a run from the command line: objects over exposures, forced photometry, a database away."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io.fits_tables import read_candidates
from ks4diff.io.history import History
from ks4diff.io.outbox import read_status
from ks4diff.io.packets import read_container
from ks4diff.pipeline import run as pipeline_run
from ks4diff.pipeline.deliver import DELIVERY_DEADLINE_S
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.errors import SkipChip
from ks4diff.products.sightings import MEASURED
from ks4diff.stages.package import candid
from tests.broker.broker import black_hole

NJY_ZEROPOINT = 31.4
SIZE = "896x960"


def invoke(words, code=0):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Return a folder with a simulated visit of two R exposures of one chip, its store and its truth."""
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    folder = tmp_path_factory.mktemp("sky")
    night = ["--preset", "tiny", "--band", "R", "--form", "raw-mef", "--seed", "6", "--exposures", "2"]
    invoke(["simulate", folder, *night, "--chips", "K", "--size", SIZE])
    invoke(["templates", "add", folder / "store", *sorted(folder.glob("templates/*/*.fits"))])
    return folder


@pytest.fixture(scope="module")
def done(sky, tmp_path_factory):
    """Return the output folder of a run over that visit, moved after it ended."""
    out = tmp_path_factory.mktemp("out")
    invoke(["run", sky / "raw", "--templates", sky / "store", "--out", out / "first"])
    return (out / "first").rename(out / "moved")


def alerts_of(out):
    return [read_container(path).records for path in sorted(out.glob("*/*/alerts.avro"))]


def test_an_alert_tells_its_objects_past(done):
    first, second = alerts_of(done)
    before = {alert["objectId"]: alert for alert in first}
    again = [alert for alert in second if alert["objectId"] in before]
    assert len(again) > 8
    pulls = []
    for alert in again:
        earlier = before[alert["objectId"]]
        (past,), (forced,) = alert["prv_candidates"], alert["fp_hists"]
        assert (past["candid"], past["psfFlux"]) == (earlier["candid"], earlier["candidate"]["psfFlux"])
        assert past["exposure"] == forced["exposure"] == earlier["exposure"]
        assert alert["alertType"] == "update"
        assert alert["prv_nondetections"] == []
        assert alert["object"]["nDetections"] == alert["object"]["nCovered"] == 2
        pulls.append((forced["forcediffimflux"] - past["psfFlux"]) / forced["forcediffimfluxunc"])
    # the same image at the mean of two positions, not at its own peak: a small part of the error
    assert np.abs(pulls).max() < 1
    assert [alert["prv_candidates"] for alert in first if alert["prv_candidates"]] == []


def test_the_report_says_how_many_objects_are_new(done):
    reports = [json.loads(path.read_text()) for path in sorted(done.glob("*/*/report.json"))]
    told = [report["association"] for report in reports]
    assert [one["status"] for one in told] == ["done", "done"]
    assert told[0]["n_new_objects"] >= len({alert["objectId"] for alert in alerts_of(done)[0]})
    assert told[1]["n_new_objects"] < told[1]["n_associated"]


def test_every_candidate_is_in_the_history_as_it_was_measured(done):
    with History(None, done).reading() as reader:
        rows = {row["candid"]: row for row in reader.detections()}
    tables = {path: read_candidates(path).table for path in sorted(done.glob("*/*/K/candidates.fits"))}
    assert len(rows) == sum(map(len, tables.values())) > 100
    alerts = {alert["candid"]: alert["objectId"] for found in alerts_of(done) for alert in found}
    for path, table in tables.items():
        for k, measured in enumerate(table):
            row = rows[candid(path.parent.parent.name, "K", k)]
            for name in MEASURED:
                value = float(measured[name])
                assert row[name] == (value if np.isfinite(value) else None)
            assert row["flags"] == measured["flags"]
            assert row["rejected"] == bool(measured["flags"] & REJECTING_BITS)
            assert row["accepted"] == (row["candid"] in alerts)
            if row["accepted"]:
                assert row["object_id"] == alerts[row["candid"]]
            # 0.4" pixels; the same error along both axes or not
            mean = np.hypot(float(measured["x_err"]), float(measured["y_err"])) / 2**0.5
            assert row["err_arcsec"] == pytest.approx(0.4 * mean, rel=0.05)


class TestForced:
    def truth(self, sky):
        path = sorted(sky.glob("truth/kmt*.K.truth.fits"))[0]
        table = fits.getdata(path, "SOURCES")
        inside = (table["x"] > 40) & (table["x"] < 850) & (table["y"] > 40) & (table["y"] < 910)
        return table[inside & np.isfinite(table["expected_scorr"])]

    def curve(self, out, ra, dec, *words):
        where = ["--ra", f"{ra:.7f}", "--dec", f"{dec:.7f}"]
        return invoke(["forced", *where, "--out", out, *words])

    def test_measures_what_is_there(self, sky, done):
        truth = self.truth(sky)
        new = truth[np.isin(truth["kind"], ["hostless"]) & (truth["expected_scorr"] > 15)]
        assert len(new) >= 4
        ratios = []
        for source in new:
            points = json.loads(self.curve(done, source["ra"], source["dec"], "--json").stdout)["points"]
            points = [point for point in points if not point["flags"]]
            ratios += [point["flux"] / 10 ** (0.4 * (NJY_ZEROPOINT - source["mag"])) for point in points]
        assert np.median(ratios) == pytest.approx(1, abs=0.06)

    def test_prints_a_table_in_order_of_time(self, sky, done):
        source = self.truth(sky)[0]
        lines = self.curve(done, source["ra"], source["dec"]).stdout.splitlines()
        assert len(lines) == 3
        assert lines[0].split()[:5] == ["mjd", "exposure", "chip", "band", "nJy"]
        times = [float(line.split()[0]) for line in lines[1:]]
        assert times == sorted(times)

    def test_says_what_is_not_kept_any_more(self, sky, done, tmp_path):
        out = shutil.copytree(done, tmp_path / "out")
        next(out.glob("*/*/K/kept.fits")).unlink()
        source = self.truth(sky)[0]
        told = self.curve(out, source["ra"], source["dec"], "--json")
        assert json.loads(told.stdout)["n_not_kept"] == 1
        assert "not kept any more: 1" in told.stderr

    def test_subtracts_again_what_is_not_kept_any_more(self, sky, done, tmp_path):
        out = shutil.copytree(done, tmp_path / "out")
        source = self.truth(sky)[0]
        where = (out, source["ra"], source["dec"], "--json")
        kept = json.loads(self.curve(*where).stdout)["points"]
        lost = sorted(out.glob("*/*/K/kept.fits"))[1]
        lost.unlink()
        with_raw = ("--raw", sky / "raw", "--templates", sky / "store")
        again = json.loads(self.curve(*where, *with_raw).stdout)
        assert (again["points"], again["n_not_kept"]) == (kept, 0)
        assert not lost.exists()
        (other,) = {path for path in (sky / "raw").glob("*/*.fits") if lost.parts[-3] not in path.name}
        told = self.curve(*where, "--raw", other, "--templates", sky / "store")
        assert json.loads(told.stdout)["n_not_kept"] == 1

    def test_off_the_chip_there_is_nothing(self, done):
        told = json.loads(self.curve(done, 10.0, 45.0, "--json").stdout)
        assert (told["points"], told["n_not_kept"]) == ([], 0)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--ra", 1, "--dec", 2], "--out"),
            (["--ra", 1, "--dec", 91, "--out", "."], "no position"),
            (["--ra", 1, "--dec", 2, "--out", ".", "--raw", "x"], "go together"),
            (["--ra", 1, "--dec", 2, "--out", "nowhere"], "no such history"),
            (["--ra", 1, "--dec", 2, "--database", "sqlite:///nowhere.db"], "no such history"),
        ],
    )
    def test_refuses_in_one_line(self, words, message):
        result = CliRunner().invoke(app, ["forced", *map(str, words)])
        assert message in str(result.exception)


class TestADatabaseAway:
    def test_delays_the_alerts_and_fails_no_image(self, sky, postgres_server, tmp_path, monkeypatch):
        url = postgres_server.create("run")
        first, second = sorted((sky / "raw").glob("*/*.fits"))
        words = ["--templates", sky / "store", "--out", tmp_path, "--database", url]
        postgres_server.stop()
        try:
            told = invoke(["run", first, *words], code=3)
        finally:
            postgres_server.start()
        assert "wait for the history: 1" in told.stderr
        (folder,) = tmp_path.glob("*/kmt*")
        report = json.loads((folder / "report.json").read_text())
        assert report["association"] == {"status": "waiting"}
        assert report["chips"][0]["n_alerts"] > 5
        assert not (folder / "alerts.avro").exists()

        monkeypatch.setattr(pipeline_run, "process_chip", skip)
        invoke(["run", second, *words])
        report = json.loads((folder / "report.json").read_text())
        assert report["association"]["status"] == "done"
        assert len(read_container(folder / "alerts.avro").records) == report["chips"][0]["n_alerts"]

    def test_a_wrong_name_stops_before_any_image(self, sky, postgres_server, tmp_path):
        words = ["run", sky / "raw", "--templates", sky / "store", "--out", tmp_path / "out"]
        result = CliRunner().invoke(app, [*map(str, words), "--database", postgres_server.url("nowhere")])
        assert 'database "nowhere" does not exist' in str(result.exception)
        assert list(tmp_path.glob("out/2*")) == []


@pytest.mark.kafka
def test_a_broker_that_never_answers_fails_no_image(sky, tmp_path, kafka_broker, monkeypatch):
    first, second = sorted((sky / "raw").glob("*/*.fits"))
    words = ["--templates", sky / "store", "--out", tmp_path, "--json", "--topic", "test.after-a-black-hole"]
    with black_hole() as servers:
        started = time.monotonic()
        told = invoke(["run", first, *words, "--kafka", servers], code=3)
        waited = time.monotonic() - started
    report = json.loads(told.stdout)
    assert waited - report["seconds_total"] < DELIVERY_DEADLINE_S + 10  # imports, and reading the folder
    assert report["chips"][0]["status"] == "ok"
    (folder,) = tmp_path.glob("*/kmt*")
    n_alerts = len(read_container(folder / "alerts.avro").records)
    assert n_alerts == report["chips"][0]["n_alerts"] > 5
    assert f"undelivered, in the outbox: {n_alerts + 1}" in told.stderr
    (done,) = read_container(folder / "exposure.avro").records
    assert (done["exposure"], done["n_alerts"]) == (report["exposure"], n_alerts)

    monkeypatch.setattr(pipeline_run, "process_chip", skip)
    invoke(["run", second, *words, "--kafka", kafka_broker.servers])  # sends what the first left
    counts = read_status(tmp_path / "outbox.db").counts
    assert counts["acknowledged"] == sum(counts.values()) == n_alerts + 2


def skip(*_):
    raise SkipChip("the second exposure is not what this is about")
