"""Where alerts go: to files always, and to Kafka through the outbox, behind one interface."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.kafka_settings import DEFAULT_TOPIC, check_topic, parse_servers
from ks4diff.io.outbox import Message, Outbox, Outcome, State
from ks4diff.io.packets import container_bytes

_BATCH = 200  # messages handed to the producer at a time: about 10 MB

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DeliverySummary:
    """How delivery stands after a flush."""

    acknowledged: int = 0  # by the broker, during this flush
    waiting: int = 0  # now in the outbox: pending or in flight
    dead: int = 0  # now in the outbox: refused for good


class AlertSink(Protocol):
    """Takes alerts; once ``emit`` has returned they survive the end of the process."""

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Store the alerts of one exposure; emitting an exposure again replaces or repeats nothing."""

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Send what waits, for at most about ``deadline_s`` seconds."""

    def health(self) -> dict[str, Any]:
        """Return plain values for a status page or report."""

    def close(self) -> None:
        """Let go of files and connections; safe to call twice."""


class Producer(Protocol):
    """What a ``KafkaSink`` sends with: ``io.stream.AlertProducer``, or a test's."""

    def deliver(self, messages: Sequence[Message], *, timeout_s: float) -> list[Outcome]:
        """Send, and return what is known by then, also of messages of earlier calls."""

    def close(self) -> None:
        """Let go of the connection."""


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
        self._path_of = path_of
        self._index = AlertIndex(database)
        self._emitted = 0

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Write the exposure's file, also when there are no alerts, then its index rows."""
        path = self._path_of(exposure)
        # File before rows: a kill in between leaves a row too few, which a rerun puts right, and
        # never a row that points at nothing.
        atomic_write_bytes(path, container_bytes(records))
        self._index.replace(exposure, path, list(records))
        self._emitted += len(records)

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Return at once: what was emitted is on disk."""
        return DeliverySummary()

    def health(self) -> dict[str, Any]:
        """Return the number of alerts archived by this process."""
        return {"archived": self._emitted}

    def close(self) -> None:
        """Nothing is held open between calls."""


class KafkaSink:
    """Alerts to the outbox, and from there to Kafka.

    ``emit`` never talks to the broker and ``flush`` never waits for it longer than told, so a
    broker that is away neither blocks nor fails the science. Undelivered alerts go with the
    next flush, of this process or another.

    Raises
    ------
    ConfigError
        When the topic's name is one that Kafka does not allow.

    """

    def __init__(self, outbox: Outbox, producer: Producer, *, topic: str = DEFAULT_TOPIC) -> None:
        check_topic(topic)
        self._outbox = outbox
        self._producer = producer
        self._topic = topic

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Put the alerts in the outbox; one that is there already stays as it is."""
        self._outbox.add([_message(exposure, self._topic, record) for record in records])

    def flush(self, deadline_s: float) -> DeliverySummary:
        """Send all that is pending, oldest first, and record what the broker says."""
        return send_outbox(self._outbox, self._producer, deadline_s=deadline_s)

    def health(self) -> dict[str, Any]:
        """Return the topic and the outbox's counts by state."""
        return {"topic": self._topic, "outbox": self._outbox.counts()}

    def close(self) -> None:
        """Close producer and outbox; what is in flight will be sent again by the next sender."""
        self._producer.close()
        self._outbox.close()


class TeeSink:
    """Several sinks as one, served in the order given: the archive comes first."""

    def __init__(self, *sinks: AlertSink) -> None:
        self._sinks = sinks

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Emit to each; the first failure stops, so no later sink has what an earlier one lacks."""
        for sink in self._sinks:
            sink.emit(exposure, records)

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


def send_outbox(outbox: Outbox, producer: Producer, *, deadline_s: float) -> DeliverySummary:
    """Send an outbox's pending messages, oldest first, for at most about ``deadline_s`` seconds.

    Stops at the first batch of which any message must be tried again: later messages of the same
    object must not overtake it, and a broker that is away is not asked once per batch.
    """
    end = time.monotonic() + deadline_s
    acknowledged = 0
    while True:
        messages = outbox.claim(_BATCH)
        outcomes = producer.deliver(messages, timeout_s=max(0.0, end - time.monotonic()))
        outbox.settle(outcomes)
        acknowledged += sum(outcome.state is State.ACKNOWLEDGED for outcome in outcomes)
        retry = any(outcome.state is State.PENDING for outcome in outcomes)
        if retry or len(messages) < _BATCH or time.monotonic() >= end:
            break
    counts = outbox.counts()
    return DeliverySummary(
        acknowledged=acknowledged,
        waiting=counts[State.PENDING] + counts[State.INFLIGHT],
        dead=counts[State.DEAD],
    )


def open_sink(
    path_of: Callable[[str], Path],
    out: str | os.PathLike[str],
    *,
    kafka: str | None = None,
    topic: str = DEFAULT_TOPIC,
) -> AlertSink:
    """Return the sink of a run that writes to ``out``: the archive, and Kafka when servers are given.

    Parameters
    ----------
    path_of
        The file of an exposure's alerts.
    out
        The run's folder; ks4diff.db and outbox.db are in it.
    kafka
        ``"HOST:PORT[,HOST:PORT...]"``, or None for no Kafka.
    topic
        Kafka topic.

    Raises
    ------
    ConfigError
        When ``kafka`` or ``topic`` is malformed; nothing has been written then.
    InputError
        When a database in ``out`` is damaged.

    """
    out = Path(out)
    if kafka is None:
        return ArchiveSink(path_of, database=out / "ks4diff.db")
    from ks4diff.io.stream import AlertProducer  # 0.2 s, and not needed without Kafka

    check_topic(topic)
    producer = AlertProducer(kafka)
    archive = ArchiveSink(path_of, database=out / "ks4diff.db")
    return TeeSink(archive, KafkaSink(Outbox(out / "outbox.db"), producer, topic=topic))


def check_destination(kafka: str | None, topic: str) -> None:
    """Raise ConfigError when servers or topic are malformed; touches neither network nor disk."""
    if kafka is not None:
        check_topic(topic)
        parse_servers(kafka)


def _message(exposure: str, topic: str, record: Record) -> Message:
    return Message(
        alert_id=record["alertId"],
        exposure=exposure,
        topic=topic,
        key=record["objectId"] or record["alertId"],  # one object's alerts stay in order
        schema=record["schemavsn"],
        payload=container_bytes([record]),
    )
