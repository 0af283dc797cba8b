"""Alerts as Avro: record to bytes, and any survey's container or framed message back to records."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
from fastavro.repository.base import SchemaRepositoryError
from fastavro.schema import SchemaParseException, load_schema

from ks4diff.io.packet_exposure import exposure_record
from ks4diff.io.packet_records import alert_record, withdrawal, without_times
from ks4diff.io.packet_schemas import (
    alert_schema,
    container_head,
    exposure_schema,
    field_names,
    latest_version,
    schema_id,
    schema_json,
    schema_of,
    schema_of_id,
    schema_versions,
)
from ks4diff.products.errors import InputError

__all__ = [
    "CONTENT_TYPE",
    "Container",
    "alert_record",
    "alert_schema",
    "container_bytes",
    "datum_bytes",
    "exposure_record",
    "exposure_schema",
    "field_names",
    "framed_bytes",
    "latest_version",
    "load_foreign_schema",
    "message_bytes",
    "read_container",
    "schema_json",
    "schema_versions",
    "withdrawal",
    "without_times",
]

CONTENT_TYPE = "application/avro"
_MAGIC = b"Obj\x01"
_FRAME = struct.Struct(">bi")  # Confluent's: a zero byte, then the schema's number, big-endian

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
    """What an Avro container file, or one framed message, holds."""

    schema_name: str  # full name of the record, "" if the schema is not a named type
    schema: Any  # as written in the file
    records: list[dict[str, Any]]


def datum_bytes(record: dict[str, Any]) -> bytes:
    """Return the record as bare Avro, without schema: the bytes that are the same in every sink.

    Raises
    ------
    ValueError
        When the record does not fit the schema its ``schemavsn`` names.

    """
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema_of(record), record, strict_allow_default=True)
    return buffer.getvalue()


def container_bytes(records: Iterable[dict[str, Any]]) -> bytes:
    """Return an Avro container of records of one schema version; none gives an empty one of alerts.

    The sync marker, random in other writers, is a digest of the records, so that equal records
    give equal files.

    Raises
    ------
    ValueError
        When the records are of several versions, or do not fit their schema.

    """
    records = list(records)
    kinds = {(record["schemavsn"], "messageId" in record) for record in records}
    if len(kinds) > 1:
        raise ValueError(f"one container, one schema version: got {sorted(kinds)}")
    version, exposure = kinds.pop() if kinds else (latest_version(), False)
    data = b"".join(datum_bytes(record) for record in records)
    sync = hashlib.sha256(data).digest()[:16]
    head = container_head(version, exposure=exposure) + sync
    return head + _long(len(records)) + _long(len(data)) + data + sync if records else head


def framed_bytes(record: dict[str, Any]) -> bytes:
    """Return the record in Confluent's framing: a zero byte, the schema's number, the bare record."""
    return _FRAME.pack(0, schema_id(record)) + datum_bytes(record)


def message_bytes(record: dict[str, Any], *, wire: str = "container") -> bytes:
    """Return one Kafka message of a record: an Avro ``"container"`` or ``"confluent"`` framing.

    Raises
    ------
    ValueError
        When ``wire`` is neither, or the record does not fit its schema.

    """
    if wire not in ("container", "confluent"):
        raise ValueError(f"wire {wire!r}: container or confluent")
    return container_bytes([record]) if wire == "container" else framed_bytes(record)


def read_container(
    source: bytes | str | os.PathLike[str], *, name: str = "Avro message", schema: Any = None
) -> Container:
    """Return the records of an Avro container, or of one message in Confluent's framing, of any survey.

    The first byte tells the two apart.

    Parameters
    ----------
    source
        The bytes of a container or message, or the path of a file.
    name
        What to call bytes in an error message.
    schema
        The parsed schema of framed messages that are not ours.

    Raises
    ------
    InputError
        When the file cannot be read, is neither container nor framed message, is damaged, or framed with a
        schema that is not known. No part of a damaged container is returned.

    """
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror or error}") from error
    if data[:1] == b"\0" and len(data) > _FRAME.size:
        return _framed(data, name, schema)
    if data[:4] != _MAGIC:
        raise InputError(f"{name}: not an Avro container file")
    try:
        try:
            reader = fastavro.reader(io.BytesIO(data))
        except SchemaParseException:  # TURBO's alerts: a default that is not of its field's type
            reader = fastavro.reader(io.BytesIO(_without_defaults(data)))
        written = reader.writer_schema
        _refuse_endless(written)
        records = list(reader)
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged Avro container ({_first_line(error)})") from error
    return _container(written, records, name)


def load_foreign_schema(path: str | os.PathLike[str]) -> Any:
    """Return the parsed schema of an .avsc file; records that it names are sought beside it.

    Raises
    ------
    InputError
        When it cannot be read or is no schema.

    """
    try:
        return load_schema(os.fspath(path))
    except (OSError, SchemaRepositoryError, *_DAMAGE) as error:
        raise InputError(f"{os.fspath(path)}: not an Avro schema ({_first_line(error)})") from error


def _framed(data: bytes, name: str, schema: Any) -> Container:
    number = _FRAME.unpack_from(data)[1]
    schema = schema or schema_of_id(number)
    if schema is None:
        raise InputError(f"{name}: framed with schema {number}, which is not ours: give its .avsc (--schema)")
    buffer = io.BytesIO(data[_FRAME.size :])
    try:
        record = fastavro.schemaless_reader(buffer, schema, None)
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged, or not of schema {number} ({_first_line(error)})") from error
    if buffer.read(1):
        raise InputError(f"{name}: bytes left over: not of schema {number}, or more than one message")
    return _container(schema, [record], name)


def _container(schema: Any, records: list[Any], name: str) -> Container:
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"{name}: an Avro container, but not of records")
    return Container(schema_name=_full_name(schema), schema=schema, records=records)


def _without_defaults(data: bytes) -> bytes:
    """Return a container whose schema has lost its fields' defaults, which reading does not need."""
    buffer = io.BytesIO(data[len(_MAGIC) :])
    kind = {"type": "map", "values": "bytes"}
    meta = fastavro.schemaless_reader(buffer, kind, None)
    rest = buffer.read()
    meta["avro.schema"] = json.dumps(_plain_fields(json.loads(meta["avro.schema"]))).encode()
    head = io.BytesIO()
    fastavro.schemaless_writer(head, kind, meta)
    return _MAGIC + head.getvalue() + rest


def _plain_fields(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain_fields(part) for part in schema]
    if isinstance(schema, dict):
        return {name: _plain_fields(value) for name, value in schema.items() if name != "default"}
    return schema


def _refuse_endless(schema: Any) -> None:
    """Raise ValueError where a schema has types of no bytes: a few damaged bytes make billions of those.

    One flipped letter of "fields" was seen to keep fastavro busy for minutes with an array of such records.
    """
    if isinstance(schema, list):
        for part in schema:
            _refuse_endless(part)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        if (kind in ("record", "error") and not schema.get("fields")) or schema.get("size") == 0:
            raise ValueError(f"{schema.get('name')}: a type that takes no bytes")
        if kind == "array" and schema.get("items") in ("null", {"type": "null"}):
            raise ValueError("an array of nulls")
        for part in (kind, schema.get("items"), schema.get("values")):
            _refuse_endless(part)
        for field in schema.get("fields", ()):
            _refuse_endless(field.get("type"))


def _long(value: int) -> bytes:
    """Return a number that is not negative as Avro writes it: zigzag, 7 bits a byte, lowest first."""
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _full_name(schema: Any) -> str:
    if not isinstance(schema, dict) or "name" not in schema:
        return ""
    name, space = schema["name"], schema.get("namespace", "")
    return name if "." in name or not space else f"{space}.{name}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
