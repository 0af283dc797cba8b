"""The outbox: what must reach Kafka, kept on local disk until the broker says it has it."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of sending
    alert_id TEXT NOT NULL UNIQUE,
    exposure TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    schema TEXT NOT NULL,
    payload BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts INTEGER NOT NULL DEFAULT 0,
    partition INTEGER,
    "offset" INTEGER,                       -- -1: the broker had it already
    reason TEXT,
    created REAL NOT NULL,                  -- seconds since 1970
    changed REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_state ON outbox (state, seq);
"""


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
    schema: str  # version, such as "0.1"
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

    Rows are kept after acknowledgement, so that a rerun knows what was sent. Of several processes
    with the same outbox open, all may add, and the first alone sends (``is_sender``): it holds a
    lock that ends with the process, however it ends. The sender puts messages that a killed
    process left in flight back to pending.

    Not for use from several threads at a time.

    Raises
    ------
    InputError
        When the file is there and is no outbox, or cannot be opened.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        self._db: sqlite3.Connection | None = None
        try:
            self.is_sender = _try_lock(self._lock)
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "PRAGMA synchronous = FULL"
            )  # WAL alone may lose the last commits at a power cut
            self._db.executescript(_SCHEMA)
            if self.is_sender:
                self._recover()
        except sqlite3.DatabaseError as error:
            self.close()
            raise InputError(f"{self.path}: not a usable outbox ({error})") from error

    def add(self, messages: Iterable[Message]) -> int:
        """Store messages as pending, all or none, and return how many were new.

        A message whose ``alert_id`` is there already, in whatever state, is left as it is: one
        alert id has one payload, and a rerun sends nothing twice.
        """
        now = time.time()
        rows = [(m.alert_id, m.exposure, m.topic, m.key, m.schema, m.payload, now, now) for m in messages]
        insert = (
            "INSERT INTO outbox (alert_id, exposure, topic, key, schema, payload, created, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (alert_id) DO NOTHING"
        )
        return self._write_all(insert, rows)

    def claim(self, limit: int) -> list[Message]:
        """Mark up to ``limit`` pending messages in flight and return them, oldest first.

        Nothing is returned to a process that is not the sender.
        """
        if not self.is_sender:
            return []
        rows = self._db.execute(
            "SELECT alert_id, exposure, topic, key, schema, payload FROM outbox"
            " WHERE state = ? ORDER BY seq LIMIT ?",
            (State.PENDING, limit),
        ).fetchall()
        names = ("alert_id", "exposure", "topic", "key", "schema", "payload")
        messages = [Message(**dict(zip(names, row, strict=True))) for row in rows]
        now = time.time()
        self._write_all(
            "UPDATE outbox SET state = ?, attempts = attempts + 1, changed = ? WHERE alert_id = ?",
            [(State.INFLIGHT, now, message.alert_id) for message in messages],
        )
        return messages

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Record what became of messages; an acknowledgement is never taken back."""
        now = time.time()
        self._write_all(
            'UPDATE outbox SET state = ?, partition = ?, "offset" = ?, reason = ?, changed = ?'
            " WHERE alert_id = ? AND state != ?",
            [
                (o.state, o.partition, o.offset, o.reason, now, o.alert_id, State.ACKNOWLEDGED)
                for o in outcomes
            ],
        )

    def revive(self) -> int:
        """Put dead messages back to pending, for a person who removed the cause; return how many."""
        update = "UPDATE outbox SET state = ?, changed = ? WHERE state = ?"
        return self._write_all(update, [(State.PENDING, time.time(), State.DEAD)])

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

    def _recover(self) -> None:
        update = "UPDATE outbox SET state = ?, changed = ? WHERE state = ?"
        count = self._write_all(update, [(State.PENDING, time.time(), State.INFLIGHT)])
        if count:
            log.info(
                "%s: %d messages were in flight when their sender ended; sending again", self.path, count
            )

    def _write_all(self, statement: str, rows: list[tuple]) -> int:
        """Run a statement for every row in one transaction; return the number of rows changed."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            changed = self._db.executemany(statement, rows).rowcount
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return max(changed, 0)


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
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such outbox")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)) as db:
            reasons = db.execute(
                "SELECT reason, count(*) FROM outbox WHERE state != ? AND reason IS NOT NULL GROUP BY reason",
                (State.ACKNOWLEDGED,),
            )
            return OutboxStatus(counts=_counts(db), reasons=dict(reasons))
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a usable outbox ({error})") from error


def _counts(db: sqlite3.Connection) -> dict[str, int]:
    found = dict(db.execute("SELECT state, count(*) FROM outbox GROUP BY state"))
    return {state.value: found.get(state.value, 0) for state in State}


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
