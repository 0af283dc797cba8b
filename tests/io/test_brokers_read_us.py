"""Readers of ZTF's alerts find in ours, decoded by fastavro alone, every name that they read.

The lists are facts from the brokers' public sources: ALeRCE ``alercebroker/pipeline`` (survey_parser_plugins,
ZTFParser and ATLASParser), Fink ``astrolabsoftware/fink-broker`` (ztf/science.py, quality cuts),
BOOM ``boom-astro/boom`` (src/alert/ztf.rs), Kowalski and Pitt-Google (facts/alerts.md section 1.1).
"""

import gzip
import io
from dataclasses import replace

import fastavro
import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.packet_records import alert_record
from ks4diff.io.packets import container_bytes, message_bytes
from tests.sample_alert import make_alert, make_candidate

STAMPS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
ALERCE = {"candid": int, "pid": int, "jd": float, "fid": int, "ra": float, "dec": float}
ALERCE |= {"magpsf": float, "sigmapsf": float, "isdiffpos": str, "sigmara": float, "sigmadec": float}
FINK_HISTORY = ("jd", "fid", "magpsf", "sigmapsf", "isdiffpos", "diffmaglim")
FINK_CANDIDATE = (
    *FINK_HISTORY,
    "magnr",
    "sigmagnr",
    "distnr",
    "ndethist",
    "jdstarthist",
    "sgscore1",
    "distpsnr1",
)
FINK_CANDIDATE += ("ssdistnr", "rb", "nbad", "candid", "ra", "dec")
# What BOOM's structures hold without Option or default: a null there refuses the whole alert.
BOOM_NEEDS = {"jd": float, "candid": int, "isdiffpos": str, "ra": float, "dec": float}
BOOM_NEEDS |= {"magpsf": float, "sigmapsf": float, "fid": int, "pid": int, "programid": int, "ndethist": int}
BOOM_TAKES = ("diffmaglim", "field", "magap", "distnr", "magnr", "fwhm", "elong", "rb", "scorr", "exptime")
BOOM_TAKES += ("magzpsci", "mindtoedge", "nbad", "chipsf", "jdstarthist", "ssdistnr", "ssmagnr", "ssnamenr")
BOOM_PAST = {"jd": float, "fid": int, "pid": int, "candid": int, "isdiffpos": str, "magpsf": float}
BOOM_PAST |= {"sigmapsf": float, "diffmaglim": float, "ra": float, "dec": float, "rb": float, "scorr": float}
BOOM_FORCED = {"jd": float, "fid": int, "pid": int, "forcediffimflux": float, "forcediffimfluxunc": float}
BOOM_FORCED |= {"magzpsci": float, "diffmaglim": float, "procstatus": str}
PITT_GOOGLE = ("objectId", "candid", "candidate", "prv_candidates", *STAMPS)


def decoded(**changes):
    """An alert as a consumer has it who knows nothing but Avro."""
    message = message_bytes(alert_record(make_alert(**changes)))
    (record,) = fastavro.reader(io.BytesIO(message))
    return record


def assert_typed(table, names):
    for name, kind in names.items():
        assert isinstance(table[name], kind), name
        assert not isinstance(table[name], bool), name


def test_top_level_names_are_ztfs():
    record = decoded()
    for name in ("schemavsn", "publisher", "objectId"):
        assert isinstance(record[name], str)
    assert isinstance(record["candid"], int)
    for name in ("candidate", *STAMPS):
        assert isinstance(record[name], dict)
    for name in ("prv_candidates", "fp_hists"):
        assert isinstance(record[name], list)
    assert set(PITT_GOOGLE) <= set(record)
    assert "KS4" in record["publisher"]  # by which ALeRCE picks its parser
    assert "ZTF" not in record["publisher"]
    assert "ATLAS" not in record["publisher"]


def test_alerce():
    """The sixteen attributes of its generic alert, by the names its ZTF parser reads."""
    record = decoded()
    candidate = record["candidate"] | {name: record[name] for name in ("objectId", *STAMPS)}
    assert_typed(candidate, ALERCE)
    assert candidate["jd"] - 2400000.5 == pytest.approx(candidate["mjd"], abs=1e-8)
    assert candidate["isdiffpos"] in ("t", "f")
    assert isinstance(candidate["filter"], str)
    for name in STAMPS:
        assert candidate[name]["stampData"][:2] == b"\x1f\x8b"


def test_fink():
    """Its science modules select these columns from the alert and lists of some of them from its history."""
    record = decoded()
    assert set(FINK_CANDIDATE) <= set(record["candidate"])
    for past in record["prv_candidates"]:
        assert set(FINK_HISTORY) <= set(past)
    assert len(record["prv_candidates"]) == 3


@pytest.mark.parametrize("positive", [True, False])
def test_boom(positive):
    candidate = make_candidate(isdiffpos=positive, flux=9123.5 if positive else -9123.5)
    record = decoded(candidate=candidate)
    assert_typed(record["candidate"], BOOM_NEEDS)
    assert set(BOOM_TAKES) <= set(record["candidate"])
    for past in record["prv_candidates"]:
        assert_typed(past, BOOM_PAST)
    for forced in record["fp_hists"]:
        assert_typed(forced, BOOM_FORCED)
    # its own way to a flux: magnitude and sign; ours must be the same
    flux = 10 ** (0.4 * (31.4 - record["candidate"]["magpsf"]))
    sign = 1 if record["candidate"]["isdiffpos"].lower() in ("t", "true", "1") else -1
    assert sign * flux == pytest.approx(record["candidate"]["psfFlux"], rel=1e-3)
    # and from forced fluxes in counts of magzpsci
    forced = record["fp_hists"][0]
    njy = forced["forcediffimflux"] * 10 ** (0.4 * (31.4 - forced["magzpsci"]))
    assert njy == pytest.approx(12.5)


def test_lists_are_lists_also_without_a_history():
    """BOOM takes null for prv_candidates but not for fp_hists."""
    record = decoded(history=None)
    assert record["prv_candidates"] is None
    assert record["fp_hists"] == []


def test_no_filter_is_taken_for_one_of_ztfs():
    for band, number in (("B", 4), ("V", 5), ("R", 6), ("I", 7), ("H-alpha", None), (None, None)):
        record = decoded(candidate=make_candidate(filter=band))
        assert record["candidate"]["fid"] == number
        assert record["candidate"]["filter"] == band


def test_stamps_are_read_as_every_ztf_tutorial_does():
    record = decoded()
    for name in STAMPS:
        with (
            gzip.open(io.BytesIO(record[name]["stampData"])) as file,
            fits.open(io.BytesIO(file.read())) as hdus,
        ):
            assert hdus[0].data.shape == (63, 63)
            assert hdus[0].data.dtype == np.dtype(">f4")
        assert record[name]["fileName"].endswith(".fits.gz")


def test_many_alerts_in_one_archive_file():
    records = [alert_record(replace(make_alert(n), history=None)) for n in range(4)]
    assert list(fastavro.reader(io.BytesIO(container_bytes(records)))) == records
