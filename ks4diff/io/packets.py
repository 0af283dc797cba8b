"""Alerts as Avro: product to record, record to bytes, and any survey's container back to records."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from fastavro.schema import SchemaParseException, load_schema

from ks4diff.io.share import shared_path
from ks4diff.io.stamps import encode_stamp
from ks4diff.products.alert import Alert
from ks4diff.products.errors import InputError

CONTENT_TYPE = "application/avro"
_STAMPS = {"cutoutScience": "science", "cutoutTemplate": "template", "cutoutDifference": "difference"}

# What fastavro 1.13 was seen to raise on damaged files: truncated and with flipped bytes.
_DAMAGE = (
    SchemaParseException,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """What an Avro container file holds."""

    schema_name: str  # full name of the record, "" if the schema is not a named type
    schema: Any  # as written in the file
    records: list[dict[str, Any]]


def schema_versions() -> list[str]:
    """Return every schema version that this installation carries, oldest first."""
    folders = [path.name for path in shared_path("alerts/schema").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda name: [int(part) for part in name.split(".")])


def latest_version() -> str:
    """Return the version in which alerts are written, such as ``"0.1"``."""
    return shared_path("alerts/latest.txt").read_text(encoding="ascii").strip()


@lru_cache(maxsize=8)
def alert_schema(version: str | None = None) -> dict[str, Any]:
    """Return the parsed alert schema with its nested records; None means the newest.

    Raises
    ------
    InputError
        When this installation has no such version.

    """
    version = version or latest_version()
    name = f"ks4.v{version.replace('.', '_')}.alert.avsc"
    return load_schema(str(shared_path(f"alerts/schema/{version}/{name}")))


def schema_json(version: str | None = None) -> str:
    """Return the alert schema as one JSON text with its nested records in place; None: the newest.

    Raises
    ------
    InputError
        When this installation has no such version.

    """
    plain = {name: value for name, value in alert_schema(version).items() if not name.startswith("__")}
    return json.dumps(plain, indent=2, ensure_ascii=False)


def alert_record(alert: Alert) -> dict[str, Any]:
    """Return the record of an alert in the newest schema.

    Numbers that are not finite become null: NaN is not a measurement. Where the schema allows no
    null, encoding such a record fails.
    """
    candidate = {name: _plain(value) for name, value in asdict(alert.candidate).items()}
    provenance = {name: _plain(value) for name, value in asdict(alert.provenance).items()}
    stamps = {
        field: {
            "fileName": f"{alert.candid}_{image}.fits.gz",
            "stampData": encode_stamp(getattr(alert.cutouts, image)),
        }
        for field, image in _STAMPS.items()
    }
    return {
        "schemavsn": latest_version(),
        "publisher": f"KS4/KMTNet {alert.provenance.software}",
        "alertId": alert.alert_id,
        "alertType": alert.alert_type,
        "objectId": alert.object_id,
        "candid": int(alert.candid),
        "exposure": alert.exposure,
        "candidate": candidate,
        "prv_candidates": None,
        **stamps,
        "provenance": provenance,
    }


def datum_bytes(record: dict[str, Any]) -> bytes:
    """Return the record as bare Avro, without schema: the bytes that are the same in every sink.

    Raises
    ------
    ValueError
        When the record does not fit the schema its ``schemavsn`` names.

    """
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, alert_schema(record["schemavsn"]), record, strict_allow_default=True)
    return buffer.getvalue()


def container_bytes(records: Iterable[dict[str, Any]]) -> bytes:
    """Return an Avro container file of records of one schema version; none gives an empty container.

    The sync marker, random in other writers, is a digest of the records, so that equal records
    give equal files.

    Raises
    ------
    ValueError
        When the records are of several versions, or do not fit their schema.

    """
    records = list(records)
    versions = {record["schemavsn"] for record in records} or {latest_version()}
    if len(versions) > 1:
        raise ValueError(f"one container, one schema version: got {sorted(versions)}")
    digest = hashlib.sha256()
    for record in records:
        digest.update(datum_bytes(record))
    buffer = io.BytesIO()
    schema = alert_schema(versions.pop())
    fastavro.writer(buffer, schema, records, sync_marker=digest.digest()[:16], strict_allow_default=True)
    return buffer.getvalue()


def read_container(source: bytes | str | os.PathLike[str], *, name: str = "Avro message") -> Container:
    """Return the records of an Avro container, of ours or any other schema.

    Parameters
    ----------
    source
        The bytes of a container, or the path of a file.
    name
        What to call bytes in an error message.

    Raises
    ------
    InputError
        When the file cannot be read, is not an Avro container or is damaged. No part of a
        damaged container is returned.

    """
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror or error}") from error
    if data[:4] != b"Obj\x01":
        raise InputError(f"{name}: not an Avro container file")
    try:
        reader = fastavro.reader(io.BytesIO(data))
        records = list(reader)
        schema = reader.writer_schema
    except _DAMAGE as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name}: damaged Avro container ({detail})") from error
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"{name}: an Avro container, but not of records")
    return Container(schema_name=_full_name(schema), schema=schema, records=records)


def _full_name(schema: Any) -> str:
    if not isinstance(schema, dict) or "name" not in schema:
        return ""
    name, space = schema["name"], schema.get("namespace", "")
    return name if "." in name or not space else f"{space}.{name}"


def _plain(value: Any) -> Any:
    """Return numpy scalars as Python's, tuples as lists, and numbers that are not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
