"""Every schema version loads, documents itself and still reads the samples."""

import json
from dataclasses import fields

import numpy as np
import pytest

from ks4diff.cli.output import json_record
from ks4diff.io.packets import alert_schema, latest_version, read_container, schema_json, schema_versions
from ks4diff.io.share import shared_path
from ks4diff.io.stamps import decode_stamp
from ks4diff.products.alert import AlertCandidate, Provenance
from ks4diff.products.errors import InputError
from tests.sample_alert import SAMPLE, write_sample

ZTF_NAMES = {"schemavsn", "publisher", "objectId", "candid", "candidate", "prv_candidates"}
ZTF_NAMES |= {"cutoutScience", "cutoutTemplate", "cutoutDifference"}


def records_of(schema):
    """All record schemas in a parsed schema, by name."""
    found = {}
    if isinstance(schema, list):
        for part in schema:
            found |= records_of(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "record":
            found[schema["name"]] = schema
            for field in schema["fields"]:
                found |= records_of(field["type"])
        else:
            found |= records_of(schema.get("items"))
    return found


def test_the_latest_is_the_last():
    assert latest_version() == schema_versions()[-1]


@pytest.mark.parametrize("version", schema_versions())
def test_every_version_loads_and_every_field_is_explained(version):
    records = records_of(alert_schema(version))
    prefix = f"ks4.v{version.replace('.', '_')}"
    assert set(records) >= {f"{prefix}.{name}" for name in ("alert", "candidate", "cutout", "provenance")}
    for record in records.values():
        for field in record["fields"]:
            assert field.get("doc"), f"{record['name']}.{field['name']} has no doc"
            if isinstance(field["type"], list):
                assert field["type"][0] == "null"
                assert field["default"] is None
    assert {field["name"] for field in records[f"{prefix}.alert"]["fields"]} >= ZTF_NAMES


def test_the_latest_has_what_the_products_have():
    records = records_of(alert_schema())
    prefix = f"ks4.v{latest_version().replace('.', '_')}"
    for name, product in (("candidate", AlertCandidate), ("provenance", Provenance)):
        names = [field["name"] for field in records[f"{prefix}.{name}"]["fields"]]
        assert names == [field.name for field in fields(product)]


def test_an_unknown_version_is_named():
    with pytest.raises(InputError, match=r"alerts/schema/7\.7"):
        alert_schema("7.7")


def test_the_sample_is_what_its_script_writes(tmp_path):
    write_sample(tmp_path)
    ours, theirs = (read_container(folder / "alert.avro").records[0] for folder in (tmp_path, SAMPLE))
    # zlib may compress otherwise elsewhere; the pixels are the same.
    for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        stamps = [decode_stamp(record.pop(name)["stampData"]) for record in (ours, theirs)]
        np.testing.assert_array_equal(stamps[0], stamps[1])
    assert ours == theirs


def test_the_sample_json_is_the_sample_avro():
    text = (SAMPLE / "alert.json").read_text(encoding="utf-8")
    assert json.loads(text) == json_record(read_container(SAMPLE / "alert.avro").records[0])


def test_schema_json_is_a_schema_without_the_librarys_marks():
    parsed = json.loads(schema_json())
    assert parsed["name"] == "ks4.v0_1.alert"
    assert "__fastavro" not in schema_json()


def test_shared_files_are_found_and_missing_ones_named():
    assert (shared_path("alerts/schema") / "0.1").is_dir()
    with pytest.raises(InputError, match="alerts/nothing"):
        shared_path("alerts/nothing")
