"""What became of each message of an outbox, read without touching it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ks4diff.products.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How one message stands."""

    topic: str
    state: str  # a `State`
    reason: str | None  # of the last failure


def read_fates(path: str | os.PathLike[str]) -> dict[str, Fate]:
    """Return the fate of every message of an outbox, by alert id.

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
            rows = db.execute("SELECT alert_id, topic, state, reason FROM outbox ORDER BY seq").fetchall()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a usable outbox ({error})") from error
    return {row[0]: Fate(topic=row[1], state=row[2], reason=row[3]) for row in rows}
