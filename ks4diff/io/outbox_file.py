"""The SQLite file of an outbox: its layout, its transactions and its room on disk."""

from __future__ import annotations

import math
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ks4diff.io import write_ahead
from ks4diff.products.errors import InputError

# Payloads have a table of their own: a change of state then writes 200 bytes, not the 40 kB beside them.
_SCHEMA = (
    """CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of sending
    alert_id TEXT NOT NULL UNIQUE,
    exposure TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    schema TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts INTEGER NOT NULL DEFAULT 0,
    partition INTEGER,
    "offset" INTEGER,                       -- -1: the broker had it already
    reason TEXT,
    created REAL NOT NULL,                  -- seconds since 1970
    changed REAL NOT NULL
)""",
    "CREATE INDEX outbox_state ON outbox (state, seq)",
    "CREATE TABLE payloads (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
)
_VERSION = 2
_RESERVE = 64 << 20  # bytes of the disk that others shall find free, an eighth of a smaller disk
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)  # quotas and limits show as the latter


class OutboxFull(Exception):
    """There is no room: nothing was written. What is to be sent must be kept elsewhere until there is."""


def open_file(path: Path) -> sqlite3.Connection:
    """Return a connection to an outbox, laid out at the first call.

    Raises
    ------
    sqlite3.DatabaseError
        When the file is no outbox of this layout.

    """
    db = write_ahead.connect(path)
    try:
        db.execute("PRAGMA synchronous = FULL")  # WAL alone may lose the last commits at a power cut
        db.execute("PRAGMA secure_delete = OFF")  # Debian's on writes zeros over all that was sent
        size = db.execute("PRAGMA page_size").fetchone()[0]
        # pages of the log; on a small disk it must not grow to what checkpoints need
        db.execute(f"PRAGMA wal_autocheckpoint = {min(1000, _reserve(path) // 2 // size)}")
        if _layout(db) != _VERSION:
            with writing(db, path):
                _lay_out(db)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """Give a connection that changes nothing, also while the outbox is in use.

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
            yield db
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a usable outbox ({error})") from error


@contextmanager
def writing(db: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """Give the connection for one transaction, all of which is on disk at the end, or nothing.

    Raises
    ------
    OutboxFull
        When the disk has no room for it.

    """
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite itself undoes some of those that fail for want of room
                db.execute("ROLLBACK")
            raise
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _NO_ROOM:
            _shorten_log(db)
            raise OutboxFull(f"{path}: {error}") from error
        raise


def check_room(db: sqlite3.Connection, path: Path, size: int, quota: float | None) -> None:
    """Raise OutboxFull when ``size`` more bytes would break the quota or nearly fill the disk."""
    pages, free, unit = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    # of a limit on files half: the log's file must hold as much again
    room = min(quota or math.inf, _file_limit() / 2)
    if (pages - free) * unit + size > room:
        raise OutboxFull(f"{path}: the quota of {room / 1e9:g} GB is used up")
    size = size * 5 // 4  # whole pages
    grown = max(0, size - free * unit)
    # in the log, and in its place beyond pages that are free; where those do, part of the reserve may serve
    needed = size + grown + _reserve(path) // (1 if grown else 2)
    if _free(path) < needed:
        _shorten_log(db)
    if _free(path) < needed:
        raise OutboxFull(f"{path}: the disk is nearly full")


def _free(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def _reserve(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return int(min(_RESERVE, disk.f_blocks * disk.f_frsize / 8, _file_limit() / 8))


def _file_limit() -> float:
    """Return the largest size of a file that this process may write, bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else float(limit)


def _shorten_log(db: sqlite3.Connection) -> None:
    """Move what the log holds to its place, where pages of sent payloads are free, and cut it off."""
    with suppress(sqlite3.OperationalError):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _layout(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _lay_out(db: sqlite3.Connection) -> None:
    if _layout(db) == _VERSION:
        return  # another process was faster
    if db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise sqlite3.DatabaseError(f"layout {_layout(db)}, this ks4diff has {_VERSION}")
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {_VERSION}")
