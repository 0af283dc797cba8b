"""Exposures into the history: names that stay, a past that only looks back, nothing lost; both databases."""

from __future__ import annotations

import multiprocessing
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ks4diff.io import history_engine
from ks4diff.io.history import History, HistoryWriter
from ks4diff.io.packets import alert_record, container_bytes, read_container
from ks4diff.pipeline import ledger as ledger_module
from ks4diff.pipeline.associate import associate_exposure
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ledger import Ledger, begin, settle, submit
from ks4diff.products.errors import ConfigError, HistoryUnavailable, InputError
from ks4diff.stages.past import HistoryConfig
from ks4diff.stages.sky_cells import separation_arcsec, unit_vectors
from tests.seasons import coverage, near, season, sightings

CONFIG = PipelineConfig()
SHARED = "shared"  # the folder that four processes have in common
HOME = (150.0, -30.0)
MJD = 60735.8
SN2021RHU = "mwvgroup+Pitt-Google-Broker/docs/source/working-notes/troyraen/SuperNNova/ZTF21abiuvdk"


def at(east, north=0.0, place=HOME):
    return near(
        *(np.full(np.shape(np.atleast_1d(east)), x) for x in place), np.atleast_1d(east), np.atleast_1d(north)
    )


@pytest.fixture
def history(tmp_path):
    return History(None, tmp_path)


@pytest.fixture(scope="module")
def database(postgres_server):
    """Return a function that makes a fresh PostgreSQL database and returns its URL."""
    made = iter(f"history{k}" for k in range(100))
    return lambda: postgres_server.create(next(made))


def put(history, out, *exposures):
    """Associate exposures in the order given; return the alerts of all, by candid."""
    alerts = {}
    for one in exposures:
        alerts |= {alert.candid: alert for alert in associate_exposure(history, one, out, CONFIG).alerts}
    return alerts


def contents(history):
    """All that a history holds, but for the folder that it was written in."""
    with history.reading() as reader:
        return reader.exposures(), reader.objects(), reader.detections()


def names_of(history):
    with history.reading() as reader:
        return {row["candid"]: row["object_id"] for row in reader.detections()}


class TestNames:
    def test_a_repeat_has_the_name_of_the_first(self, history, tmp_path):
        alerts = put(history, tmp_path, sightings(0, MJD, *at(0)), sightings(1, MJD + 1, *at(0.2)))
        first, second = alerts.values()
        assert first.object_id == second.object_id
        assert first.object_id.startswith("KS4-25")
        assert (first.alert_type, second.alert_type) == ("new", "update")

    def test_every_candidate_is_kept_flagged_or_not(self, history, tmp_path):
        rejected = np.array([False, True, True, False])
        one = sightings(
            0, MJD, *at([0, 0.3, 60, 90]), rejected=rejected, accepted=[True, False, False, False]
        )
        put(history, tmp_path, one)
        with history.reading() as reader:
            rows, objects = reader.detections(), reader.objects()
        assert len(rows) == 4
        assert [row["object_id"] is None for row in rows] == [False, False, True, True]
        assert [(row["n_detections"], row["n_rejected"], row["n_alerts"]) for row in objects] == [(1, 1, 1)]

    def test_what_was_too_weak_before_is_the_past_of_what_is_alerted_later(self, history, tmp_path):
        weak = sightings(0, MJD, *at(0.1), accepted=False)
        alert = put(history, tmp_path, weak, sightings(1, MJD + 1, *at(0)))
        (past,) = next(iter(alert.values())).history.detections
        assert past.exposure == weak.exposure
        assert not past.alerted
        summary = next(iter(alert.values())).history.object
        assert (summary.n_detections, summary.first_mjd) == (2, MJD)

    def test_without_a_date_or_a_position_nothing_is_associated(self, history, tmp_path):
        nowhere = sightings(0, MJD, [np.nan], [np.nan])
        undated = sightings(1, None, *at(0))
        alerts = put(history, tmp_path, nowhere, undated, sightings(2, MJD, *at(0)))
        assert [alert.object_id is None for alert in alerts.values()] == [True, True, False]
        assert alert_record(next(iter(alerts.values())))["objectId"] is None
        assert len(contents(history)[2]) == 3

    def test_two_objects_in_one_cell_have_two_names(self, history, tmp_path):
        # 0.06" apart and 0.01 of a gate wide: what a floor of 0.2" forbids
        narrow = replace(CONFIG, associate=replace(CONFIG.associate, floor_arcsec=0.0, one_source_arcsec=0.0))
        one = sightings(0, MJD, *at([0.0, 0.02, 0.04]), err=1e-4)
        alerts = associate_exposure(history, one, tmp_path, narrow).alerts
        assert len({alert.object_id for alert in alerts}) == 3


class TestThePast:
    def test_looks_back_only(self, history, tmp_path):
        where = coverage(*HOME)
        nights = [sightings(k, MJD + k, *at(0.1 * k), where=where) for k in (0, 1, 2)]
        empty = sightings(9, MJD + 1.5, *at([]), where=where)
        later = sightings(8, MJD + 2.5, *at([]), where=where)
        alerts = put(history, tmp_path, nights[0], nights[1], empty, later, nights[2])
        pasts = [alert.history for alert in alerts.values()]
        assert [[row.mjd for row in past.detections] for past in pasts] == [[], [MJD], [MJD, MJD + 1]]
        assert [[row.mjd for row in past.limits] for past in pasts] == [[], [], [MJD + 1.5]]
        assert pasts[2].limits[0].diffmaglim == 22.5
        assert [past.object.n_covered for past in pasts] == [1, 2, 4]
        assert [past.object.n_detections for past in pasts] == [1, 2, 3]
        assert (pasts[2].object.first_mjd, pasts[2].object.last_mjd) == (MJD, MJD + 2)
        assert separation(pasts[2].object, *at(0.1)) < 1e-4
        assert pasts[2].object.position_err_arcsec == pytest.approx(0.1 / 3**0.5)

    def test_a_flagged_candidate_is_no_limit(self, history, tmp_path):
        where = coverage(*HOME)
        alerts = put(
            history,
            tmp_path,
            sightings(0, MJD, *at(0), where=where),
            sightings(1, MJD + 1, *at(0.1), rejected=True, where=where),
            sightings(2, MJD + 2, *at(0), where=where),
        )
        past = list(alerts.values())[-1].history
        assert past.limits == ()
        assert len(past.detections) == 1
        assert past.object.n_rejected == 1

    def test_a_failed_chip_has_no_limit(self, history, tmp_path):
        failed = sightings(0, MJD, *at([]), where=coverage(*HOME))
        failed = replace(failed, chips=(replace(failed.chips[0], quality="fail"),))
        (alert,) = put(history, tmp_path, failed, sightings(1, MJD + 1, *at(0))).values()
        assert alert.history.limits == ()
        assert alert.history.object.n_covered == 2

    def test_places_off_the_chip_have_no_limit(self, history, tmp_path):
        far = coverage(HOME[0] + 0.5, HOME[1])
        alerts = put(history, tmp_path, sightings(0, MJD, *at([]), where=far), sightings(1, MJD + 1, *at(0)))
        assert next(iter(alerts.values())).history.limits == ()

    def test_is_as_long_as_asked_for(self, history, tmp_path):
        config = replace(CONFIG, history=HistoryConfig(days=2.5, detections=2))
        for k in range(4):
            alerts = associate_exposure(history, sightings(k, MJD + k, *at(0)), tmp_path, config).alerts
        assert [row.mjd for row in alerts[0].history.detections] == [MJD + 1, MJD + 2]
        assert alerts[0].history.object.n_detections == 4
        put(history, tmp_path)

    def test_fluxes_that_are_no_njy_are_not_told_as_such(self, history, tmp_path):
        counts = sightings(0, MJD, *at(0))
        counts = replace(counts, chips=(replace(counts.chips[0], flux_unit="count"),))
        past = list(put(history, tmp_path, counts, sightings(1, MJD + 1, *at(0))).values())[-1].history
        assert past.detections == ()
        assert past.object.n_detections == 2


class TestAgain:
    def test_a_rerun_changes_nothing(self, history, tmp_path):
        run = season(3, n_sources=30, side_deg=0.1, nights=2).exposures
        first = put(history, tmp_path, *run)
        before = contents(history)
        again = put(history, tmp_path, run[0], run[-1], run[5], *run)
        assert {k: told(a) for k, a in again.items()} == {k: told(a) for k, a in first.items()}
        last = run[-1].table["candid"][0]
        assert record_bytes(again[last]) == record_bytes(first[last])
        assert contents(history) == before

    def test_a_rerun_that_finds_less_leaves_no_empty_object(self, history, tmp_path):
        put(history, tmp_path, sightings(0, MJD, *at([0, 30])), sightings(1, MJD + 1, *at([0])))
        put(history, tmp_path, sightings(0, MJD, *at([0.05])))
        with history.reading() as reader:
            objects = reader.objects()
        assert [row["n_detections"] for row in objects] == [2]

    def test_a_rerun_with_moved_positions_keeps_the_name(self, history, tmp_path):
        first = put(history, tmp_path, sightings(0, MJD, *at(0)))
        again = put(history, tmp_path, sightings(0, MJD, *at(0.4)))
        assert [alert.object_id for alert in again.values()] == [a.object_id for a in first.values()]

    def test_a_rerun_gives_the_same_name_wherever_the_object_has_moved(self, history, tmp_path):
        first = sightings(0, MJD, *at(0), err=0.3)
        later = [sightings(1, MJD + 1, *at(1.2), err=0.05), sightings(2, MJD + 2, *at(2.1), err=0.05)]
        alerts = put(history, tmp_path, first, *later)
        assert len({alert.object_id for alert in alerts.values()}) == 1
        (again,) = put(history, tmp_path, first).values()  # now 1.6" from the mean of the others
        assert told(again) == told(alerts[again.candid])
        assert len(contents(history)[1]) == 1

    def test_an_object_without_an_alert_is_let_go(self, history, tmp_path):
        put(history, tmp_path, sightings(0, MJD, *at(0), accepted=False), sightings(1, MJD + 1, *at(0)))
        put(history, tmp_path, sightings(1, MJD + 1, *at(0), rejected=True))
        assert set(names_of(history).values()) == {None}
        assert contents(history)[1] == []

    def test_what_comes_late_joins_the_object_and_sees_only_what_was_before(self, history, tmp_path):
        alerts = put(
            history,
            tmp_path,
            sightings(0, MJD, *at(0)),
            sightings(2, MJD + 2, *at(0)),
            sightings(1, MJD + 1, *at(0.1)),
        )
        late = list(alerts.values())[-1]
        assert len({alert.object_id for alert in alerts.values()}) == 1
        assert [row.mjd for row in late.history.detections] == [MJD]
        assert late.history.object.last_mjd == MJD + 1
        earliest = put(history, tmp_path, sightings(3, MJD - 1, *at(0.1)))
        assert next(iter(earliest.values())).object_id == late.object_id
        assert contents(history)[1][0]["first_mjd"] == MJD - 1


def separation(summary, ra, dec):
    return float(separation_arcsec(unit_vectors(summary.ra, summary.dec), unit_vectors(ra, dec)[0]))


def told(alert):
    """What the history adds to an alert."""
    return alert.alert_id, alert.object_id, alert.alert_type, alert.history


def record_bytes(alert):
    return container_bytes([alert_record(alert)])


class TestTheSeason:
    """Three nights of variables, among movers and spurious detections, on RA 0 and on a pole."""

    @pytest.mark.parametrize(
        ("seed", "ra", "dec", "n", "side"), [(1, 359.95, -30.0, 450, 0.35), (2, 77.0, -89.95, 150, 0.2)]
    )
    def test_repeats_are_of_the_right_object(self, seed, ra, dec, n, side, history, tmp_path):
        drawn = season(seed, n_sources=n, side_deg=side, ra=ra, dec=dec)
        put(history, tmp_path, *drawn.exposures)
        names = names_of(history)
        of_source, of_object = defaultdict(Counter), defaultdict(set)
        for one, truth in zip(drawn.exposures, drawn.truth, strict=True):
            for number, source in zip(one.table["candid"].tolist(), truth.tolist(), strict=True):
                if source >= 0:
                    of_source[source][names[number]] += 1
                    of_object[names[number]].add(source)
        repeats = sum(found.total() - 1 for found in of_source.values())
        right = sum(found.most_common(1)[0][1] - 1 for found in of_source.values())
        assert repeats > 8 * n
        assert right / repeats >= 0.995
        assert None not in of_object
        lone = [source for source in of_source if drawn.nearest[source] > 2]
        assert len(lone) > 0.9 * n
        assert [source for source in lone if len(of_source[source]) > 1] == []  # split
        merged = {name for name, sources in of_object.items() if len(sources) > 1}
        assert [source for source in lone if merged & set(of_source[source])] == []


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

    def deliver(exposure, found):
        (out / f"{exposure}.avro").write_bytes(container_bytes(found))

    out.mkdir(parents=True, exist_ok=True)
    return Ledger(
        history=History(url, out),
        out=out,
        config=CONFIG,
        deliver=deliver,
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

        def torn(exposure, found):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            submit(one, replace(ledger, deliver=torn))
        assert delivered(tmp_path) == []
        begin(ledger)  # the next start
        assert [record["candid"] for record in delivered(tmp_path)] == one.table["candid"].tolist()
        assert settle(ledger) == {}

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

    def test_the_report_of_what_waited_is_completed(self, postgres_server, database, tmp_path):
        ledger, one = ledger_of(database(), tmp_path), sightings(0, MJD, *at(0))
        postgres_server.stop()
        try:
            begin(ledger)
            assert submit(one, ledger).association == {"status": "waiting"}
        finally:
            postgres_server.start()
        report = tmp_path / f"{one.exposure}.json"
        report.write_text('{"association": {"status": "waiting"}, "exposure": "e"}')
        begin(ledger)
        assert '"n_new_objects": 1' in report.read_text()
        assert len(delivered(tmp_path)) == 1

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


class TestSn2021rhu:
    """ZTF21abiuvdk: 34 real packets of one supernova, 65 days, g and r."""

    def packets(self, realdata):
        folder = realdata / SN2021RHU
        found = [read_container(path).records[0] for path in sorted(folder.glob("*.avro"))]
        return sorted(found, key=lambda packet: packet["candid"] % 97)  # in no order of time

    def exposure(self, packet, number):
        measured = packet["candidate"]
        flux = 10 ** (0.4 * (31.4 - measured["magpsf"])) * (1 if measured["isdiffpos"] in "t1" else -1)
        # ZTF gives no errors of positions: its packets scatter by 0.1" here
        return sightings(
            number,
            measured["jd"] - 2400000.5,
            measured["ra"],
            measured["dec"],
            err=0.1,
            flux=flux,
            filter={1: "g", 2: "r", 3: "i"}[measured["fid"]],
        )

    def test_is_one_object_with_its_light_curve(self, realdata, history, tmp_path):
        packets = self.packets(realdata)
        assert len(packets) == 34
        exposures = [self.exposure(packet, k) for k, packet in enumerate(packets)]
        in_time = sorted(exposures, key=lambda one: one.mjd)
        alerts = list(put(history, tmp_path, *in_time).values())
        assert {alert.object_id for alert in alerts} == {alerts[0].object_id}
        assert len(contents(history)[1]) == 1
        curve = alerts[-1].history.detections
        assert [row.mjd for row in curve] == [one.mjd for one in in_time[:-1]]
        truth = {p["candidate"]["jd"] - 2400000.5: p["candidate"] for p in packets}
        for row in curve:
            assert row.magpsf == pytest.approx(truth[row.mjd]["magpsf"], abs=1e-4)
            assert row.filter == {1: "g", 2: "r"}[truth[row.mjd]["fid"]]
        assert min(row.magpsf for row in curve if row.filter == "r") < 12.6
        summary = alerts[-1].history.object
        assert summary.n_detections == 34
        offsets = [separation(summary, [p["candidate"]["ra"]], [p["candidate"]["dec"]]) for p in packets]
        assert max(offsets) < 0.5

    def test_is_the_same_object_in_any_order(self, realdata, history, tmp_path):
        exposures = [self.exposure(packet, k) for k, packet in enumerate(self.packets(realdata))]
        assert [one.mjd for one in exposures] != sorted(one.mjd for one in exposures)
        put(history, tmp_path, *exposures)
        (found,) = contents(history)[1]
        assert found["n_detections"] == 34
        assert found["last_mjd"] - found["first_mjd"] > 60
