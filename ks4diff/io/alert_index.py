"""An index of the archived alerts: one row per alert, telling the file and the place in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ks4diff.products.errors import InputError

_METADATA = sa.MetaData()
ALERTS = sa.Table(
    "alerts",
    _METADATA,
    sa.Column("alert_id", sa.String(32), primary_key=True),
    sa.Column("candid", sa.BigInteger, nullable=False, index=True),
    sa.Column("object_id", sa.String, index=True),
    sa.Column("exposure", sa.String, nullable=False, index=True),
    sa.Column("file", sa.String, nullable=False),  # relative to the database's folder
    sa.Column("ordinal", sa.Integer, nullable=False),  # 0-based place in the file
    sa.Column("mjd", sa.Float),
    sa.Column("x", sa.Float, nullable=False),
    sa.Column("y", sa.Float, nullable=False),
    sa.Column("ra", sa.Float),
    sa.Column("dec", sa.Float),
    sa.Column("scorr", sa.Float, nullable=False),
    sa.Column("rb", sa.Float),
)
_MEASURED = ("mjd", "x", "y", "ra", "dec", "scorr", "rb")


class AlertIndex:
    """The ``alerts`` table of OUT/ks4diff.db.

    Raises
    ------
    InputError
        When the file is there and is no such database.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        url = sa.URL.create("sqlite", database=str(self.path))
        # NullPool: no connection outlives its use, so the file can be moved or read by others.
        self._engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": 30.0})
        try:
            _METADATA.create_all(self._engine)
        except sa.exc.DatabaseError as error:
            raise InputError(f"{self.path}: not a usable history ({error.orig})") from error

    def replace(self, exposure: str, file: Path, records: list[dict[str, Any]]) -> None:
        """Make the rows of an exposure's file those of ``records``, all or none; other files' stay."""
        name = os.path.relpath(file.resolve(), self.path.parent.resolve())
        rows = [_row(exposure, name, ordinal, record) for ordinal, record in enumerate(records)]
        with self._engine.begin() as connection:
            before = (ALERTS.c.exposure == exposure) & (ALERTS.c.file == name)
            connection.execute(sa.delete(ALERTS).where(before))
            if rows:
                connection.execute(sa.insert(ALERTS), rows)

    def rows(self, exposure: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of one exposure, or all, in the order of exposure and file."""
        query = sa.select(ALERTS).order_by(ALERTS.c.exposure, ALERTS.c.ordinal)
        if exposure is not None:
            query = query.where(ALERTS.c.exposure == exposure)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def rows_in_time(
        self, *, object_id: str | None = None, since: float | None = None, until: float | None = None
    ) -> list[dict[str, Any]]:
        """Return rows by mid-exposure, undated ones first; ``since`` and ``until`` are MJD, UTC."""
        query = sa.select(ALERTS).order_by(ALERTS.c.mjd, ALERTS.c.exposure, ALERTS.c.file, ALERTS.c.ordinal)
        if object_id is not None:
            query = query.where(ALERTS.c.object_id == object_id)
        if since is not None:
            query = query.where(ALERTS.c.mjd >= since)
        if until is not None:
            query = query.where(ALERTS.c.mjd < until)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def find(self, alert_id: str) -> dict[str, Any] | None:
        """Return the row of one alert, None when it is not archived."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(ALERTS).where(ALERTS.c.alert_id == alert_id)).mappings()
            return next((dict(row) for row in found), None)


def _row(exposure: str, file: str, ordinal: int, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "alert_id": record["alertId"],
        "candid": record["candid"],
        "object_id": record["objectId"],
        "exposure": exposure,
        "file": file,
        "ordinal": ordinal,
        **{name: record["candidate"][name] for name in _MEASURED},
    }
