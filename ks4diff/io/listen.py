"""Kafka, listening: the alerts of a topic, decoded, each once."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from ks4diff.io.kafka_settings import KafkaConfig, client_options, parse_servers
from ks4diff.io.packets import read_container
from ks4diff.io.stream import knock, reason_of
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_REMEMBERED = 100_000  # alert ids kept to drop duplicates: 10 MB


@dataclass(frozen=True, kw_only=True)
class Received:
    """One alert from Kafka."""

    record: dict[str, Any]
    payload: bytes  # the Avro container as sent
    topic: str
    partition: int
    offset: int
    key: str | None
    headers: dict[str, str]


def tail(
    servers: str,
    *,
    topic: str,
    from_beginning: bool = False,
    group: str | None = None,
    limit: int | None = None,
    timeout_s: float | None = None,
    settings: KafkaConfig | None = None,
) -> Iterator[Received]:
    """Yield the alerts of a topic as they come; a copy of an alert seen before is dropped.

    Parameters
    ----------
    servers
        ``"HOST:PORT[,HOST:PORT...]"``.
    topic
        Topic; it may come into being while we wait.
    from_beginning
        Start with the oldest alert kept, else with the next to come. A group that has been here
        before goes on where it left off.
    group
        Consumer group in which to share the topic's partitions and to remember the place; an
        alert's place is committed when the caller asks for the one after it, so after its work.
        None: read all partitions and remember nothing.
    limit
        Stop after this many alerts.
    timeout_s
        Stop when nothing has come for this long. None: go on until stopped.
    settings
        TLS and SASL; the environment goes before it.

    Raises
    ------
    ConfigError
        When ``servers`` or ``settings`` are malformed.
    InputError
        When no server answers.

    """
    options = client_options(settings)
    consumer = _consumer(parse_servers(servers), options, group=group, from_beginning=from_beginning)
    try:
        if group is not None:
            consumer.subscribe([topic])
        elif not _assign(consumer, topic, from_beginning=from_beginning, timeout_s=timeout_s):
            log.warning("topic %s: not there after %s s", topic, timeout_s)
            return
        yield from _alerts(consumer, commit=group is not None, limit=limit, timeout_s=timeout_s)
    finally:
        consumer.close(autocommit=False)


def _alerts(
    consumer: KafkaConsumer, *, commit: bool, limit: int | None, timeout_s: float | None
) -> Iterator[Received]:
    seen: OrderedDict[str, None] = OrderedDict()
    count = 0
    quiet_since = time.monotonic()
    while (limit is None or count < limit) and not (
        timeout_s is not None and time.monotonic() - quiet_since > timeout_s
    ):
        for partition, messages in consumer.poll(timeout_ms=200, max_records=50).items():
            for message in messages:
                received = _decode(message)
                alert_id = received and str(received.record.get("alertId", received.record.get("candid")))
                if received and alert_id not in seen:
                    count += 1
                    yield received
                    seen[alert_id] = None
                    if len(seen) > _REMEMBERED:
                        seen.popitem(last=False)
                if commit:
                    consumer.commit({partition: OffsetAndMetadata(message.offset + 1, "", -1)})
                if limit is not None and count >= limit:
                    return
                quiet_since = time.monotonic()


def _decode(message: Any) -> Received | None:
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
        key=None if message.key is None else message.key.decode(errors="replace"),
        headers={name: (value or b"").decode(errors="replace") for name, value in message.headers},
    )


def _consumer(
    servers: list[str], options: dict[str, Any], *, group: str | None, from_beginning: bool
) -> KafkaConsumer:
    try:
        knock(servers, 5.0)
        return KafkaConsumer(
            bootstrap_servers=servers,
            client_id="ks4diff",
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if from_beginning else "latest",
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=5000,
            reconnect_backoff_max_ms=1000,
            **options,
        )
    except (kafka_errors.KafkaError, OSError) as error:
        raise InputError(f"Kafka at {','.join(servers)}: no answer ({reason_of(error)})") from error


def _assign(consumer: KafkaConsumer, topic: str, *, from_beginning: bool, timeout_s: float | None) -> bool:
    """Read all partitions of a topic once it exists; return False when it does not come in time."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    appeared = False
    while not (numbers := consumer.partitions_for_topic(topic)):
        appeared = True
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(0.2)
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    if from_beginning or appeared:  # what a new topic holds has come since we began to listen
        consumer.seek_to_beginning(*partitions)
    else:
        consumer.seek_to_end(*partitions)
    for partition in partitions:
        consumer.position(partition)  # now, not at the first poll: "next to come" means from here on
    log.info("topic %s: listening to %d partitions", topic, len(partitions))
    return True
