"""Withdrawals in the archive: withdrawn.avro beside the alerts that are taken back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.packets import container_bytes, read_container, withdrawal
from ks4diff.products.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A withdrawal that has been archived, with all of its exposure."""

    alert_id: str  # its own
    exposure: str
    path: Path
    records: list[dict[str, Any]]


def archive_withdrawal(database: Path, alert_id: str, reason: str, *, when: float) -> Withdrawn:
    """Archive the withdrawal of an alert, once however often it is asked for.

    Parameters
    ----------
    database
        OUT/ks4diff.db, whose index tells where the alert is archived.
    alert_id
        Of the alert.
    reason
        Why, for people.
    when
        MJD, UTC.

    Raises
    ------
    InputError
        When no such alert is archived there, or it is a withdrawal itself, or of another schema version.

    """
    if not database.is_file():
        raise InputError(f"{database}: no such archive")
    index = AlertIndex(database)
    row = index.find(alert_id)
    if row is None:
        raise InputError(f"{database}: no alert {alert_id}")
    file = database.parent / row["file"]
    alert = next((r for r in read_container(file).records if r["alertId"] == alert_id), None)
    if alert is None:
        raise InputError(f"{file}: no alert {alert_id}, although the index says so")
    try:
        record = withdrawal(alert, reason, when)
    except ValueError as error:
        raise InputError(str(error)) from None
    path = file.with_name("withdrawn.avro")
    records = read_container(path).records if path.exists() else []
    if record["alertId"] not in {other["alertId"] for other in records}:
        records.append(record)
        atomic_write_bytes(path, container_bytes(records))
    index.replace(row["exposure"], path, records)
    return Withdrawn(alert_id=record["alertId"], exposure=row["exposure"], path=path, records=records)
