"""Exposures into the history, in order of time, and their alerts out of it; an outage only delays both."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.history import History
from ks4diff.io.packets import alert_record, exposure_record
from ks4diff.io.sinks import AlertSink
from ks4diff.io.spool import Spool
from ks4diff.pipeline.associate import associate_exposure
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.isolate import isolated
from ks4diff.pipeline.pair import UNIX_EPOCH_MJD
from ks4diff.pipeline.report import RunReport, peak_rss_mb
from ks4diff.products.errors import HistoryUnavailable
from ks4diff.products.sightings import ExposureSightings

log = logging.getLogger(__name__)

Record = dict[str, Any]
WAITING = {"status": "waiting"}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Where exposures are written down, and who gets their alerts."""

    history: History
    out: Path
    config: PipelineConfig
    sink: AlertSink
    report_of: Callable[[ExposureSightings], Path]  # an exposure's report.json

    @property
    def spool(self) -> Spool:
        """The queue before the history."""
        return Spool(self.out)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of an exposure: its alert records, and what its report says of its association."""

    records: list[Record]
    association: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Closed:
    """One exposure's report as written, and its alert records."""

    report: RunReport
    records: list[Record]


NOT_YET = Entry(records=[], association=WAITING)
ELSEWHERE = Entry(records=[], association={"status": "done"})  # another process took it out of the queue


def submit(sightings: ExposureSightings, ledger: Ledger) -> Entry:
    """Return what became of an exposure, written down with all that waited before it.

    It is queued on disk first: whatever ends this process, the exposure and its alerts are not lost, and go
    on with the next `settle`. While the database is away it waits there.
    """
    ledger.spool.put(sightings)
    done = settle(ledger)
    if sightings.exposure in done:
        return done[sightings.exposure]
    return NOT_YET if ledger.spool.holds(sightings.exposure) else ELSEWHERE


def settle(ledger: Ledger) -> dict[str, Entry]:
    """Write down the exposures that wait, earliest first, deliver their alerts, and return them by name.

    Stops at an outage. An exposure that a bug keeps from being stored is put aside until the next `begin`,
    so that the others go on. An exposure leaves the queue once its alerts are delivered; one that was stored
    before its process ended is stored again, which changes nothing.
    """
    done: dict[str, Entry] = {}
    spool = ledger.spool
    with spool.alone():
        while (waiting := spool.first()) is not None:
            sightings = waiting.sightings
            tried = isolated(partial(_associated, sightings, ledger), f"{sightings.exposure} association")
            if isinstance(tried.result, HistoryUnavailable):
                log.warning("%d exposures wait for their association: %s", spool.waiting(), tried.result)
                break
            if tried.result is None:
                spool.put_aside(waiting)
                entry = Entry(records=[], association={"status": "failed", "reason": tried.reason})
                _complete_waited(sightings, entry.association, ledger)
            else:
                entry = tried.result
                ledger.sink.emit(sightings.exposure, entry.records)
                _complete_waited(sightings, entry.association, ledger)
                spool.remove(waiting)  # last: who dies before is followed by one that does all again
            done[sightings.exposure] = entry
    return done


def _associated(sightings: ExposureSightings, ledger: Ledger) -> Entry | HistoryUnavailable:
    try:
        found = associate_exposure(ledger.history, sightings, ledger.out, ledger.config)
    except HistoryUnavailable as away:
        return away
    counts = {"n_associated": found.n_associated, "n_new_objects": found.n_new_objects}
    return Entry(
        records=[alert_record(alert) for alert in found.alerts], association={"status": "done", **counts}
    )


def begin(ledger: Ledger) -> None:
    """Settle what an earlier run left, and find a history that cannot be used before any image is touched.

    Raises
    ------
    ConfigError
        When the server refuses us: a wrong password or name is not an outage.
    InputError
        When the database is there and is no history.

    """
    try:
        with ledger.history.reading():
            pass
    except HistoryUnavailable as away:
        log.warning("the history is away, association will wait: %s", away)
        return
    ledger.spool.bring_back()
    settle(ledger)


def close_exposure(report: RunReport, sightings: ExposureSightings, ledger: Ledger) -> Closed:
    """Return what became of an exposure that was searched: written down, its alerts stored, its report last.

    When the report is there, whatever consumers are to get is in the archive and, with Kafka, in the outbox:
    its alerts, and behind them the message that it is done. While the history is away both wait for it.
    ``report`` lacks the association, and the seconds from here on.
    """
    start = time.perf_counter()
    entry = submit(sightings, ledger)
    seconds = round(report.seconds_total + time.perf_counter() - start, 3)
    report = replace(report, association=entry.association, seconds_total=seconds, peak_rss_mb=peak_rss_mb())
    if entry.association["status"] == "done":
        _complete(report.to_dict(), sightings, ledger)
    atomic_write_bytes(ledger.report_of(sightings), report.to_json().encode())
    return Closed(report=report, records=entry.records)


def _complete(report: Mapping[str, Any], sightings: ExposureSightings, ledger: Ledger) -> None:
    now = time.time() / 86400 + UNIX_EPOCH_MJD
    record = exposure_record(report, mjd=sightings.mjd, exptime=sightings.exptime, completed=now)
    ledger.sink.complete(sightings.exposure, record)


def _complete_waited(sightings: ExposureSightings, association: Mapping[str, Any], ledger: Ledger) -> None:
    """Put the association into the report of an exposure that waited, and say that it is done if it is.

    An exposure in progress has no report yet, or that of an earlier run.
    """
    path = ledger.report_of(sightings)
    if not path.is_file():
        return
    report = json.loads(path.read_text(encoding="utf-8"))
    if (report.get("association") or {}).get("status") not in ("waiting", "failed"):
        return
    report["association"] = dict(association)
    if association["status"] == "done":
        _complete(report, sightings, ledger)
    atomic_write_bytes(path, (json.dumps(report, indent=2) + "\n").encode())
