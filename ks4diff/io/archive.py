"""The alerts that a run has archived under OUT: by the index, in order of time, or file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.packets import read_container
from ks4diff.products.errors import InputError

INDEX = "ks4diff.db"
_FILES = ("alerts.avro", "withdrawn.avro")

Record = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArchivedFile:
    """One Avro file of the archive with its rows in the index; ``trouble`` says why it cannot be read."""

    path: Path
    rows: list[Row]
    records: list[Record]
    trouble: str | None = None


def index_of(out: Path) -> AlertIndex:
    """Return the index of an archive that is there.

    Raises
    ------
    InputError
        When ``out`` has none: to look into an archive must not make it.

    """
    path = out / INDEX
    if not path.is_file():
        raise InputError(f"{path}: no such archive of alerts")
    return AlertIndex(path)


def archived(
    out: Path, *, object_id: str | None = None, since: float | None = None, until: float | None = None
) -> Iterator[Record]:
    """Yield archived alerts in order of time; of one object, and of mid-exposures from MJD ``since`` on.

    ``until`` is not included.

    Raises
    ------
    InputError
        When there is no archive, or a file is damaged or not what the index says.

    """
    path, records = None, []
    for row in index_of(out).rows_in_time(object_id=object_id, since=since, until=until):
        if out / row["file"] != path:
            path = out / row["file"]
            records = read_container(path).records
        record = records[row["ordinal"]] if row["ordinal"] < len(records) else {}
        if record.get("alertId") != row["alert_id"]:
            raise InputError(f"{path}: alert {row['alert_id']} is not where {INDEX} says")
        yield record


def archived_files(out: Path) -> Iterator[ArchivedFile]:
    """Yield every file of alerts that is there or that the index names, in order of name.

    Raises
    ------
    InputError
        When there is no archive.

    """
    by_file: dict[Path, list[Row]] = {}
    for row in index_of(out).rows():
        by_file.setdefault((out / row["file"]).resolve(), []).append(row)
    there = [path.resolve() for name in _FILES for where in ("", "*/*/") for path in out.glob(where + name)]
    for path in sorted({*by_file, *there}, key=os.fspath):
        rows = by_file.get(path, [])
        try:
            yield ArchivedFile(path=path, rows=rows, records=read_container(path).records)
        except InputError as error:
            yield ArchivedFile(path=path, rows=rows, records=[], trouble=str(error))
