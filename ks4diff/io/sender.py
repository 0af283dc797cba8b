"""From the outbox to the broker: batch by batch, in order, with growing waits where it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ks4diff.io.outbox import Message, Outbox, Outcome, State
from ks4diff.io.outbox_file import OutboxFull

log = logging.getLogger(__name__)

_BATCH = 200  # messages handed to the producer at a time: about 10 MB
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_OTHER_SENDER_S = 0.1  # between two looks at whether another process still sends


@dataclass(frozen=True, kw_only=True)
class DeliverySummary:
    """How delivery stands after a flush."""

    acknowledged: int = 0  # by the broker, during this flush
    waiting: int = 0  # now in the outbox, pending or in flight, or in the archive for want of room
    dead: int = 0  # now in the outbox: refused for good


class Producer(Protocol):
    """What a `Sender` sends with: ``io.stream.AlertProducer``, or a test's."""

    def deliver(self, messages: Sequence[Message], *, timeout_s: float) -> list[Outcome]:
        """Send, and return what is known by then, also of messages of earlier calls."""

    def close(self) -> None:
        """Let go of the connection."""


class Backoff:
    """Which topics to leave alone for now: after each failure twice as long, up to a minute.

    By topic, so that one that refuses us (its rights, its leader) does not hold up the others; by the
    monotonic clock, so that a clock that is set cannot stop the sending.
    """

    def __init__(self, first_s: float = _FIRST_WAIT_S, longest_s: float = _LONGEST_WAIT_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._waits: dict[str, tuple[float, float]] = {}  # topic -> (seconds, until)

    def note(self, failed: set[str], succeeded: set[str]) -> None:
        """Take in what a batch met."""
        for topic in succeeded - failed:
            self._waits.pop(topic, None)
        for topic in failed:
            before = 0.0 if topic in succeeded else self._waits.get(topic, (0.0, 0.0))[0]
            wait = min(max(2 * before, self._first_s), self._longest_s)
            self._waits[topic] = wait, time.monotonic() + wait

    def paused(self) -> list[str]:
        """Return the topics whose time has not come."""
        now = time.monotonic()
        return [topic for topic, (_, until) in self._waits.items() if until > now]

    def seconds(self) -> float:
        """Return how long until the first of them may be tried again."""
        now = time.monotonic()
        return min((until - now for _, until in self._waits.values() if until > now), default=0.0)


class Sender:
    """Empties an outbox with one long-lived producer."""

    def __init__(self, outbox: Outbox, producer: Producer, *, backoff: Backoff | None = None) -> None:
        self._outbox, self._producer = outbox, producer
        self._backoff = backoff or Backoff()
        self._flying: dict[str, str] = {}  # alert id -> topic
        self._unsettled: list[Outcome] = []  # known, but the disk had no room for it

    def flush(self, deadline_s: float, *, patient: bool = False) -> DeliverySummary:
        """Send what is pending, oldest first, for at most about ``deadline_s`` seconds.

        A topic that fails is left alone for a while, after this flush too: a broker that is away is asked
        once. While another process sends from the same outbox, wait for it to take ours along.

        Parameters
        ----------
        deadline_s
            Seconds.
        patient
            Wait for the next try of what failed, as long as the deadline allows.

        """
        end = time.monotonic() + deadline_s
        acknowledged = 0
        try:
            while True:
                if self._outbox.lead():
                    acknowledged += self._send(end)
                pause = self._pause(patient=patient)
                if pause is None or time.monotonic() + pause >= end:
                    break
                time.sleep(pause)
            if not self._flying and not self._unsettled:
                self._outbox.rest()
        except OutboxFull as error:
            log.error("%s; alerts are sent when the disk has room again", error)
        counts = self._outbox.counts()
        return DeliverySummary(
            acknowledged=acknowledged,
            waiting=counts[State.PENDING] + counts[State.INFLIGHT],
            dead=counts[State.DEAD],
        )

    def close(self) -> None:
        """Close producer and outbox; what is in flight will be sent again by the next sender."""
        self._producer.close()
        self._outbox.close()

    def _send(self, end: float) -> int:
        """Send all that may be sent now; return how many were acknowledged."""
        acknowledged = 0
        self._settle([])
        while time.monotonic() < end:
            messages = self._outbox.claim(_BATCH, without=self._backoff.paused())
            if not messages and not self._flying:
                break
            self._flying |= {message.alert_id: message.topic for message in messages}
            outcomes = self._producer.deliver(messages, timeout_s=max(0.0, end - time.monotonic()))
            self._settle(outcomes)
            acknowledged += sum(outcome.state is State.ACKNOWLEDGED for outcome in outcomes)
            if not messages and not outcomes:
                break  # what flies takes longer than we may wait
        return acknowledged

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        met: dict[bool, set[str]] = {True: set(), False: set()}
        for outcome in outcomes:
            topic = self._flying.pop(outcome.alert_id, None)
            if topic is not None:
                met[outcome.state is State.PENDING].add(topic)
        self._backoff.note(failed=met[True], succeeded=met[False])
        self._unsettled += outcomes
        if self._unsettled:
            self._outbox.settle(self._unsettled)
            self._unsettled = []

    def _pause(self, *, patient: bool) -> float | None:
        """Return the seconds until there is more to do, None when there is nothing."""
        counts = self._outbox.counts()
        if not counts[State.PENDING] + counts[State.INFLIGHT]:
            return None
        if not self._outbox.is_sender:
            return _OTHER_SENDER_S
        return max(self._backoff.seconds(), 0.01) if patient and counts[State.PENDING] else None


def send_outbox(outbox: Outbox, producer: Producer, *, deadline_s: float) -> DeliverySummary:
    """Send an outbox's pending messages, trying again what fails, for at most ``deadline_s`` seconds."""
    return Sender(outbox, producer).flush(deadline_s, patient=True)
