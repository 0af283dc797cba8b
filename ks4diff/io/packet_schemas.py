"""The Avro schemas that this installation carries: every version of the alert and of the exposure message."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import fastavro
from fastavro.schema import load_schema

from ks4diff.io.share import shared_path
from ks4diff.products.errors import InputError

EXPOSURE_VERSION = "1.0"
_EXPOSURE_ID = 10_000  # added to the ids of exposure messages' schemas


def schema_versions() -> list[str]:
    """Return every alert schema version that this installation carries, oldest first."""
    folders = [path.name for path in shared_path("alerts/schema").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda name: [int(part) for part in name.split(".")])


@lru_cache(maxsize=1)
def latest_version() -> str:
    """Return the version in which alerts are written, such as ``"1.0"``."""
    return shared_path("alerts/latest.txt").read_text(encoding="ascii").strip()


@lru_cache(maxsize=8)
def alert_schema(version: str | None = None) -> dict[str, Any]:
    """Return the parsed alert schema with its nested records; None means the newest.

    Raises
    ------
    InputError
        When this installation has no such version.

    """
    return _load("schema", version or latest_version(), "alert")


@lru_cache(maxsize=8)
def exposure_schema(version: str | None = None) -> dict[str, Any]:
    """Return the parsed schema of the exposure message; None means the newest.

    Raises
    ------
    InputError
        When this installation has no such version.

    """
    return _load("exposure", version or EXPOSURE_VERSION, "exposure")


@lru_cache(maxsize=1)
def field_names() -> frozenset[str]:
    """Return the dotted names of the fields of all our schemas, ``a.*`` for a map whose names are free."""
    schemas = [alert_schema(version) for version in schema_versions()] + [exposure_schema()]
    return frozenset(name for schema in schemas for name in _names(schema, ""))


def _names(kind: Any, prefix: str) -> Iterator[str]:
    if isinstance(kind, list):  # a union
        for one in kind:
            yield from _names(one, prefix)
    elif isinstance(kind, dict) and kind["type"] == "record":
        for field in kind["fields"]:
            yield prefix + field["name"]
            yield from _names(field["type"], f"{prefix}{field['name']}.")
    elif isinstance(kind, dict) and kind["type"] == "array":
        yield from _names(kind["items"], prefix)
    elif isinstance(kind, dict) and kind["type"] == "map":
        yield f"{prefix}*"


def schema_json(version: str | None = None, *, exposure: bool = False) -> str:
    """Return the schema of alerts, or of exposure messages, as one JSON text; None: the newest version.

    Raises
    ------
    InputError
        When this installation has no such version.

    """
    schema = exposure_schema(version) if exposure else alert_schema(version)
    return json.dumps(_plain(schema), indent=2, ensure_ascii=False)


def schema_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a record of ours names: of an alert, or of an exposure message."""
    version = record["schemavsn"]
    return exposure_schema(version) if "messageId" in record else alert_schema(version)


def schema_id(record: dict[str, Any]) -> int:
    """Return the number that stands for a record's schema in Confluent's framing.

    100 * MAJOR + MINOR for alerts, as LSST's; 10000 more for exposure messages. It follows from the version,
    so a registry that is lost can be filled again.
    """
    major, minor = (int(part) for part in record["schemavsn"].split("."))
    return 100 * major + minor + (_EXPOSURE_ID if "messageId" in record else 0)


def schema_of_id(number: int) -> dict[str, Any] | None:
    """Return our schema of a number, None when this installation has none."""
    exposure, number = number >= _EXPOSURE_ID, number % _EXPOSURE_ID
    version = f"{number // 100}.{number % 100}"
    try:
        return exposure_schema(version) if exposure else alert_schema(version)
    except InputError:
        return None


@lru_cache(maxsize=16)
def container_head(version: str, *, exposure: bool) -> bytes:
    """Return an Avro container's first bytes up to its sync marker: magic, codec and schema without docs.

    The docs are two thirds of a schema's bytes, and every message would carry them.
    """
    schema = exposure_schema(version) if exposure else alert_schema(version)
    text = json.dumps(_without_docs(_plain(schema)), separators=(",", ":"))
    meta = {"avro.codec": b"null", "avro.schema": text.encode()}
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, {"type": "map", "values": "bytes"}, meta)
    return b"Obj\x01" + buffer.getvalue()


def _load(folder: str, version: str, record: str) -> dict[str, Any]:
    name = f"ks4.v{version.replace('.', '_')}.{record}.avsc"
    return load_schema(str(shared_path(f"alerts/{folder}/{version}/{name}")))


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if not name.startswith("__")}


def _without_docs(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_docs(part) for part in schema]
    if isinstance(schema, dict):
        return {name: _without_docs(value) for name, value in schema.items() if name != "doc"}
    return schema
