"""Kafka, sending: the one producer that empties the outbox."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors

from ks4diff.io.kafka_settings import KafkaConfig, client_options, parse_servers
from ks4diff.io.outbox import Message, Outcome, State
from ks4diff.io.packets import CONTENT_TYPE

log = logging.getLogger(__name__)
# A broker that is away makes kafka-python log every attempt; what matters we log once, ourselves.
logging.getLogger("kafka").setLevel(logging.CRITICAL)
# Except a bug in its sending thread, which would else show as alerts that wait for no reason.
_SENDER_LOG = logging.getLogger("kafka.producer.sender")
_SENDER_LOG.setLevel(logging.ERROR)
_SENDER_LOG.addFilter(lambda entry: entry.exc_info is not None)

_MAX_MESSAGE = 4 * 1024 * 1024  # bytes: 50 kB now; room for long histories (Kafka's own default is 1 MB)
_PARTITIONS = 4
_RETENTION_MS = 30 * 24 * 3600 * 1000

# The message itself is at fault: trying again cannot help.
_PERMANENT = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
)


class AlertProducer:
    """One idempotent producer for the life of a run, connected when first needed.

    A broker that is away costs ``bootstrap_timeout_s`` once per call and is never an error: the
    messages come back as pending. Messages that outlast a call stay with the producer, and a later
    call reports them.

    Parameters
    ----------
    servers
        ``"HOST:PORT[,HOST:PORT...]"``.
    settings
        TLS and SASL; the environment goes before it.
    bootstrap_timeout_s
        Longest wait for a first connection.
    delivery_timeout_s
        When the producer gives a message up, which then goes back to pending.

    """

    def __init__(
        self,
        servers: str,
        settings: KafkaConfig | None = None,
        *,
        bootstrap_timeout_s: float = 3.0,
        delivery_timeout_s: float = 20.0,
    ) -> None:
        self._servers = parse_servers(servers)
        self._options = client_options(settings)
        self._bootstrap_timeout_s = bootstrap_timeout_s
        self._delivery_timeout_s = delivery_timeout_s
        self._producer: KafkaProducer | None = None
        self._topics: set[str] = set()  # known to exist
        self._flying: dict[str, Any] = {}  # alert id -> future

    def deliver(self, messages: Sequence[Message], *, timeout_s: float) -> list[Outcome]:
        """Send messages and return what is known after at most about ``timeout_s`` seconds.

        The outcomes may be of fewer messages than given, and of messages of earlier calls.
        """
        end = time.monotonic() + timeout_s
        refused = []
        if messages:
            try:
                self._connect(timeout_s)
                self._make_topics({message.topic for message in messages})
            except (kafka_errors.KafkaError, OSError) as error:
                log.warning("Kafka at %s: %s; alerts wait in the outbox", ",".join(self._servers), error)
                reason = reason_of(error)
                refused = [
                    Outcome(alert_id=message.alert_id, state=State.PENDING, reason=reason)
                    for message in messages
                ]
            else:
                refused = self._hand_over(messages)
        if self._flying:
            # Whether flush returns or times out, only the futures know what was delivered.
            with suppress(kafka_errors.KafkaTimeoutError):
                self._producer.flush(timeout=max(0.0, end - time.monotonic()))
        return refused + self._landed()

    def close(self) -> None:
        """Close the connection, without waiting for the broker; safe to call twice.

        What is unacknowledged stays in flight in the outbox, for the next sender.
        """
        if self._producer is None:
            return
        producer, self._producer = self._producer, None
        self._flying.clear()
        try:
            producer.close(timeout=1.0)
        except kafka_errors.KafkaTimeoutError:
            # close() has then flushed in vain and stopped nothing (kafka-python 3.0): its thread
            # would keep sending, and would hold up the end of the process.
            producer._sender.force_close()
            producer._sender.join(5.0)
            producer.close(timeout=1.0)

    def _connect(self, timeout_s: float) -> None:
        if self._producer is not None:
            return
        knock(self._servers, min(self._bootstrap_timeout_s, timeout_s))
        # Whole milliseconds: kafka-python writes them to the wire, and a float fails in its thread.
        delivery_ms = int(1000 * self._delivery_timeout_s)
        self._producer = KafkaProducer(
            bootstrap_servers=self._servers,
            client_id="ks4diff",
            acks="all",
            enable_idempotence=True,
            compression_type=None,  # 98 % of an alert is gzip already
            linger_ms=5,
            batch_size=256 * 1024,
            max_request_size=_MAX_MESSAGE,
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=int(1000 * max(0.2, min(self._bootstrap_timeout_s, timeout_s))),
            max_block_ms=int(1000 * self._bootstrap_timeout_s),
            request_timeout_ms=delivery_ms // 2,
            delivery_timeout_ms=delivery_ms,
            reconnect_backoff_max_ms=1000,
            **self._options,
        )

    def _make_topics(self, topics: set[str]) -> None:
        missing = topics - self._topics
        if not missing:
            return
        timeout_ms = int(1000 * self._bootstrap_timeout_s)
        admin = KafkaAdminClient(
            bootstrap_servers=self._servers,
            client_id="ks4diff",
            bootstrap_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms,
            **self._options,
        )
        try:
            new = missing - set(admin.list_topics())
            if new:
                _create_topics(admin, new, timeout_ms)
        finally:
            admin.close()
        self._topics |= missing

    def _hand_over(self, messages: Sequence[Message]) -> list[Outcome]:
        """Give messages to kafka-python; return the outcome of those it refuses at once."""
        refused = []
        for number, message in enumerate(messages):
            try:
                self._flying[message.alert_id] = self._producer.send(
                    message.topic,
                    key=message.key.encode(),
                    value=message.payload,
                    headers=[
                        ("schema", f"ks4.alert {message.schema}".encode()),
                        ("alertId", message.alert_id.encode()),
                        ("producer_timestamp", str(time.time_ns() // 1_000_000).encode()),
                        ("content_type", CONTENT_TYPE.encode()),
                    ],
                )
            except kafka_errors.KafkaError as error:
                if isinstance(error, _PERMANENT):
                    refused.append(_failure(message.alert_id, error))
                    continue
                # No metadata or no memory: the rest would each wait as long, and overtake this one.
                refused.extend(_failure(later.alert_id, error) for later in messages[number:])
                break
        return refused

    def _landed(self) -> list[Outcome]:
        """Take the futures that are done and return their outcomes."""
        outcomes = []
        for alert_id, future in list(self._flying.items()):
            if not future.is_done:
                continue
            del self._flying[alert_id]
            if future.failed():
                outcomes.append(_failure(alert_id, future.exception))
                continue
            # Offset -1: the broker had it from an earlier attempt and does not say where.
            metadata = future.value
            outcomes.append(
                Outcome(
                    alert_id=alert_id,
                    state=State.ACKNOWLEDGED,
                    partition=metadata.partition,
                    offset=metadata.offset,
                )
            )
        return outcomes


def knock(servers: list[str], timeout_s: float) -> None:
    """Raise OSError unless some server takes a connection: says at once why, where kafka-python waits."""
    problem: OSError | None = None
    for server in servers:
        host, port = server.rsplit(":", 1)
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.2, timeout_s)):
                return
        except OSError as error:
            problem = error
    raise problem


def _create_topics(admin: KafkaAdminClient, topics: set[str], timeout_ms: int) -> None:
    options = {
        "num_partitions": _PARTITIONS,
        "configs": {"max.message.bytes": str(_MAX_MESSAGE), "retention.ms": str(_RETENTION_MS)},
    }
    try:
        admin.create_topics(
            {topic: options for topic in sorted(topics)}, timeout_ms=timeout_ms, wait_for_metadata=True
        )
    except kafka_errors.TopicAlreadyExistsError:
        return  # another sender was faster
    log.info("topics created: %s", ", ".join(sorted(topics)))


def _failure(alert_id: str, error: BaseException) -> Outcome:
    state = State.DEAD if isinstance(error, _PERMANENT) else State.PENDING
    reason = reason_of(error)
    if state is State.DEAD:
        log.error("alert %s: Kafka will never take it: %s", alert_id, reason)
    return Outcome(alert_id=alert_id, state=state, reason=reason)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
