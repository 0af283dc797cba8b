"""Every schema version loads, documents itself, is never changed and still reads what it ever wrote."""

import copy
import hashlib
import io
import json
import re
from types import SimpleNamespace

import fastavro
import kafka
import numpy as np
import pytest
from fastavro.schema import SchemaParseException, parse_schema

from ks4diff.cli.output import json_record
from ks4diff.io.packet_records import COLUMN_OF
from ks4diff.io.packets import (
    alert_schema,
    datum_bytes,
    exposure_schema,
    latest_version,
    message_bytes,
    read_container,
    schema_json,
    schema_versions,
)
from ks4diff.io.share import shared_path
from ks4diff.io.stamps import decode_stamp
from ks4diff.products.candidates import COLUMNS
from ks4diff.products.errors import InputError
from tests.sample_alert import SAMPLE, make_exposure, make_records, write_sample

# SHA-256 of each released folder: names and contents of its files. A released version never changes.
RELEASED = {
    "schema/0.1": "80e692ce245c023e7d536a7fd9389416e93683d09bd62e6c8d44143f41200908",
    "schema/1.0": "edf64225162f67a4843d0ac128674d114aee00e2b7cf141fa3c4219905ec1cef",
    "exposure/1.0": "c0f2c0eb30dab764f27fd67b9522a44a3b71204bec21e9539f28476b823a85b4",
}
ALERTS = SAMPLE.parent.parent
SAMPLES = sorted(path.name for path in SAMPLE.parent.iterdir())
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def folder_digest(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


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


def read_as(record, written, wanted):
    """A record written with one schema, as a reader with another sees it."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, written, record)
    return fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), written, wanted)


def same_major(version):
    return [other for other in schema_versions() if other.split(".")[0] == version.split(".")[0]]


def test_the_latest_is_the_last():
    assert latest_version() == schema_versions()[-1]


def test_released_versions_never_change():
    folders = [
        f"{kind}/{path.name}"
        for kind in ("schema", "exposure")
        for path in sorted(shared_path(f"alerts/{kind}").iterdir())
    ]
    assert {name: folder_digest(shared_path(f"alerts/{name}")) for name in folders} == RELEASED


@pytest.mark.parametrize("version", schema_versions())
def test_every_version_loads_and_every_field_is_explained(version):
    check_documented(records_of(alert_schema(version)), f"ks4.v{version.replace('.', '_')}")


def test_the_exposure_message_is_explained():
    check_documented(records_of(exposure_schema()), "ks4.v1_0")


def check_documented(records, prefix):
    for name, record in records.items():
        assert name.startswith(prefix + ".")
        assert record["doc"]
        for field in record["fields"]:
            assert field.get("doc"), f"{name}.{field['name']} has no doc"
            if isinstance(field["type"], list):
                assert field["type"][0] == "null"
                assert len(field["type"]) == 2
                assert field["default"] is None


def test_every_column_of_candidates_fits_has_a_field_or_goes_into_measurements():
    candidate = records_of(alert_schema())["ks4.v1_0.candidate"]
    names = {field["name"] for field in candidate["fields"]}
    assert set(COLUMN_OF) <= names
    assert set(COLUMN_OF.values()) <= {column.name for column in COLUMNS}
    assert len(set(COLUMN_OF.values())) == len(COLUMN_OF)


def test_units_are_where_a_number_has_one():
    for record in records_of(alert_schema()).values():
        for field in record["fields"]:
            name, doc = field["name"], field["doc"]
            if name.lower().endswith(("flux", "fluxerr")) or name in (
                "forcediffimflux",
                "forcediffimfluxunc",
            ):
                assert doc.endswith(("[fluxUnit]", "[nJy]")), name
            if name.startswith(("mag", "sigmapsf", "diffmaglim")):
                assert doc.endswith("[mag]"), name
            if name in ("ra", "dec") or name.startswith(("jd", "mjd", "t_")):
                assert "[deg]" in doc or "[day]" in doc, name


@pytest.mark.parametrize("version", SAMPLES)
def test_samples_of_every_version_stay_readable(version):
    record = read_container(SAMPLE.parent / version / "alert.avro").records[0]
    assert record["schemavsn"] == version
    assert read_as(record, alert_schema(version), None) == record
    for name in CUTOUTS:
        assert decode_stamp(record[name]["stampData"]).shape == (63, 63)
    text = (SAMPLE.parent / version / "alert.json").read_text(encoding="utf-8")
    assert json.loads(text) == json_record(record)


PROMOTED = {("int", "long"), ("int", "float"), ("int", "double"), ("long", "float"), ("long", "double")}
PROMOTED |= {("float", "double"), ("string", "bytes"), ("bytes", "string")}


def unreadable(written, wanted, name="alert"):
    """What a reader with one schema could not read of some data written with another, by Avro's rules."""
    written, wanted = (t["type"] if is_plain(t) else t for t in (written, wanted))
    if isinstance(written, list):
        return [problem for branch in written for problem in unreadable(branch, wanted, name)]
    if isinstance(wanted, list):
        return (
            [] if any(not unreadable(written, branch, name) for branch in wanted) else [f"{name}: no branch"]
        )
    if isinstance(written, str) or isinstance(wanted, str):
        # a record's second mention is its name, and its first has been compared
        ends = [kind.rpartition(".")[2] if isinstance(kind, str) else kind for kind in (written, wanted)]
        known = ends[0] == ends[1] or (isinstance(written, str) and (written, wanted) in PROMOTED)
        return [] if known else [f"{name}: {written} as {wanted}"]
    if written["type"] != wanted["type"]:
        return [f"{name}: {written['type']} as {wanted['type']}"]
    if written["type"] in ("array", "map"):
        part = "items" if written["type"] == "array" else "values"
        return unreadable(written[part], wanted[part], f"{name}[]")
    if written["name"].rpartition(".")[2] != wanted["name"].rpartition(".")[2]:
        return [f"{name}: {written['name']} as {wanted['name']}"]
    there = {field["name"]: field["type"] for field in written["fields"]}
    problems = []
    for field in wanted["fields"]:
        if field["name"] in there:
            problems += unreadable(there[field["name"]], field["type"], f"{name}.{field['name']}")
        elif "default" not in field:
            problems.append(f"{name}.{field['name']}: absent, without a default")
    return problems


def is_plain(kind):
    """Whether a type is a simple one in a dictionary, or a record's name is all that is given."""
    return isinstance(kind, dict) and kind["type"] not in ("record", "array", "map")


@pytest.mark.parametrize("version", schema_versions())
def test_readers_of_every_earlier_minor_version_can_read_it(version):
    """Forward-transitive within a MAJOR, whatever the data; and its readers can read the earlier ones."""
    earlier = same_major(version)[: same_major(version).index(version) + 1]
    for old in earlier:
        assert unreadable(alert_schema(version), alert_schema(old)) == []
        assert unreadable(alert_schema(old), alert_schema(version)) == []


def test_the_exposure_messages_versions_are_all_known():
    """The next one needs the check above; there is one so far."""
    assert [path.name for path in shared_path("alerts/exposure").iterdir()] == ["1.0"]
    assert unreadable(exposure_schema(), exposure_schema()) == []


@pytest.mark.parametrize("version", SAMPLES)
def test_versions_of_one_major_read_each_other(version):
    record = read_container(SAMPLE.parent / version / "alert.avro").records[0]
    for other in same_major(version):
        theirs = read_as(record, alert_schema(version), alert_schema(other))
        assert theirs["alertId"] == record["alertId"]
        assert theirs["candidate"]["scorr"] == record["candidate"]["scorr"]


def changed(change):
    """The newest schema as a version after it might be, parsed."""
    plain = json.loads(schema_json())
    change(plain["fields"])
    return parse_schema(copy.deepcopy(plain))


def test_what_a_minor_version_may_and_may_not_do():
    """Old data and a reader with the next MINOR understand each other both ways; after a wrong step not."""
    record, old = make_records(1)[0], alert_schema()
    added = changed(lambda fields: fields.append({"name": "extra", "type": ["null", "int"], "default": None}))
    assert read_as(record, old, added)["extra"] is None
    assert "extra" not in read_as({**record, "extra": 7}, added, old)
    dropped = changed(lambda fields: fields.remove(next(f for f in fields if f["name"] == "fp_hists")))
    without = {name: value for name, value in record.items() if name != "fp_hists"}
    assert read_as(without, dropped, old)["fp_hists"] == []
    for allowed in (added, dropped):
        assert unreadable(allowed, old) == unreadable(old, allowed) == []
    wrong = changed(lambda fields: fields.append({"name": "extra", "type": "int"}))
    assert unreadable(old, wrong) == ["alert.extra: absent, without a default"]
    with pytest.raises((SchemaParseException, ValueError, fastavro.read.SchemaResolutionError)):
        read_as(record, old, wrong)
    gone = changed(lambda fields: fields.remove(next(f for f in fields if f["name"] == "exposure")))
    without = {name: value for name, value in record.items() if name != "exposure"}
    with pytest.raises((SchemaParseException, ValueError, fastavro.read.SchemaResolutionError)):
        read_as(without, gone, old)
    assert unreadable(gone, old) == ["alert.exposure: absent, without a default"]
    candidate = next(field for field in json.loads(schema_json())["fields"] if field["name"] == "candidate")
    for kind, readable in (("float", True), ("string", False), (["null", "double"], False)):
        fields = [f | {"type": kind} if f["name"] == "scorr" else f for f in candidate["type"]["fields"]]
        other = candidate["type"] | {"fields": fields}
        assert (unreadable(other, candidate["type"]) == []) is readable, kind


def test_an_unknown_version_is_named():
    with pytest.raises(InputError, match=r"alerts/schema/7\.7"):
        alert_schema("7.7")
    with pytest.raises(InputError, match=r"alerts/exposure/7\.7"):
        exposure_schema("7.7")


@pytest.mark.parametrize("name", ["alert", "exposure"])
def test_the_sample_is_what_its_script_writes(tmp_path, name):
    write_sample(tmp_path)
    ours, theirs = (read_container(folder / f"{name}.avro").records[0] for folder in (tmp_path, SAMPLE))
    # zlib may compress otherwise elsewhere; the pixels are the same.
    for cutout in CUTOUTS if name == "alert" else ():
        stamps = [decode_stamp(record.pop(cutout)["stampData"]) for record in (ours, theirs)]
        np.testing.assert_array_equal(stamps[0], stamps[1])
    assert ours == theirs
    text = (SAMPLE / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(text) == json_record(read_container(SAMPLE / f"{name}.avro").records[0])


def test_schema_json_is_a_schema_without_the_librarys_marks():
    record = make_records(1)[0]
    parsed = json.loads(schema_json())
    assert parsed["name"] == "ks4.v1_0.alert"
    assert "__fastavro" not in schema_json()
    assert fastavro.schemaless_reader(io.BytesIO(datum_bytes(record)), parse_schema(parsed), None) == record
    assert json.loads(schema_json("0.1"))["name"] == "ks4.v0_1.alert"
    exposure = parse_schema(json.loads(schema_json(exposure=True)))
    message = make_exposure()
    assert fastavro.schemaless_reader(io.BytesIO(datum_bytes(message)), exposure, None) == message


def test_the_examples_of_the_readme_run(monkeypatch, capsys):
    """As printed there, from the root of a checkout; Kafka is played by a list of one message."""
    blocks = re.findall(r"```python\n(.*?)```", (ALERTS / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    record = make_records(1)[0]

    def consumer(*topics, **settings):
        assert topics == ("ks4.alerts.v1",)
        return [SimpleNamespace(value=message_bytes(record))]

    monkeypatch.chdir(ALERTS.parent)
    monkeypatch.setattr(kafka, "KafkaConsumer", consumer)
    for block in blocks:
        assert len(block.strip().splitlines()) <= 11
        exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "KS4-24000000 123.456789 -34.567891 R 21.4996 t",
        f"{record['alertId']} (63, 63) 28.9 123.456812 -34.567932",
    ]


def test_shared_files_are_found_and_missing_ones_named():
    assert (shared_path("alerts/schema") / "0.1").is_dir()
    with pytest.raises(InputError, match="alerts/nothing"):
        shared_path("alerts/nothing")
