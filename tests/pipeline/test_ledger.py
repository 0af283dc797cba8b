"""Exposures through the queue into the history: one writer at a time, outages and ends; nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io import history_engine
from ks4diff.io.history import History, HistoryWriter
from ks4diff.io.packets import read_container
from ks4diff.io.sinks import ArchiveSink
from ks4diff.pipeline import ledger as ledger_module
from ks4diff.pipeline.ledger import Ledger, begin, close_exposure, settle, submit
from ks4diff.products.errors import ConfigError, HistoryUnavailable, InputError
from tests.seasons import CONFIG, MJD, at, contents, put, run_report, season, sightings, told

SHARED = "shared"  # the folder that four processes have in common


@pytest.fixture(scope="module")
def database(postgres_server):
    """Return a function that makes a fresh PostgreSQL database and returns its URL."""
    made = iter(f"history{k}" for k in range(100))
    return lambda: postgres_server.create(next(made))


class TestBothDatabases:
    def test_give_the_same(self, database, tmp_path):
        run = season(4, n_sources=40, side_deg=0.12).exposures
        histories = History(None, tmp_path), History(database(), tmp_path)
        alerts = [put(history, tmp_path, *run, run[3]) for history in histories]
        assert len(alerts[0]) > 350
        assert {k: told(a) for k, a in alerts[0].items()} == {k: told(a) for k, a in alerts[1].items()}
        assert contents(histories[0]) == contents(histories[1])

    def test_four_processes_at_once_lose_nothing(self, database, tmp_path):
        urls = {
            tmp_path / "lite": f"sqlite:///{tmp_path}/h.db",
            tmp_path / "server": database(),
            tmp_path / SHARED: f"sqlite:///{tmp_path}/shared.db",
        }
        run = season(5, n_sources=20, side_deg=0.1, nights=4, visits=4).exposures
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(4)
        workers = [context.Process(target=submit_all, args=(urls, k, run[k::4], gate)) for k in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(240)
            assert worker.exitcode == 0
        for out, url in urls.items():
            exposures, objects, detections = contents(History(url, out))
            assert len(exposures) == 16
            assert len(detections) == sum(len(one.table) for one in run)
            assert all(row["object_id"] for row in detections)
            found = [
                record for folder in {folder_of(out, k) for k in range(4)} for record in delivered(folder)
            ]
            assert sorted(record["candid"] for record in found) == [row["candid"] for row in detections]
            assert {row["object_id"] for row in objects} == {record["objectId"] for record in found}
            stand = sum(row["is_primary"] for row in detections)
            assert sum(row["n_detections"] for row in objects) == stand


def ledger_of(url, out):
    """A ledger whose alerts go to one file an exposure."""
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(
        history=History(url, out),
        out=out,
        config=CONFIG,
        sink=ArchiveSink(lambda exposure: out / f"{exposure}.avro", database=out / "index.db"),
        report_of=lambda one: out / f"{one.exposure}.json",
    )


def submit_all(urls, number, exposures, gate):
    """Submit exposures to each database, at the same time as the other processes."""
    for out, url in urls.items():
        ledger = ledger_of(url, folder_of(out, number))
        gate.wait(120)
        for one in exposures:
            assert submit(one, ledger).association["status"] == "done"


def folder_of(out, number):
    """Each process has its own folder, and its own queue, but for one that all share."""
    return out if out.name == SHARED else out / str(number)


def delivered(out):
    return [record for path in sorted(Path(out).glob("*.avro")) for record in read_container(path).records]


class TestOutages:
    def test_delay_association_and_lose_nothing(self, postgres_server, database, tmp_path):
        run = season(6, n_sources=30, side_deg=0.1, nights=2).exposures
        calm, rough = ledger_of(database(), tmp_path / "calm"), ledger_of(database(), tmp_path / "rough")
        for one in run:
            submit(one, calm)
        found = [submit(one, rough).association["status"] for one in run[:3]]
        postgres_server.stop()
        try:
            found += [submit(one, rough).association["status"] for one in reversed(run[3:6])]
            with pytest.raises(HistoryUnavailable):
                contents(rough.history)
        finally:
            postgres_server.start()
        assert found == ["done"] * 3 + ["waiting"] * 3
        assert len(list((tmp_path / "rough").glob("*.avro"))) == 3
        assert rough.spool.waiting() == 3
        found = [submit(one, rough).association["status"] for one in run[6:]]
        assert found == ["done"] * 2
        assert rough.spool.waiting() == 0
        assert contents(rough.history) == contents(calm.history)
        for one in run:
            name = f"{one.exposure}.avro"
            assert (tmp_path / "rough" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()

    def test_in_the_middle_of_a_transaction_store_nothing_of_it(
        self, postgres_server, database, tmp_path, monkeypatch
    ):
        ledger, one = ledger_of(database(), tmp_path), sightings(0, MJD, *at([0, 40]))
        begin(ledger)
        real = HistoryWriter.add

        def cut_off(writer, *words):
            real(writer, *words)
            postgres_server.stop()

        monkeypatch.setattr(HistoryWriter, "add", cut_off)
        try:
            assert submit(one, ledger).association == {"status": "waiting"}
        finally:
            postgres_server.start()
        monkeypatch.undo()
        assert contents(ledger.history) == ([], [], [])
        begin(ledger)
        assert len(contents(ledger.history)[2]) == 2
        assert len(delivered(tmp_path)) == 2

    def test_an_end_between_storing_and_delivering_loses_nothing(self, tmp_path):
        one = sightings(0, MJD, *at([0, 40]))
        ledger = ledger_of(None, tmp_path)

        class Torn(ArchiveSink):
            def emit(self, exposure, records):
                raise KeyboardInterrupt

        torn = Torn(ledger.sink.path_of, database=tmp_path / "index.db")
        with pytest.raises(KeyboardInterrupt):
            submit(one, replace(ledger, sink=torn))
        assert delivered(tmp_path) == []
        begin(ledger)  # the next start
        assert [record["candid"] for record in delivered(tmp_path)] == one.table["candid"].tolist()
        assert settle(ledger) == {}

    def test_resend_puts_in_what_waits(self, postgres_server, database, kafka_broker, tmp_path):
        url, one = database(), sightings(0, MJD, *at([0, 40]))
        ledger = ledger_of(url, tmp_path)
        postgres_server.stop()
        words = ["alerts", "resend", tmp_path, "--kafka", kafka_broker.servers, "--database", url]
        words += ["--topic", "of-those-that-waited", "--json"]
        try:
            submit(one, ledger)
            away = CliRunner().invoke(app, list(map(str, words)))
        finally:
            postgres_server.start()
        assert away.exit_code == 3
        assert "wait for the history: 1" in away.stderr
        back = CliRunner().invoke(app, list(map(str, words)))
        assert back.exit_code == 0, back.output
        assert json.loads(back.stdout)["acknowledged"] == 2
        archived = read_container(tmp_path / "20250301" / one.exposure / "alerts.avro").records
        assert [record["candid"] for record in archived] == one.table["candid"].tolist()
        assert len(contents(History(url, tmp_path))[2]) == 2

    def test_a_bug_over_one_exposure_holds_up_no_other(self, tmp_path, monkeypatch):
        real, run = ledger_module.associate_exposure, [sightings(k, MJD + k, *at(0)) for k in range(3)]

        def broken(history, one, out, config):
            if one.exposure == run[1].exposure:
                raise ZeroDivisionError("planted")
            return real(history, one, out, config)

        ledger = ledger_of(None, tmp_path)
        monkeypatch.setattr(ledger_module, "associate_exposure", broken)
        told = [submit(one, ledger).association for one in run]
        assert [one["status"] for one in told] == ["done", "failed", "done"]
        assert "planted" in told[1]["reason"]
        assert ledger.spool.waiting() == 1
        monkeypatch.undo()
        begin(ledger)  # with the bug away
        assert ledger.spool.waiting() == 0
        assert len(delivered(tmp_path)) == 3

    def test_an_exposure_that_waited_is_told_as_done_when_its_alerts_are_stored(
        self, postgres_server, database, tmp_path
    ):
        ledger, one = ledger_of(database(), tmp_path), sightings(0, MJD, *at(0))
        postgres_server.stop()
        try:
            begin(ledger)
            closed = close_exposure(run_report(one), one, ledger)
        finally:
            postgres_server.start()
        assert closed.report.association == {"status": "waiting"}
        assert json.loads(ledger.report_of(one).read_text()) == closed.report.to_dict()
        assert not (tmp_path / "exposure.avro").exists()
        begin(ledger)
        assert json.loads(ledger.report_of(one).read_text())["association"]["n_new_objects"] == 1
        (done,) = read_container(tmp_path / "exposure.avro").records
        assert (done["exposure"], done["n_alerts"], done["mjd"]) == (one.exposure, 1, MJD)
        assert len(delivered(tmp_path)) == 2  # of them one alert, and that message

    def test_a_writer_that_never_ends_is_an_outage(self, database, tmp_path, monkeypatch):
        monkeypatch.setattr(history_engine, "_BUSY_S", 1)
        url, one = database(), sightings(0, MJD, *at(0))
        ledger = ledger_of(url, tmp_path)
        begin(ledger)
        with ledger.history.writing():
            assert submit(one, ledger_of(url, tmp_path)).association == {"status": "waiting"}
        assert submit(one, ledger).association["status"] == "done"

    def test_a_refusal_is_no_outage(self, postgres_server, tmp_path):
        with pytest.raises(ConfigError, match="nowhere"):
            begin(ledger_of(postgres_server.url("nowhere"), tmp_path))

    @pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://"])
    def test_other_databases_are_refused(self, url, tmp_path):
        with pytest.raises(ConfigError, match="--database"):
            History(url, tmp_path)

    def test_a_damaged_history_is_named(self, tmp_path):
        (tmp_path / "ks4diff.db").write_bytes(b"no database" * 500)
        with pytest.raises(InputError, match=r"ks4diff\.db: not a usable history"):
            begin(ledger_of(None, tmp_path))

    def test_a_history_of_another_version_is_refused(self, tmp_path):
        ledger = ledger_of(f"sqlite:///{tmp_path}/h.db", tmp_path)
        begin(ledger)
        with ledger.history._database.writing() as connection:
            connection.exec_driver_sql("UPDATE history_meta SET version = 99")
        with pytest.raises(InputError, match="version"):
            begin(ledger_of(f"sqlite:///{tmp_path}/h.db", tmp_path))
