"""Archived files whose alerts found no room in the outbox: the archive keeps them until there is."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS owed ("
    "seq INTEGER PRIMARY KEY AUTOINCREMENT, exposure TEXT NOT NULL, file TEXT NOT NULL UNIQUE, "
    "records INTEGER NOT NULL, since REAL NOT NULL)"
)


@dataclass(frozen=True, kw_only=True)
class OwedFile:
    """An Avro file of the archive that is to go into the outbox as a whole."""

    seq: int
    exposure: str
    path: Path


class Owed:
    """The ``owed`` table of OUT/ks4diff.db, in the order in which the files were archived.

    While it holds any, what is archived later goes behind: alerts of one object must not overtake each other.
    """

    def __init__(self, database: Path) -> None:
        self._database = database

    def put(self, exposure: str, path: Path, records: int) -> None:
        """Note an archived file, on disk when this returns; one that is noted keeps its place."""
        name = os.path.relpath(path.resolve(), self._database.parent.resolve())
        with self._open() as db:
            db.execute(
                "INSERT INTO owed (exposure, file, records, since) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (file) DO UPDATE SET records = excluded.records",
                (exposure, name, records, time.time()),
            )

    def files(self) -> list[OwedFile]:
        """Return what is owed, in order."""
        with self._open() as db:
            rows = db.execute("SELECT seq, exposure, file FROM owed ORDER BY seq").fetchall()
        folder = self._database.parent
        return [OwedFile(seq=seq, exposure=exposure, path=folder / name) for seq, exposure, name in rows]

    def remove(self, owed: OwedFile) -> None:
        """Take a file off the list: its alerts are in the outbox."""
        with self._open() as db:
            db.execute("DELETE FROM owed WHERE seq = ?", (owed.seq,))

    def records(self) -> int:
        """Return how many alerts and messages wait in the archive."""
        if not self._database.is_file():
            return 0
        with self._open() as db:
            return db.execute("SELECT coalesce(sum(records), 0) FROM owed").fetchone()[0]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=30.0, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute(_SCHEMA)
            yield db
