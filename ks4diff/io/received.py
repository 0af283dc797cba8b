"""One message from Kafka as the alert that it is."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ks4diff.io.packets import read_container
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Received:
    """One alert from Kafka."""

    record: Record
    payload: bytes  # as sent: an Avro container, or Confluent's framing
    topic: str
    partition: int
    offset: int
    sent: float  # when Kafka took it, seconds since 1970
    key: str | None
    headers: dict[str, str]

    @property
    def id(self) -> str:
        """What tells it from other alerts, and is the same in its copies."""
        named = (self.record[name] for name in ("alertId", "messageId", "candid") if name in self.record)
        return str(next(named, f"{self.partition} {self.offset}"))


def decoded(message: Any) -> Received | None:
    """Return the alert in one of kafka-python's messages; None, with a line in the log, if it is none."""
    name = f"{message.topic}[{message.partition}] offset {message.offset}"
    try:
        container = read_container(message.value or b"", name=name)
    except InputError as error:
        log.warning("%s; skipped", error)
        return None
    if len(container.records) != 1:
        log.warning("%s: %d records in a message, expected one; skipped", name, len(container.records))
        return None
    return Received(
        record=container.records[0],
        payload=message.value,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        sent=message.timestamp / 1000,
        key=None if message.key is None else message.key.decode(errors="replace"),
        headers={name: (value or b"").decode(errors="replace") for name, value in message.headers},
    )
