"""Kafka, listening: the alerts of a topic, decoded, each once; as they come, or those that it holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from ks4diff.io.kafka_settings import KafkaConfig, client_options, parse_servers
from ks4diff.io.places import Lag, Places, position
from ks4diff.io.received import Received, Record, decoded
from ks4diff.io.seen import Seen
from ks4diff.io.stream import knock, reason_of
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_AT_ONCE = 50  # messages a poll: 2 MB, and what is committed together
_SILENT_S = 30.0  # without a message, of a topic that has some
# A group may take as long to give us partitions; for ever, when it has more members than there are.
_JOINING_S = 60.0
_CLOSING_MS = 2000  # with a server that does not answer
_ANSWER_MS = 10_000


class NoTopic(InputError):
    """The server has no such topic."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which alerts a reader takes."""

    wanted: Callable[[Record], bool] | None = None  # others are passed over
    seen: Seen | None = None  # had before; None: nothing, to begin with
    copies: bool = False  # take an alert as often as it comes


def tail(
    servers: str,
    *,
    topic: str,
    from_beginning: bool = False,
    group: str | None = None,
    limit: int | None = None,
    timeout_s: float | None = None,
    choice: Choice | None = None,
    settings: KafkaConfig | None = None,
) -> Iterator[Received]:
    """Yield the alerts of a topic as they come; a copy of an alert seen before is dropped.

    How many messages there are still to read is logged every ten seconds, while there are any.

    Parameters
    ----------
    servers
        ``"HOST:PORT[,HOST:PORT...]"``.
    topic
        Topic; it may come into being while we wait.
    from_beginning
        Start with the oldest alert kept, else with the next to come. A group that has been here
        before goes on where it left off, or with the oldest alert kept where that place is gone.
    group
        Consumer group in which to share the topic's partitions and to remember the place; an
        alert's place is committed only after the caller has asked for the one after it, so after its
        work. None: read all partitions and remember nothing.
    limit
        Stop after this many alerts.
    timeout_s
        Stop when nothing has come for this long, and the topic has nothing more. None: go on until stopped.
    choice
        Which alerts to yield; None: all.
    settings
        TLS and SASL; the environment goes before it.

    Raises
    ------
    ConfigError
        When ``servers`` or ``settings`` are malformed.
    InputError
        When no server answers, or one refuses us.

    """
    consumer = _consumer(servers, settings, group=group)
    try:
        found = _await(consumer, topic, timeout_s)
        if found is None:
            log.warning("topic %s: not there after %s s", topic, timeout_s)
            return
        # what a new topic holds has come since we began to listen
        from_beginning = from_beginning or found == "appeared"
        places = Places(consumer, group=group is not None, from_beginning=from_beginning)
        if group is None:
            _assign(consumer, topic, from_beginning=from_beginning)
        else:
            consumer.subscribe([topic])
        yield from _coming(consumer, _Sieve(choice, limit), places, timeout_s)
    except kafka_errors.KafkaError as error:
        raise InputError(f"Kafka at {servers}: {reason_of(error)}") from error
    finally:
        consumer.close(autocommit=False, timeout_ms=_CLOSING_MS)


def replay(
    servers: str,
    *,
    topic: str,
    since: float | None = None,
    until: float | None = None,
    choice: Choice | None = None,
    settings: KafkaConfig | None = None,
) -> Iterator[Received]:
    """Yield the alerts that a topic holds when asked, then end; nobody's place is changed.

    Parameters
    ----------
    servers, topic, choice, settings
        As of `tail`. The alerts of one partition come in their order.
    since, until
        When Kafka took them, seconds since 1970 (in a topic that we did not make: when they were sent);
        ``until`` is not included.

    Raises
    ------
    ConfigError
        When ``servers`` or ``settings`` are malformed.
    NoTopic
        When there is no such topic.
    InputError
        When no server answers, now or later.

    """
    consumer = _consumer(servers, settings, group=None)
    try:
        if _await(consumer, topic, 1.0) is None:
            raise NoTopic(f"Kafka at {servers}: no topic {topic}")
        _assign(consumer, topic, from_beginning=True)
        for received in _Sieve(choice, None).pick(_held(consumer, since)):
            if (since is None or received.sent >= since) and (until is None or received.sent < until):
                yield received
    except kafka_errors.KafkaError as error:
        raise InputError(f"Kafka at {servers}: {reason_of(error)}") from error
    finally:
        consumer.close(autocommit=False, timeout_ms=_CLOSING_MS)


class _Sieve:
    """Lets pass what a reader takes, each alert once it has been dealt with before."""

    def __init__(self, choice: Choice | None, limit: int | None) -> None:
        choice = choice or Choice()
        self._wanted = choice.wanted
        self._seen = None if choice.copies else choice.seen or Seen()
        self._left = limit

    @property
    def full(self) -> bool:
        """Whether as many have passed as were asked for."""
        return self._left is not None and self._left <= 0

    def pick(self, messages: Iterable[Any]) -> Iterator[Received]:
        """Yield the alerts among messages; one is remembered when the next is asked for."""
        for message in messages:
            received = decoded(message)
            if received is None or (self._wanted is not None and not self._wanted(received.record)):
                continue
            if self._seen is None:
                yield received
            elif received.id not in self._seen:
                yield received
                self._seen.add(received.id)
            else:
                continue
            if self._left is not None:
                self._left -= 1


def _coming(
    consumer: KafkaConsumer, sieve: _Sieve, places: Places, timeout_s: float | None
) -> Iterator[Received]:
    """Yield what passes, until the sieve is full or nothing comes; commit what has been dealt with."""
    lag = Lag(consumer)
    began = quiet_since = time.monotonic()
    try:
        while not sieve.full and not _is_over(lag, time.monotonic() - quiet_since, timeout_s):
            polled = places.begin(consumer.poll(timeout_ms=200, max_records=_AT_ONCE))
            if not consumer.assignment() and time.monotonic() - began < _JOINING_S:
                quiet_since = time.monotonic()
            for partition, messages in polled.items():
                for message in messages:
                    places.meet(partition, message.offset)
                    yield from sieve.pick([message])
                    places.leave(partition, message.offset)
                    if sieve.full:
                        return
                quiet_since = time.monotonic()
            places.commit()
            lag.tell()
    finally:
        places.finish()


def _is_over(lag: Lag, quiet_s: float, timeout_s: float | None) -> bool:
    """Return whether nothing has come for long enough; what is there and slow to come is waited for."""
    if timeout_s is None or quiet_s < timeout_s:
        return False
    return quiet_s > timeout_s + _SILENT_S or not lag.behind()


def _held(consumer: KafkaConsumer, since: float | None) -> Iterator[Any]:
    """Yield the messages of the assigned partitions up to their present ends, from a time on."""
    partitions = sorted(consumer.assignment())
    ends = consumer.end_offsets(partitions, timeout_ms=_ANSWER_MS)
    if since is not None:
        wanted = {partition: int(1000 * since) for partition in partitions}
        for partition, found in consumer.offsets_for_times(wanted, timeout_ms=_ANSWER_MS).items():
            consumer.seek(partition, ends[partition] if found is None else found.offset)
    progress = time.monotonic()
    while any(position(consumer, one) < ends[one] for one in partitions):
        for partition, messages in consumer.poll(timeout_ms=200, max_records=_AT_ONCE).items():
            yield from (message for message in messages if message.offset < ends[partition])
            progress = time.monotonic()
        if time.monotonic() - progress > _SILENT_S:
            raise kafka_errors.KafkaTimeoutError(f"nothing came for {_SILENT_S:.0f} s, before the end")


def _consumer(servers: str, settings: KafkaConfig | None, *, group: str | None) -> KafkaConsumer:
    options, addresses = client_options(settings), parse_servers(servers)
    try:
        knock(addresses, 5.0)
        return KafkaConsumer(
            bootstrap_servers=addresses,
            client_id="ks4diff",
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # where a place is out of range: nothing that is there is missed
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=5000,
            reconnect_backoff_max_ms=1000,
            **options,
        )
    except (kafka_errors.KafkaError, OSError) as error:
        raise InputError(f"Kafka at {servers}: no answer ({reason_of(error)})") from error


def _await(consumer: KafkaConsumer, topic: str, timeout_s: float | None) -> str | None:
    """Wait for a topic; return ``"there"`` or ``"appeared"``, None when it does not come in time."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    found = "there"
    while not consumer.partitions_for_topic(topic):
        found = "appeared"
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(0.2)
    return found


def _assign(consumer: KafkaConsumer, topic: str, *, from_beginning: bool) -> None:
    """Read all partitions of a topic, from now on or from their beginnings."""
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    (consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(*partitions)
    for partition in partitions:
        position(consumer, partition)  # now, not at the first poll: "next to come" means from here on
    log.info("topic %s: listening to %d partitions", topic, len(partitions))
