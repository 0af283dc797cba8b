"""What became of each message of an outbox, read without touching it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ks4diff.io.outbox_file import reading


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
    with reading(path) as db:
        rows = db.execute("SELECT alert_id, topic, state, reason FROM outbox ORDER BY seq").fetchall()
    return {row[0]: Fate(topic=row[1], state=row[2], reason=row[3]) for row in rows}
