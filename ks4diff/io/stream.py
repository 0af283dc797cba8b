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

# The message itself is at fault: trying again cannot help.
_PERMANENT = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
)
# The broker's time, not ours: it refuses what a clock an hour ahead of it sent, and soon forgets what one far
# behind it sent, as older than the retention.
_TOPIC = {
    "num_partitions": 4,
    "configs": {
        "max.message.bytes": str(_MAX_MESSAGE),
        "retention.ms": str(30 * 24 * 3600 * 1000),
        "message.timestamp.type": "LogAppendTime",
    },
}


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
        self._suspect = False  # has failed: to be replaced when nothing flies
        self._topics: set[str] = set()  # known to exist
        self._flying: dict[str, tuple[Message, Any]] = {}  # alert id -> message, future

    def deliver(self, messages: Sequence[Message], *, timeout_s: float) -> list[Outcome]:
        """Send messages and return what is known after at most about ``timeout_s`` seconds.

        The outcomes may be of fewer messages than given, and of messages of earlier calls.
        """
        end = time.monotonic() + timeout_s
        refused: list[Outcome] = []
        if messages:
            try:
                self._connect(timeout_s)
                troubles = self._make_topics({message.topic for message in messages})
            except (kafka_errors.KafkaError, OSError) as error:
                log.warning("Kafka at %s: %s; alerts wait in the outbox", ",".join(self._servers), error)
                refused = [_failure(message, error, final=False) for message in messages]
            else:
                refused = [
                    _failure(m, troubles[m.topic], final=False) for m in messages if m.topic in troubles
                ]
                refused += self._hand_over([message for message in messages if message.topic not in troubles])
        if self._flying:
            # Whether flush returns or times out, only the futures know what was delivered.
            with suppress(kafka_errors.KafkaTimeoutError):
                self._producer.flush(timeout=max(0.0, end - time.monotonic()))
        outcomes = refused + self._landed()
        if any(outcome.state is State.PENDING for outcome in outcomes):
            self._suspect = True
            self._topics.clear()
        return outcomes

    def close(self) -> None:
        """Close the connection, without waiting for the broker; safe to call twice.

        What is unacknowledged stays in flight in the outbox, for the next sender.
        """
        if self._producer is None:
            return
        producer, self._producer = self._producer, None
        self._suspect = False
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
        if self._suspect and not self._flying:
            # Its numbers for idempotence may be such that the broker refuses all that follows.
            self.close()
        if self._producer is not None:
            return
        knock(self._servers, min(self._bootstrap_timeout_s, timeout_s))
        # Whole milliseconds: kafka-python writes them to the wire, and a float fails in its thread.
        delivery_ms = int(1000 * self._delivery_timeout_s)
        try:
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
        except kafka_errors.KafkaTimeoutError as error:
            if not self._options:
                raise
            # kafka-python sees no more of it than a connection that is closed
            hint = "wrong password or certificate?"
            raise kafka_errors.KafkaTimeoutError(f"{reason_of(error)} ({hint})") from error

    def _make_topics(self, topics: set[str]) -> dict[str, kafka_errors.KafkaError]:
        """Make the topics that are not there; return those that cannot be, with the reason."""
        missing = topics - self._topics
        if not missing:
            return {}
        timeout_ms = int(1000 * self._bootstrap_timeout_s)
        admin = KafkaAdminClient(
            bootstrap_servers=self._servers,
            client_id="ks4diff",
            bootstrap_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms,
            **self._options,
        )
        try:
            new = sorted(missing - set(admin.list_topics()))
            failed = {topic: error for topic in new if (error := _create(admin, topic, timeout_ms))}
        finally:
            admin.close()
        self._topics |= missing - set(failed)
        return failed

    def _hand_over(self, messages: Sequence[Message]) -> list[Outcome]:
        """Give messages to kafka-python; return the outcome of those it refuses at once."""
        refused = []
        for number, message in enumerate(messages):
            try:
                future = self._producer.send(
                    message.topic, key=message.key.encode(), value=message.payload, headers=_headers(message)
                )
            except kafka_errors.KafkaError as error:
                if isinstance(error, _PERMANENT):
                    refused.append(_failure(message, error))
                    continue
                # No metadata or no memory: the rest would each wait as long.
                refused.extend(_failure(later, error, final=False) for later in messages[number:])
                break
            self._flying[message.alert_id] = message, future
        return refused

    def _landed(self) -> list[Outcome]:
        """Take the futures that are done and return their outcomes."""
        outcomes = []
        for alert_id, (message, future) in list(self._flying.items()):
            if not future.is_done:
                continue
            del self._flying[alert_id]
            if future.failed():
                outcomes.append(_failure(message, future.exception))
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


def _create(admin: KafkaAdminClient, topic: str, timeout_ms: int) -> kafka_errors.KafkaError | None:
    """Create a topic; return what keeps it from being, None when it is there."""
    try:
        admin.create_topics({topic: _TOPIC}, timeout_ms=timeout_ms, wait_for_metadata=True)
    except kafka_errors.TopicAlreadyExistsError:
        return None  # another sender was faster
    except kafka_errors.KafkaError as error:
        log.warning("topic %s: cannot be created: %s", topic, reason_of(error))
        return error
    log.info("topic created: %s", topic)
    return None


def _headers(message: Message) -> list[tuple[str, bytes]]:
    framed = message.payload[:1] == b"\0"
    texts = {
        "schema": message.schema,
        "alertId" if message.schema.startswith("ks4.alert") else "messageId": message.alert_id,
        "producer_timestamp": str(time.time_ns() // 1_000_000),
        "content_type": f"{CONTENT_TYPE};framing=confluent" if framed else CONTENT_TYPE,
    }
    return [(name, text.encode()) for name, text in texts.items()]


def _failure(message: Message, error: BaseException, *, final: bool = True) -> Outcome:
    """Return the outcome of an error; dead where the message is at fault and ``final`` allows it."""
    state = State.DEAD if final and isinstance(error, _PERMANENT) else State.PENDING
    reason = reason_of(error)
    if state is State.DEAD:
        log.error("alert %s: Kafka will never take it: %s", message.alert_id, reason)
    return Outcome(alert_id=message.alert_id, state=state, reason=reason)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
