"""Alerts to bytes and back: nothing lost, nothing random, nothing damaged let through."""

import gzip
import io
import math
import random
import struct
from dataclasses import fields, replace

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.packets import (
    alert_record,
    alert_schema,
    container_bytes,
    datum_bytes,
    exposure_record,
    framed_bytes,
    message_bytes,
    read_container,
    withdrawal,
    without_times,
)
from ks4diff.io.stamps import decode_stamp, encode_stamp
from ks4diff.products.alert import EventMatch
from ks4diff.products.errors import InputError
from tests.sample_alert import (
    make_alert,
    make_candidate,
    make_cutouts,
    make_exposure,
    make_history,
    make_records,
    make_report,
)


def test_record_survives_the_round_trip():
    records = make_records(3)
    container = read_container(container_bytes(records))
    assert container.records == records
    assert container.schema_name == "ks4.v1_0.alert"


def test_datum_and_container_hold_the_same_record():
    record = make_records(1)[0]
    datum = datum_bytes(record)
    assert fastavro.schemaless_reader(io.BytesIO(datum), alert_schema(), None) == record
    assert datum in container_bytes([record])


def leaves(value):
    """All values within a record or product, containers opened."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_every_value_of_the_product_is_in_the_record():
    """Each attribute of the product, changed alone, changes the record."""
    alert = make_alert()
    plain = alert_record(alert)
    for part in ("candidate", "provenance"):
        product = getattr(alert, part)
        for field in fields(product):
            value = getattr(product, field.name)
            other = {bool: True, int: 7, str: "other", tuple: ("other",), dict: {"ixx": 99.0}}
            new = other.get(type(value), 0.123)
            new = False if value is True else new
            record = alert_record(replace(alert, **{part: replace(product, **{field.name: new})}))
            assert record != plain, f"{part}.{field.name}"
    for product, name in ((alert.history.object, "object"), (alert.history.detections[0], "prv_candidates")):
        kept = [leaf for leaf in leaves(plain[name]) if not isinstance(leaf, bool)]
        for field in fields(product):
            assert getattr(product, field.name) in [*kept, True, False], field.name


def test_known_values_are_where_readers_look():
    record = alert_record(make_alert())
    candidate, provenance = record["candidate"], record["provenance"]
    assert (record["alertId"], record["candid"]) == (make_alert().alert_id, make_alert().candid)
    assert candidate["candid"] == record["candid"]
    assert (candidate["psfFlux"], candidate["psfFluxErr"], candidate["fluxUnit"]) == (9123.5, 327.0, "nJy")
    assert candidate["magpsf"] == pytest.approx(31.4 - 2.5 * np.log10(9123.5), abs=1e-3)
    assert (candidate["isdiffpos"], candidate["fid"], candidate["filter"]) == ("t", 6, "R")
    assert candidate["sigmara"] == pytest.approx(3600 * candidate["raErr"])
    assert (candidate["scienceFlux"], candidate["distnr"]) == (12010.5, 1.36)
    assert candidate["crosstalkRatio"] is None
    assert candidate["jd"] - candidate["mjd"] == 2400000.5
    assert (candidate["ndethist"], candidate["ncovhist"]) == (4, 8)
    assert provenance["seeing"] == pytest.approx(0.4 * provenance["seeing_pix"])


def test_columns_without_a_field_of_their_own_go_into_measurements():
    candidate = make_candidate(measured={"new_column": 2.5, "other": None, "ixx": 3.5})
    record = alert_record(make_alert(candidate=candidate))["candidate"]
    assert record["measurements"] == {"new_column": 2.5}
    assert record["ixx"] == 3.5
    assert record["iyy"] is None


def test_without_history_nothing_is_claimed():
    record = alert_record(make_alert(history=None, object_id=None))
    assert [record[n] for n in ("objectId", "object", "prv_candidates")] == [None] * 3
    assert (record["prv_nondetections"], record["fp_hists"]) == ([], [])
    assert (record["candidate"]["ndethist"], record["candidate"]["ncovhist"]) == (1, None)
    assert read_container(container_bytes([record])).records == [record]


def test_flagged_forced_fluxes_are_marked():
    forced = alert_record(make_alert())["fp_hists"]
    assert [one["procstatus"] for one in forced] == ["0", "1", "0", "0", "0"]
    assert forced[1]["flags"] == ["bad_pixel"]
    history = make_history()
    lost = replace(history.forced[0], flux=math.nan, flux_err=math.nan)
    record = alert_record(make_alert(history=replace(history, forced=(lost,))))
    assert record["fp_hists"][0]["forcediffimflux"] is None
    datum_bytes(record)


def test_events_are_told():
    event = EventMatch(
        event="S190814bv",
        notice="update",
        map_digest="ab" * 32,
        credible_level=0.42,
        probability_density=0.01,
        distance_mean=267.0,
        distance_std=52.0,
        delta_t=1.5,
        prior_activity=False,
    )
    record = alert_record(make_alert(multimessenger=(event,)))
    back = read_container(container_bytes([record])).records[0]["multimessenger"]
    assert back == [{field.name: getattr(event, field.name) for field in fields(EventMatch)}]
    assert alert_record(make_alert())["multimessenger"] is None


def test_a_withdrawal_names_what_it_takes_back_and_has_an_id_of_its_own():
    record = make_records(1)[0]
    taken = withdrawal(record, "a satellite", 60424.5)
    assert read_container(container_bytes([taken])).records == [taken]
    assert taken["alertType"] == "withdrawn"
    assert taken["withdrawal"] == {
        "alertId": record["alertId"],
        "reason": "a satellite",
        "t_withdrawn": 60424.5,
    }
    assert len(taken["alertId"]) == 32
    same = ("candid", "objectId", "candidate", "cutoutScience", "prv_candidates")
    assert [taken[name] for name in same] == [record[name] for name in same]
    again, other = withdrawal(record, "a satellite", 60425.5), withdrawal(record, "a ghost", 60424.5)
    assert again["alertId"] == taken["alertId"] != other["alertId"] != record["alertId"]
    assert without_times(again) == without_times(taken) != without_times(other)
    assert record == make_records(1)[0]
    with pytest.raises(ValueError, match="withdrawal itself"):
        withdrawal(taken, "again", 60426.0)
    with pytest.raises(ValueError, match=r"0\.1"):
        withdrawal({**record, "schemavsn": "0.1"}, "old", 60426.0)


def test_only_times_are_left_out_of_what_runs_share():
    alert = make_alert()
    later = replace(alert, provenance=replace(alert.provenance, t_packed=60424.0))
    first, second = alert_record(alert), alert_record(later)
    assert first != second
    assert without_times(first) == without_times(second)
    assert "t_packed" not in without_times(first)["provenance"]
    assert without_times(first)["cutoutScience"] == first["cutoutScience"]


def test_an_exposure_is_told_also_when_nothing_was_found():
    nothing = make_report()
    nothing["chips"] = nothing["chips"][1:2]
    record = exposure_record(nothing)
    assert read_container(container_bytes([record])).records == [record]
    assert (record["status"], record["quality"], record["n_alerts"]) == ("complete", "pass", 0)
    assert (record["depth"], record["coverage"], record["mjd"]) == (23.4, 0.97, None)
    assert read_container(framed_bytes(record)).schema_name == "ks4.v1_0.exposure"


def test_an_exposure_counts_its_chips():
    record = make_exposure()
    assert (record["status"], record["quality"]) == ("partial", "warn")
    assert (record["n_candidates"], record["n_alerts"]) == (7, 1)
    assert record["depth"] == pytest.approx(23.3)
    assert [chip["status"] for chip in record["chips"]] == ["ok", "ok", "skipped", "failed"]
    assert record["chips"][0]["dropped"] == {"cosmic_ray": 4, "rb_below_threshold": 2}
    assert make_exposure(config_digest="other")["messageId"] != record["messageId"]
    absent = make_report()
    absent["chips"] = [absent["chips"][0], absent["chips"][2] | {"reason": "no file with this chip"}]
    assert exposure_record(absent)["status"] == "complete"
    lost = make_report()
    lost["chips"] = lost["chips"][2:]
    none = exposure_record(lost)
    assert (none["status"], none["quality"], none["depth"]) == ("none", "none", None)
    datum_bytes(none)


def test_framed_messages_are_told_by_their_first_byte():
    record = make_records(1)[0]
    framed = framed_bytes(record)
    assert framed[:5] == b"\x00\x00\x00\x00\x64"  # 1.0 is 100, big-endian
    assert framed[5:] == datum_bytes(record)
    assert read_container(framed).records == read_container(container_bytes([record])).records == [record]
    assert message_bytes(record) == container_bytes([record])
    assert message_bytes(record, wire="confluent") == framed
    assert framed_bytes(make_exposure())[:5] == struct.pack(">bi", 0, 10100)
    with pytest.raises(ValueError, match="wire"):
        message_bytes(record, wire="json")


def test_a_framed_message_of_an_unknown_schema_says_how_to_read_it():
    framed = framed_bytes(make_records(1)[0])
    with pytest.raises(InputError, match=r"framed with schema 900.*--schema"):
        read_container(struct.pack(">bi", 0, 900) + framed[5:], name="message")
    known = read_container(struct.pack(">bi", 0, 900) + framed[5:], schema=alert_schema())
    assert known.records == make_records(1)
    for broken in (framed[:-3], framed + b"x", framed[:9]):
        with pytest.raises(InputError, match="message"):
            read_container(broken, name="message")


def test_our_container_is_what_fastavro_writes():
    """Written by hand for speed: the obvious twin is fastavro's own writer, byte for byte."""
    for records in (make_records(3), [make_exposure()]):
        ours = container_bytes(records)
        reader = fastavro.reader(io.BytesIO(ours))
        sync = ours[-16:]
        buffer = io.BytesIO()
        fastavro.writer(buffer, reader.writer_schema, records, sync_marker=sync, sync_interval=10**9)
        theirs = buffer.getvalue()
        body = len(theirs) - theirs.index(sync)
        assert ours[-body:] == theirs[-body:]
        assert list(reader) == records
        assert "doc" not in reader.metadata["avro.schema"].replace('"name":"doc', "")


def test_the_schema_in_a_message_is_the_schema_but_for_its_docs():
    written = read_container(container_bytes(make_records(1))).schema
    assert fastavro.schema.to_parsing_canonical_form(written) == fastavro.schema.to_parsing_canonical_form(
        alert_schema()
    )


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
    assert back["candidate"]["isdiffpos"] == "f"


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
    assert (container.records, container.schema_name) == ([], "ks4.v1_0.alert")


def test_cutouts_are_fits_that_astropy_reads_with_their_nans():
    cutouts = make_cutouts()
    record = alert_record(make_alert(cutouts=replace(cutouts, noise=None)))
    for field, stamp in (("cutoutScience", cutouts.science), ("cutoutTemplate", cutouts.template)):
        data = record[field]["stampData"]
        with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
            hdus.verify("exception")
            assert hdus[0].header["BITPIX"] == -32
            assert "QSTEP" not in hdus[0].header
            np.testing.assert_array_equal(hdus[0].data, stamp)
        decoded = decode_stamp(data)
        assert decoded.dtype == np.float32
        assert decoded.dtype.isnative
        np.testing.assert_array_equal(decoded, stamp)
    assert np.isnan(cutouts.science).sum() == 63


def test_stamps_say_where_they_are_and_how_bright():
    cutouts = make_cutouts()
    record = alert_record(make_alert(cutouts=cutouts))
    for field in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        with fits.open(io.BytesIO(gzip.decompress(record[field]["stampData"]))) as hdus:
            hdus.verify("exception")
            header = hdus[0].header
            wcs = WCS(header)
        assert header["MAGZP"] == 28.9
        ra, dec = wcs.all_pix2world([31, 32, 31], [31, 31, 32], 0)
        assert (ra[0], dec[0]) == pytest.approx((cutouts.grid.ra, cutouts.grid.dec), abs=1e-12)
        steps = np.array([(ra[1:] - ra[0]) * np.cos(np.radians(dec[0])), dec[1:] - dec[0]])
        np.testing.assert_allclose(steps, cutouts.grid.cd, atol=2e-9)  # a microarcsecond a pixel
    no_sky = alert_record(make_alert(cutouts=replace(cutouts, grid=None, zeropoint=None)))
    with fits.open(io.BytesIO(gzip.decompress(no_sky["cutoutScience"]["stampData"]))) as hdus:
        assert not {"CTYPE1", "MAGZP"} & set(hdus[0].header)


@pytest.mark.parametrize("sigma", [1e-3, 0.9, 30.0, 31.9, 32.1, 4e5])
def test_pixels_are_rounded_by_a_sixteenth_of_the_noise_at_most(sigma):
    rng = np.random.default_rng(5)
    stamp = rng.normal(0, sigma, (63, 63)).astype(np.float32)
    stamp[7, 9], stamp[20:23, 31] = np.nan, 9e4 * sigma
    data = encode_stamp(stamp, noise=sigma)
    with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
        step, said = hdus[0].header["QSTEP"], hdus[0].header["SIGMA"]
    assert sigma / 32 < step <= sigma / 16
    assert said == pytest.approx(sigma)
    back = decode_stamp(data).astype(float)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(stamp))
    good = np.isfinite(stamp)
    assert np.abs(back - stamp)[good].max() <= step / 2
    np.testing.assert_array_equal(back[good] % step, 0)
    # the variance that rounding adds: step^2 / 12, 0.03 % of the noise's at most
    assert np.mean((back - stamp)[good] ** 2) < 0.00034 * sigma**2
    assert len(data) < 0.6 * len(encode_stamp(stamp))


def test_bright_pixels_over_a_tiny_noise_stay():
    stamp = np.array([[3e38, -3e38, 1.0], [0.0, np.nan, -1e-3]], dtype=np.float32)
    np.testing.assert_array_equal(decode_stamp(encode_stamp(stamp, noise=1e-30)), stamp)
    assert not np.signbit(decode_stamp(encode_stamp(-stamp, noise=16.0))[1, [0, 2]]).any()


@pytest.mark.parametrize("noise", [None, 0.0, math.nan, math.inf])
def test_without_a_noise_pixels_stay_as_they_are(noise):
    stamp = np.random.default_rng(6).normal(0, 3, (11, 9)).astype(np.float32)
    np.testing.assert_array_equal(decode_stamp(encode_stamp(stamp, noise=noise)), stamp)


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


@pytest.mark.parametrize("item", ["null", {"type": "record", "name": "nothing", "fields": []}])
def test_types_without_bytes_are_refused(item):
    """An array of 2**40 of them takes seven bytes and a day."""
    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "a", "type": {"type": "array", "items": item}}],
    }
    buffer = io.BytesIO()
    fastavro.writer(buffer, schema, [{"a": [{}] if isinstance(item, dict) else [None]}])
    with pytest.raises(InputError, match="damaged"):
        read_container(buffer.getvalue())


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
