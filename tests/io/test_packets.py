"""Alerts to bytes and back: nothing lost, nothing random, nothing damaged let through."""

import gzip
import io
import math
import random
from dataclasses import fields

import fastavro
import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.packets import (
    alert_record,
    alert_schema,
    container_bytes,
    datum_bytes,
    read_container,
)
from ks4diff.io.stamps import decode_stamp, encode_stamp
from ks4diff.products.alert import AlertCandidate, Provenance
from ks4diff.products.errors import InputError
from tests.sample_alert import make_alert, make_candidate, make_cutouts, make_records


def test_record_survives_the_round_trip():
    records = make_records(3)
    container = read_container(container_bytes(records))
    assert container.records == records
    assert container.schema_name == "ks4.v0_1.alert"


def test_datum_and_container_hold_the_same_record():
    record = make_records(1)[0]
    datum = datum_bytes(record)
    assert fastavro.schemaless_reader(io.BytesIO(datum), alert_schema(), None) == record
    assert datum in container_bytes([record])


def test_every_value_of_the_product_is_in_the_record():
    alert = make_alert()
    record = alert_record(alert)
    for field in fields(AlertCandidate):
        value = getattr(alert.candidate, field.name)
        assert record["candidate"][field.name] == (list(value) if isinstance(value, tuple) else value)
    for field in fields(Provenance):
        value = getattr(alert.provenance, field.name)
        assert record["provenance"][field.name] == (list(value) if isinstance(value, tuple) else value)
    assert (record["alertId"], record["candid"]) == (alert.alert_id, alert.candid)


def test_equal_alerts_give_equal_bytes_and_other_alerts_others():
    first, second = container_bytes(make_records(2)), container_bytes(make_records(2))
    assert first == second
    assert first[-16:] != container_bytes(make_records(1))[-16:]  # the sync marker


def test_unknown_is_null_and_numpy_scalars_are_taken():
    candidate = make_candidate(ra=None, dec=None, rb=math.nan, x=np.float32(12.5), isdiffpos=np.bool_(False))
    record = alert_record(make_alert(candidate=candidate, object_id=None))
    back = read_container(container_bytes([record])).records[0]
    assert back == record
    assert back["objectId"] is None
    assert [back["candidate"][name] for name in ("ra", "dec", "rb")] == [None] * 3
    assert back["candidate"]["x"] == 12.5
    assert back["candidate"]["isdiffpos"] is False


def test_a_measurement_that_must_be_known_may_not_be_nan():
    record = alert_record(make_alert(candidate=make_candidate(flux=math.nan)))
    with pytest.raises((TypeError, ValueError)):
        datum_bytes(record)


def test_versions_are_not_mixed():
    records = make_records(2)
    with pytest.raises(ValueError, match="one schema version"):
        container_bytes([records[0], {**records[1], "schemavsn": "9.9"}])


def test_an_empty_container_is_a_container():
    container = read_container(container_bytes([]))
    assert (container.records, container.schema_name) == ([], "ks4.v0_1.alert")


def test_cutouts_are_fits_that_astropy_reads_with_their_nans():
    cutouts = make_cutouts()
    record = alert_record(make_alert(cutouts=cutouts))
    for field, stamp in (("cutoutScience", cutouts.science), ("cutoutTemplate", cutouts.template)):
        data = record[field]["stampData"]
        with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
            hdus.verify("exception")
            assert hdus[0].header["BITPIX"] == -32
            np.testing.assert_array_equal(hdus[0].data, stamp)
        decoded = decode_stamp(data)
        assert decoded.dtype == np.float32
        assert decoded.dtype.isnative
        np.testing.assert_array_equal(decoded, stamp)
    assert np.isnan(cutouts.science).sum() == 63


def test_a_stamp_need_not_be_square_nor_contiguous():
    stamp = np.arange(70, dtype=np.float32).reshape(10, 7)[::2]
    np.testing.assert_array_equal(decode_stamp(encode_stamp(stamp)), stamp)


def test_encoding_leaves_the_stamp_alone():
    stamp = make_cutouts().science
    before = stamp.copy()
    encode_stamp(stamp)
    np.testing.assert_array_equal(stamp, before)


@pytest.mark.parametrize("data", [b"", b"no FITS", b"\x1f\x8b broken", encode_stamp(np.ones((3, 3)))[:40]])
def test_a_damaged_stamp_is_named(data):
    with pytest.raises(InputError, match="stamp"):
        decode_stamp(data)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.avro: No such file"):
        read_container(tmp_path / "gone.avro")
    (tmp_path / "text.avro").write_text("hello")
    with pytest.raises(InputError, match=r"text\.avro: not an Avro container"):
        read_container(tmp_path / "text.avro")
    (tmp_path / "empty.avro").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.avro"):
        read_container(tmp_path / "empty.avro")
    with pytest.raises(InputError, match="directory"):
        read_container(tmp_path)


def test_a_cut_off_container_is_refused_wherever_it_is_cut():
    whole = container_bytes(make_records(1))
    header = len(container_bytes([]))
    for length in [*range(0, header, 7), *range(header + 1, len(whole), 501), len(whole) - 1]:
        with pytest.raises(InputError, match="short"):
            read_container(whole[:length], name="short")


def test_flipped_bytes_give_records_or_an_input_error():
    whole = container_bytes(make_records(1))
    rng = random.Random(4)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(container_bytes([])) + 200)] = rng.randrange(256)
        try:
            read_container(bytes(damaged))
        except InputError:
            refused += 1
    assert refused > 500


def test_another_survey_is_read_with_its_own_schema(tmp_path):
    schema = {"type": "record", "name": "ztf.alert", "fields": [{"name": "objectId", "type": "string"}]}
    path = tmp_path / "ztf.avro"
    with path.open("wb") as file:
        fastavro.writer(file, schema, [{"objectId": "ZTF18abc"}], codec="deflate")
    container = read_container(path)
    assert (container.schema_name, container.records) == ("ztf.alert", [{"objectId": "ZTF18abc"}])


def test_a_container_of_no_records_is_refused():
    buffer = io.BytesIO()
    fastavro.writer(buffer, "int", [1, 2])
    with pytest.raises(InputError, match="not of records"):
        read_container(buffer.getvalue())
