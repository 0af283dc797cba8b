"""Places in a topic: how far a reader has come, committed for its group, and how far behind groups are."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from ks4diff.io.kafka_settings import KafkaConfig, client_options, parse_servers
from ks4diff.io.stream import knock, reason_of
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_ANSWER_MS = 10_000
_LAG_EVERY_S = 10.0
_TRIES = 50  # to commit while a group shares out its partitions, 0.1 s each

Polled = Mapping[TopicPartition, list[Any]]


def position(consumer: KafkaConsumer, partition: TopicPartition) -> int:
    """Return the offset that a consumer is to read next; KafkaTimeoutError when the server does not say."""
    found = _asked(consumer, partition)
    if found is None:
        raise kafka_errors.KafkaTimeoutError(f"no word on the place in {partition.topic}")
    return found


def _asked(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    return consumer.position(partition, timeout_ms=_ANSWER_MS)  # without a limit it may ask for ever


class Places:
    """How far a reader has come in its partitions; those of a group are committed now and then.

    Parameters
    ----------
    consumer
        The reader, which goes to the oldest message where its place is out of range.
    group
        Whether it shares the topic in a group.
    from_beginning
        Where a group begins that has no place: with the oldest message, or the next to come.

    """

    def __init__(self, consumer: KafkaConsumer, *, group: bool, from_beginning: bool) -> None:
        self._consumer = consumer
        self._group = group
        self._from_beginning = from_beginning
        self._next: dict[TopicPartition, int] = {}  # of partitions that are ours: the offset to come
        self._done: dict[TopicPartition, int] = {}  # to be committed

    def begin(self, polled: Polled) -> Polled:
        """Take down where newly assigned partitions begin; return what was polled from there on.

        A partition without a place gets one at once: else the group would miss what comes to it while the
        group is away.
        """
        if not self._group:
            return polled
        ours = self._consumer.assignment()
        self._next = {one: offset for one, offset in self._next.items() if one in ours}
        kept = dict(polled)
        for one in ours - set(self._next):
            place = self._consumer.committed(one, timeout_ms=_ANSWER_MS)
            if place is None and not self._from_beginning:
                kept.pop(one, None)
                self._consumer.seek_to_end(one)
            if place is None:
                place = kept[one][0].offset if one in kept else _asked(self._consumer, one)
                if place is None:
                    continue  # asked again after the next poll
                self._done[one] = place
            self._next[one] = place
        return kept

    def meet(self, partition: TopicPartition, offset: int) -> None:
        """Say so when messages went from the topic, by its retention, before they were read."""
        gone = offset - self._next.get(partition, offset)
        if gone > 0:
            name = f"{partition.topic}[{partition.partition}]"
            log.error("%s: %d messages went from the topic before they were read", name, gone)
        self._next[partition] = offset + 1

    def leave(self, partition: TopicPartition, offset: int) -> None:
        """Take down that a message has been dealt with."""
        self._done[partition] = offset + 1

    def commit(self) -> bool:
        """Commit the places in partitions that are still ours; a failure brings copies, and no loss.

        Returns False when the group is just sharing out its partitions anew: to be tried again after a poll.
        """
        ours = self._consumer.assignment()
        places = {one: OffsetAndMetadata(n, "", -1) for one, n in self._done.items() if one in ours}
        try:
            if places and self._group:
                self._consumer.commit(places, timeout_ms=_ANSWER_MS)
        except kafka_errors.RebalanceInProgressError:
            return False
        except kafka_errors.KafkaError as error:
            log.warning("the place in the topic was not committed (%s): copies may come", reason_of(error))
        self._done.clear()
        return True

    def finish(self) -> None:
        """Commit what is left, before the reader goes."""
        for _ in range(_TRIES):
            if self.commit():
                return
            self._consumer.poll(timeout_ms=100)  # what it brings is left to whoever reads next
        log.warning("the place in the topic was not committed: copies may come")


class Lag:
    """Logs now and then how far behind a consumer is, and when Kafka does not answer."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._next = time.monotonic() + _LAG_EVERY_S
        self._told = 0

    def behind(self) -> int | None:
        """Return how many messages are to come in the reader's partitions; None where nobody answers."""
        try:
            ends = self._consumer.end_offsets(list(self._consumer.assignment()), timeout_ms=_ANSWER_MS)
            return sum(n - position(self._consumer, one) for one, n in ends.items())
        except kafka_errors.KafkaError:
            return None

    def tell(self) -> None:
        """Ask and log, if it is time again."""
        if time.monotonic() < self._next:
            return
        behind = self.behind()
        if behind is None:
            log.warning("Kafka does not answer; waiting")
        elif behind or self._told:
            log.info("%d messages behind", behind)
        self._told = behind or 0
        self._next = time.monotonic() + _LAG_EVERY_S


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """A topic: the messages that it holds, and how many of them each group has not dealt with yet."""

    messages: int
    lag: dict[str, int]  # by group, of the partitions where it has committed a place; by name


def topic_state(
    servers: str, topic: str, *, group: str | None = None, settings: KafkaConfig | None = None
) -> TopicState:
    """Return how a topic and its readers stand; of one group, or of all that have committed a place there.

    Raises
    ------
    ConfigError
        When ``servers`` or ``settings`` are malformed.
    InputError
        When no server answers, there is no such topic, or the group has no place in it.

    """
    addresses, options = parse_servers(servers), client_options(settings)
    options |= {"bootstrap_servers": addresses, "client_id": "ks4diff", "bootstrap_timeout_ms": 5000}
    try:
        knock(addresses, 5.0)
        ends, starts = _bounds(topic, options)
        places = _places(topic, group, options) if ends else {}
    except (kafka_errors.KafkaError, OSError) as error:
        raise InputError(f"Kafka at {servers}: no answer ({reason_of(error)})") from error
    if not ends:
        raise InputError(f"Kafka at {servers}: no topic {topic}")
    if group is not None and not places:
        raise InputError(f"Kafka at {servers}: group {group} has no place in {topic}")
    return TopicState(
        messages=sum(end - starts[one] for one, end in ends.items()),
        lag={
            name: sum(max(ends[one] - max(place, starts[one]), 0) for one, place in places[name].items())
            for name in sorted(places)
        },
    )


def _bounds(topic: str, options: dict) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    consumer = KafkaConsumer(**options, group_id=None, allow_auto_create_topics=False)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        if not partitions:
            return {}, {}
        bounds = (consumer.end_offsets, consumer.beginning_offsets)
        return tuple(ask(partitions, timeout_ms=_ANSWER_MS) for ask in bounds)
    finally:
        consumer.close(autocommit=False)


def _places(topic: str, group: str | None, options: dict) -> dict[str, dict[TopicPartition, int]]:
    admin = KafkaAdminClient(**options, request_timeout_ms=_ANSWER_MS)
    try:
        groups = [group] if group else [found["group_id"] for found in admin.list_groups()]
        committed = admin.list_group_offsets(groups) if groups else {}
    finally:
        admin.close()
    places = {
        name: {one: place.offset for one, place in found.items() if one.topic == topic and place.offset >= 0}
        for name, found in committed.items()
    }
    return {name: found for name, found in places.items() if found}
