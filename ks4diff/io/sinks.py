"""Where alerts go: to files always, and to Kafka through the outbox, behind one interface."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.kafka_settings import KafkaConfig, check_topic, client_options, parse_servers, servers_of
from ks4diff.io.kafka_sink import KafkaSink
from ks4diff.io.outbox import Outbox
from ks4diff.io.packets import container_bytes
from ks4diff.io.sender import DeliverySummary

Record = dict[str, Any]


class AlertSink(Protocol):
    """Takes alerts; once ``emit`` has returned they survive the end of the process."""

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Store the alerts of one exposure; emitting an exposure again replaces or repeats nothing."""

    def complete(self, exposure: str, record: Record) -> None:
        """Store the message that an exposure is done, after its alerts."""

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Send what waits, for at most about ``deadline_s`` seconds."""

    def health(self) -> dict[str, Any]:
        """Return plain values for a status page or report."""

    def close(self) -> None:
        """Let go of files and connections; safe to call twice."""


class ArchiveSink:
    """One Avro container per exposure and one index row per alert: no server needed.

    Parameters
    ----------
    path_of
        The file of an exposure's alerts.
    database
        The SQLite file of the index, OUT/ks4diff.db.

    """

    def __init__(self, path_of: Callable[[str], Path], *, database: str | os.PathLike[str]) -> None:
        self.path_of = path_of
        self.database = Path(database)
        self._index = AlertIndex(database)
        self._emitted = 0

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Write the exposure's file, also when there are no alerts, then its index rows."""
        path = self.path_of(exposure)
        # File before rows: a kill in between leaves a row too few, which a rerun puts right, and
        # never a row that points at nothing.
        atomic_write_bytes(path, container_bytes(records))
        self._index.replace(exposure, path, list(records))
        self._emitted += len(records)

    def complete(self, exposure: str, record: Record) -> None:
        """Write exposure.avro beside the exposure's alerts."""
        atomic_write_bytes(self.completion_of(exposure), container_bytes([record]))

    def completion_of(self, exposure: str) -> Path:
        """Return the file of the message that an exposure is done."""
        return self.path_of(exposure).with_name("exposure.avro")

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Return at once: what was emitted is on disk."""
        return DeliverySummary()

    def health(self) -> dict[str, Any]:
        """Return the number of alerts archived by this process."""
        return {"archived": self._emitted}

    def close(self) -> None:
        """Nothing is held open between calls."""


class TeeSink:
    """Several sinks as one, served in the order given: the archive comes first."""

    def __init__(self, *sinks: AlertSink) -> None:
        self._sinks = sinks

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Emit to each; the first failure stops, so no later sink has what an earlier one lacks."""
        for sink in self._sinks:
            sink.emit(exposure, records)

    def complete(self, exposure: str, record: Record) -> None:
        """Store the message in each, in order."""
        for sink in self._sinks:
            sink.complete(exposure, record)

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Flush each within what is left of the deadline, and add up."""
        end = time.monotonic() + deadline_s
        parts = [sink.flush(max(0.0, end - time.monotonic())) for sink in self._sinks]
        return DeliverySummary(
            acknowledged=sum(part.acknowledged for part in parts),
            waiting=sum(part.waiting for part in parts),
            dead=sum(part.dead for part in parts),
        )

    def health(self) -> dict[str, Any]:
        """Return what each tells, merged."""
        return {name: value for sink in self._sinks for name, value in sink.health().items()}

    def close(self) -> None:
        """Close each, last first, even when one fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


def open_sink(
    path_of: Callable[[str], Path],
    out: str | os.PathLike[str],
    *,
    kafka: str | None = None,
    topic: str | None = None,
    settings: KafkaConfig | None = None,
) -> AlertSink:
    """Return the sink of a run that writes to ``out``: the archive, and Kafka when servers are given.

    Parameters
    ----------
    path_of
        The file of an exposure's alerts.
    out
        The run's folder; ks4diff.db and outbox.db are in it.
    kafka
        ``"HOST:PORT[,HOST:PORT...]"``; None takes the environment's or the settings', or no Kafka.
    topic
        Kafka topic; None takes the settings'.
    settings
        The rest that is to be known of Kafka.

    Raises
    ------
    ConfigError
        When ``kafka``, ``topic`` or ``settings`` is malformed; nothing has been written then.
    InputError
        When a database in ``out`` is damaged.

    """
    out, settings = Path(out), settings or KafkaConfig()
    servers = check_destination(kafka, topic, settings)
    if servers is None:
        return ArchiveSink(path_of, database=out / "ks4diff.db")
    sink = open_kafka(path_of, out, servers=servers, topic=topic, settings=settings)
    return TeeSink(sink.archive, sink)


def open_kafka(
    path_of: Callable[[str], Path], out: Path, *, servers: str, topic: str | None, settings: KafkaConfig
) -> KafkaSink:
    """Return the sink to Kafka alone, beside an archive in ``out``; parameters as of `open_sink`."""
    from ks4diff.io.stream import AlertProducer  # 0.2 s, and not needed without Kafka

    producer = AlertProducer(servers, settings)
    archive = ArchiveSink(path_of, database=out / "ks4diff.db")
    outbox = Outbox(out / "outbox.db", quota=1e9 * settings.outbox_gigabytes)
    return KafkaSink(outbox, producer, topic=topic, settings=settings, archive=archive)


def check_destination(kafka: str | None, topic: str | None, settings: KafkaConfig) -> str | None:
    """Return the servers to send to, if any; ConfigError when they, topic or settings are malformed.

    Touches neither network nor disk.
    """
    servers = servers_of(kafka, settings)
    if topic is not None:
        check_topic(topic)
    if servers is not None:
        parse_servers(servers)
        client_options(settings)
    return servers
