"""Alerts to Kafka by way of the outbox; what finds no room there is owed by the archive."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.outbox import Message, Outbox
from ks4diff.io.outbox_file import OutboxFull
from ks4diff.io.owed import Owed, OwedFile
from ks4diff.io.packets import message_bytes, read_container
from ks4diff.io.sender import DeliverySummary, Producer, Sender
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_CHUNK = 50  # messages put in the outbox at a time: 2 MB, one sync

Record = dict[str, Any]


class Archive(Protocol):
    """Where the files of an exposure are that were written before: ``io.sinks.ArchiveSink``."""

    database: Path

    def path_of(self, exposure: str) -> Path:
        """Return the file of an exposure's alerts."""

    def completion_of(self, exposure: str) -> Path:
        """Return the file of the message that an exposure is done."""


class KafkaSink:
    """Alerts to the outbox, and from there to Kafka.

    ``emit`` never talks to the broker and ``flush`` never waits for it longer than told, so a
    broker that is away neither blocks nor fails the science. Undelivered alerts go with the
    next flush, of this process or another. Where the outbox has no room, ``archive`` keeps what is owed.

    Raises
    ------
    ConfigError
        When the topic's name is one that Kafka does not allow.

    """

    def __init__(
        self,
        outbox: Outbox,
        producer: Producer,
        *,
        topic: str | None = None,
        settings: KafkaConfig | None = None,
        archive: Archive | None = None,
    ) -> None:
        settings = settings or KafkaConfig()
        self._settings = settings if topic is None else replace(settings, topic=topic)
        self._outbox, self._sender = outbox, Sender(outbox, producer)
        self.archive = archive
        self._owed = None if archive is None else Owed(archive.database)

    def emit(self, exposure: str, records: Sequence[Record]) -> None:
        """Put the alerts in the outbox; one that is there already stays as it is."""
        self.queue(exposure, records, self.archive and self.archive.path_of(exposure))

    def complete(self, exposure: str, record: Record) -> None:
        """Put the message that an exposure is done in the outbox."""
        self.queue(exposure, [record], self.archive and self.archive.completion_of(exposure))

    def queue(self, exposure: str, records: Sequence[Record], path: Path | None) -> None:
        """Put records in the outbox, or note that those of the archive's file ``path`` are owed.

        Raises
        ------
        OutboxFull
            When there is no room and no archive.

        """
        if self._owed is not None and self._owed.records():
            self._owed.put(exposure, path, len(records))  # behind those that came first
            return
        try:
            self._add(exposure, records)
        except OutboxFull as full:
            if self._owed is None:
                raise
            log.error("%s; %d alerts of %s wait in the archive for room", full, len(records), exposure)
            self._owed.put(exposure, path, len(records))

    def flush(self, deadline_s: float, *, patient: bool = False) -> DeliverySummary:
        """Send all that is pending, oldest first, and record what the broker says.

        ``patient``: try again what fails, as long as the deadline allows.
        """
        end = time.monotonic() + deadline_s
        acknowledged = 0
        while True:
            refilled = self._refill()
            summary = self._sender.flush(max(0.0, end - time.monotonic()), patient=patient)
            acknowledged += summary.acknowledged
            if not (refilled and summary.acknowledged) or time.monotonic() >= end:
                break
        owed = 0 if self._owed is None else self._owed.records()
        return replace(summary, acknowledged=acknowledged, waiting=summary.waiting + owed)

    def revive(self) -> int:
        """Try again what Kafka refused for good; return how many."""
        return self._outbox.revive()

    def health(self) -> dict[str, Any]:
        """Return the topic and the outbox's counts by state."""
        return {"topic": self._settings.topic, "outbox": self._outbox.counts()}

    def close(self) -> None:
        """Close producer and outbox; what is in flight will be sent again by the next sender."""
        self._sender.close()

    def _add(self, exposure: str, records: Sequence[Record]) -> None:
        for first in range(0, len(records), _CHUNK):
            chunk = records[first : first + _CHUNK]
            self._put([message_of(exposure, record, self._settings) for record in chunk])

    def _put(self, messages: Sequence[Message]) -> None:
        """Put messages in the outbox; when not all of them find room, as many as do."""
        try:
            self._outbox.add(messages)
        except OutboxFull:
            if len(messages) == 1:
                raise
            self._put(messages[: len(messages) // 2])
            self._put(messages[len(messages) // 2 :])

    def _refill(self) -> bool:
        """Put into the outbox what the archive owes, in order, as far as there is room; return whether any.

        By the sender alone: two at a time would change the order.
        """
        if self._owed is None or not self._owed.records():
            return False
        some = False
        try:
            for owed in self._owed.files() if self._outbox.lead() else ():
                some = True  # of a file that does not fit whole, some may be in
                self._repay(owed)
        except OutboxFull as full:
            log.warning("%s; %d alerts wait in the archive for room", full, self._owed.records())
        return some

    def _repay(self, owed: OwedFile) -> None:
        if not owed.path.exists():
            log.error("%s: gone, so that its alerts are no longer owed to Kafka", owed.path)
        else:
            try:
                records = read_container(owed.path).records
            except InputError as error:
                log.error("%s; its alerts are owed to Kafka", error)
                return
            self._add(owed.exposure, records)
        self._owed.remove(owed)


def message_of(exposure: str, record: Record, settings: KafkaConfig) -> Message:
    """Return the message of an alert, or of an exposure that is done."""
    if "messageId" in record:
        identity, key, schema, topic = record["messageId"], exposure, "ks4.exposure", settings.exposure_topic
    else:
        identity, schema = record["alertId"], "ks4.alert"
        key = record["objectId"] or identity  # one object's alerts stay in order
        topic = f"{settings.topic}.test" if record["candidate"].get("injected") else settings.topic
    return Message(
        alert_id=identity,
        exposure=exposure,
        topic=topic,
        key=key,
        schema=f"{schema} {record['schemavsn']}",
        payload=message_bytes(record, wire=settings.wire),
    )
