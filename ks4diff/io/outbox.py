"""The outbox: what must reach Kafka, kept on local disk until the broker says it has it."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ks4diff.io.outbox_file import check_room, open_file, reading, writing
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_REMEMBERED = 1_000_000  # acknowledged messages whose ids are kept, so that a rerun sends none again: 250 MB


class State(StrEnum):
    """Where a message is on its way."""

    PENDING = "pending"  # to be sent
    INFLIGHT = "inflight"  # handed to the producer, no word from the broker yet
    ACKNOWLEDGED = "acknowledged"  # the broker has it
    DEAD = "dead"  # will never be accepted as it is; a person must look


@dataclass(frozen=True, kw_only=True)
class Message:
    """One packet to be sent, the same bytes every time it is tried."""

    alert_id: str
    exposure: str
    topic: str
    key: str
    schema: str  # with its version, such as "ks4.alert 1.0"
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one message that was handed to the producer."""

    alert_id: str
    state: State  # acknowledged, pending (may be tried again) or dead
    partition: int | None = None
    offset: int | None = None
    reason: str | None = None


class Outbox:
    """A local SQLite of messages and their states; every change is on disk before a method returns.

    A payload goes when it is acknowledged; its row stays, so that a rerun knows what was sent. Of several
    processes with the same outbox open, all may add, and one at a time sends (`lead`): it holds a lock that
    ends with the process, however it ends.

    Not for use from several threads at a time.

    Parameters
    ----------
    path
        The file; made if need be.
    quota
        Bytes of the file from which on `add` refuses; None: until the disk is nearly full.

    Raises
    ------
    InputError
        When the file is there and is no outbox, or cannot be opened.

    """

    def __init__(self, path: str | os.PathLike[str], *, quota: float | None = None) -> None:
        self.path = Path(path)
        self.quota = quota
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.is_sender = False
        self._lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        self._db: sqlite3.Connection | None = None
        try:
            self._db = open_file(self.path)
        except sqlite3.DatabaseError as error:
            self.close()
            raise InputError(f"{self.path}: not a usable outbox ({error})") from error

    def add(self, messages: Iterable[Message]) -> int:
        """Store messages as pending, all or none, and return how many were new.

        A message whose ``alert_id`` is there already, in whatever state, is left as it is: one
        alert id has one payload, and a rerun sends nothing twice.

        Raises
        ------
        OutboxFull
            When the quota or the disk has no room.

        """
        messages = list(messages)
        check_room(self._db, self.path, sum(len(message.payload) for message in messages), self.quota)
        now = time.time()
        row = (
            "INSERT INTO outbox (alert_id, exposure, topic, key, schema, created, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (alert_id) DO NOTHING"
        )
        added = 0
        with self._writing() as db:
            for m in messages:
                done = db.execute(row, (m.alert_id, m.exposure, m.topic, m.key, m.schema, now, now))
                if done.rowcount:
                    db.execute("INSERT INTO payloads VALUES (?, ?)", (done.lastrowid, m.payload))
                    added += 1
        return added

    def lead(self) -> bool:
        """Become the sender unless another process is; return whether this one is.

        What a sender that was killed left in flight is put back to pending.
        """
        if not self.is_sender and _try_lock(self._lock):
            try:
                self._recover()
            except BaseException:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                raise
            self.is_sender = True
        return self.is_sender

    def rest(self) -> None:
        """Let another process send; what is in flight must have been settled."""
        if self.is_sender:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self.is_sender = False

    def claim(self, limit: int, *, without: Sequence[str] = ()) -> list[Message]:
        """Mark up to ``limit`` pending messages in flight and return them, oldest first.

        Of one key and topic, one at a time is in flight: a message that must be sent again is not overtaken
        by the next of its object. Nothing is returned to a process that cannot `lead`.

        Parameters
        ----------
        limit
            Number of messages.
        without
            Topics to leave out.

        """
        if not self.lead():
            return []
        busy = set(self._db.execute("SELECT topic, key FROM outbox WHERE state = ?", (State.INFLIGHT,)))
        left_out = ", ".join("?" * len(without))
        rows = self._db.execute(
            "SELECT seq, alert_id, exposure, topic, key, schema FROM outbox"
            f" WHERE state = ? AND topic NOT IN ({left_out}) ORDER BY seq LIMIT ?",
            (State.PENDING, *without, limit),
        ).fetchall()
        chosen = []
        for row in rows:
            if (row[3], row[4]) not in busy:
                busy.add((row[3], row[4]))
                chosen.append(row)
        if not chosen:
            return []
        now = time.time()
        change = "UPDATE outbox SET state = ?, attempts = attempts + 1, changed = ? WHERE seq = ?"
        with self._writing() as db:
            db.executemany(change, [(State.INFLIGHT, now, row[0]) for row in chosen])
        return [self._message(row) for row in chosen]

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Record what became of messages; an acknowledgement is never taken back.

        Raises
        ------
        OutboxFull
            When the disk has no room for it; nothing is recorded then.

        """
        now = time.time()
        outcomes = list(outcomes)
        change = (
            'UPDATE outbox SET state = ?, partition = ?, "offset" = ?, reason = ?, changed = ?'
            " WHERE alert_id = ? AND state != ?"
        )
        drop = "DELETE FROM payloads WHERE seq = (SELECT seq FROM outbox WHERE alert_id = ?)"
        with self._writing() as db:
            db.executemany(
                change,
                [
                    (o.state, o.partition, o.offset, o.reason, now, o.alert_id, State.ACKNOWLEDGED)
                    for o in outcomes
                ],
            )
            db.executemany(drop, [(o.alert_id,) for o in outcomes if o.state is State.ACKNOWLEDGED])

    def revive(self) -> int:
        """Put dead messages back to pending, for a person who removed the cause; return how many."""
        return self._move(State.DEAD, State.PENDING)

    def counts(self) -> dict[str, int]:
        """Return the number of messages in each state; all states are named."""
        return _counts(self._db)

    def close(self) -> None:
        """Close the file and let another process send; safe to call twice."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)  # this also ends the lock
            self._lock = -1
        self.is_sender = False

    def _message(self, row: Sequence) -> Message:
        seq, *values = row
        (payload,) = self._db.execute("SELECT payload FROM payloads WHERE seq = ?", (seq,)).fetchone()
        names = ("alert_id", "exposure", "topic", "key", "schema")
        return Message(**dict(zip(names, values, strict=True)), payload=payload)

    def _recover(self) -> None:
        count = self._move(State.INFLIGHT, State.PENDING)
        if count:
            log.info(
                "%s: %d messages were in flight when their sender ended; sending again", self.path, count
            )
        old = "SELECT max(seq) FROM outbox"
        with self._writing() as db:
            db.execute(
                f"DELETE FROM outbox WHERE state = ? AND seq <= ({old}) - ?",
                (State.ACKNOWLEDGED, _REMEMBERED),
            )

    def _move(self, before: State, after: State) -> int:
        change = "UPDATE outbox SET state = ?, changed = ? WHERE state = ?"
        with self._writing() as db:
            return db.execute(change, (after, time.time(), before)).rowcount

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        return writing(self._db, self.path)


@dataclass(frozen=True, kw_only=True)
class OutboxStatus:
    """What an outbox holds, read without touching it."""

    counts: dict[str, int]  # messages by state
    reasons: dict[str, int]  # undelivered messages by the reason last given


def read_status(path: str | os.PathLike[str]) -> OutboxStatus:
    """Return what the outbox at ``path`` holds, changing nothing, also while it is in use.

    Raises
    ------
    InputError
        When there is no outbox at ``path``, or it cannot be read.

    """
    with reading(path) as db:
        reasons = db.execute(
            "SELECT reason, count(*) FROM outbox WHERE state != ? AND reason IS NOT NULL GROUP BY reason",
            (State.ACKNOWLEDGED,),
        )
        return OutboxStatus(counts=_counts(db), reasons=dict(reasons))


def _counts(db: sqlite3.Connection) -> dict[str, int]:
    found = dict(db.execute("SELECT state, count(*) FROM outbox GROUP BY state"))
    return {state.value: found.get(state.value, 0) for state in State}


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
