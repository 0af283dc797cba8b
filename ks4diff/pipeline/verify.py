"""Whether every archived alert is in the index and in Kafka, as it was archived."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ks4diff.io.archive import archived_files
from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.listen import Choice, NoTopic, replay
from ks4diff.io.packets import read_container, without_times
from ks4diff.io.received import Received

log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Archived:
    """One archived alert."""

    exposure: str
    object_id: str | None
    injected: bool
    path: Path
    ordinal: int
    digest: str  # of its content, times of processing aside


@dataclass(frozen=True, kw_only=True)
class ArchiveCheck:
    """The alerts that an OUT has archived, and where its files and its index disagree."""

    alerts: dict[str, Archived] = field(default_factory=dict)  # by alertId
    exposures: set[str] = field(default_factory=set)  # also those without alerts
    troubles: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class KafkaCheck:
    """What Kafka holds of an archive."""

    found: int  # archived alerts that are there
    copies: int  # messages of them beyond one each
    missing: list[str]  # alertIds
    different: dict[str, list[str]]  # alertId: the fields that differ
    extra: list[str]  # of the archive's exposures, not in it: a run with other settings or software sent them
    withdrawn: list[str]  # archived alerts that were taken back


def check_archive(out: Path) -> ArchiveCheck:
    """Return what is archived under ``out``, every file read and compared with the index.

    Raises
    ------
    InputError
        When there is no archive.

    """
    check = ArchiveCheck()
    for file in archived_files(out):
        if file.trouble is not None:
            check.troubles.append(file.trouble)
        indexed = {(row["ordinal"], row["alert_id"]) for row in file.rows}
        held = {(k, record["alertId"]) for k, record in enumerate(file.records)}
        for ordinal, alert_id in sorted(indexed - held):
            check.troubles.append(
                f"{file.path}: alert {alert_id} is indexed as number {ordinal}, and not there"
            )
        for ordinal, alert_id in sorted(held - indexed):
            check.troubles.append(f"{file.path}: alert {alert_id}, number {ordinal}, is not in the index")
        check.exposures.update(row["exposure"] for row in file.rows)
        check.exposures.update(record["exposure"] for record in file.records)
        if file.path.parent != out.resolve():
            check.exposures.add(file.path.parent.name)
        for ordinal, record in enumerate(file.records):
            if record["alertId"] in check.alerts:
                check.troubles.append(f"{file.path}: alert {record['alertId']} is archived twice")
            check.alerts[record["alertId"]] = _archived(record, file.path, ordinal)
    return check


def check_kafka(
    archive: ArchiveCheck, servers: str, topic: str, settings: KafkaConfig | None = None
) -> KafkaCheck:
    """Return what Kafka holds of an archive: all of the topic is read, and its ``.test`` where needed.

    Raises
    ------
    ConfigError
        When ``servers`` or ``settings`` are malformed.
    InputError
        When no server answers.

    """
    topics = {f"{topic}.test" if alert.injected else topic for alert in archive.alerts.values()} or {topic}
    counts: Counter[str] = Counter()
    different: dict[str, list[str]] = {}
    extra: dict[str, None] = {}
    withdrawn: dict[str, None] = {}
    for received in _messages(servers, sorted(topics), settings):
        record, known = received.record, archive.alerts.get(received.id)
        taken_back = (record.get("withdrawal") or {}).get("alertId")
        if taken_back in archive.alerts:
            withdrawn[taken_back] = None
        if known is not None:
            counts[received.id] += 1
            if _digest(record) != known.digest:
                original = read_container(known.path).records[known.ordinal]
                different[received.id] = _differences(without_times(original), without_times(record))
        elif record.get("exposure") in archive.exposures and taken_back not in archive.alerts:
            extra[received.id] = None
    return KafkaCheck(
        found=len(counts),
        copies=counts.total() - len(counts),
        missing=[alert_id for alert_id in archive.alerts if alert_id not in counts],
        different=different,
        extra=list(extra),
        withdrawn=list(withdrawn),
    )


def _messages(servers: str, topics: Iterable[str], settings: KafkaConfig | None) -> Iterable[Received]:
    for topic in topics:
        try:
            yield from replay(servers, topic=topic, choice=Choice(copies=True), settings=settings)
        except NoTopic as absent:  # so all that should be there is missing
            log.warning("%s", absent)


def _archived(record: Record, path: Path, ordinal: int) -> Archived:
    return Archived(
        exposure=record["exposure"],
        object_id=record["objectId"],
        injected=bool(record["candidate"].get("injected")),
        path=path,
        ordinal=ordinal,
        digest=_digest(record),
    )


def _digest(record: Record) -> str:
    return hashlib.sha256(repr(without_times(record)).encode()).hexdigest()


def _differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            found
            for key in sorted({*ours, *theirs})
            for found in _differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if repr(ours) == repr(theirs) else [name]
