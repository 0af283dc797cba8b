"""The alerts that a reader has had: a window of ids, in memory or on disk, by which copies are dropped."""

from __future__ import annotations

import os
import sqlite3

from ks4diff.io import write_ahead
from ks4diff.products.errors import InputError

_REMEMBERED = 100_000  # ids: 10 MB, and some weeks of alerts above any sensible score
_PRUNE_EVERY = 1000


class Seen:
    """A set of the newest ids; with a path it outlives the process and is shared by all that name it.

    Raises
    ------
    InputError
        When the file cannot be used.

    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        name = ":memory:" if path is None else os.fspath(path)
        self._added = 0
        try:
            self._db = write_ahead.connect(name)
            self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may bring copies, never a loss
            self._db.execute("CREATE TABLE IF NOT EXISTS seen (number INTEGER PRIMARY KEY, id TEXT UNIQUE)")
        except sqlite3.Error as error:
            raise InputError(f"{name}: not a usable list of alerts ({error})") from error

    def __contains__(self, alert_id: str) -> bool:
        """Return whether the id is in the window."""
        return self._db.execute("SELECT 1 FROM seen WHERE id = ?", (alert_id,)).fetchone() is not None

    def add(self, alert_id: str) -> None:
        """Remember an id; the oldest beyond the window are forgotten now and then."""
        newest = self._db.execute("INSERT OR IGNORE INTO seen (id) VALUES (?)", (alert_id,)).lastrowid
        self._added += 1
        if self._added % _PRUNE_EVERY == 0:
            self._db.execute("DELETE FROM seen WHERE number <= ?", (newest - _REMEMBERED,))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
