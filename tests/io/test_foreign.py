"""Any survey's alert says what it says: made-up ones by name, real ones of six surveys as they were sent."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ks4diff.cli.alerts import app
from ks4diff.io.foreign import cutouts, digest
from ks4diff.io.packets import load_foreign_schema, read_container
from ks4diff.io.stamps import decode_stamp, encode_stamp
from ks4diff.products.errors import InputError
from tests.sample_alert import SAMPLE, make_records

LSST_SCHEMA = "lsst+alert_packet/python/lsst/alert/packet/schema/9/0/lsst.v9_0.alert.avsc"
RUBIN = "boom-astro+boom/tests/data/alerts/lsst/7912941781254298.avro"
ZTF = "boom-astro+boom/tests/data/alerts/ztf/2695378462115010012.avro"
WINTER = "boom-astro+boom/tests/data/alerts/winter/alert.avro"
DECAM = "boom-astro+boom/tests/data/alerts/decam/alert.avro"
FINK_RUBIN = "astrolabsoftware+fink-broker/datasim/rubin_test_data_9_0_avro"
# folder, how many real packets it holds
FOLDERS = (
    ("ZwickyTransientFacility+ztf-avro-alert", 2),
    ("astrolabsoftware+fink-broker", 24),
    ("boom-astro+boom", 4),
    ("mwvgroup+Pitt-Google-Broker", 34),
    ("skyportal+kowalski/data/pgir_alerts", 17),
    ("skyportal+kowalski/data/turbo_alerts", 11),
    ("skyportal+kowalski/data/wntr_alerts", 11),
    ("skyportal+kowalski/data/ztf_alerts", 36),
)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


class TestDigest:
    def test_ours(self):
        seen = digest(make_records(1)[0])
        assert (seen.object, seen.band, seen.positive, seen.flux, seen.flux_unit) == (
            "KS4-24000000",
            "R",
            True,
            9123.5,
            "nJy",
        )
        assert (seen.mjd, seen.mag, seen.significance) == (60423.98765432, 21.4996, 28.4)
        assert (seen.score, seen.score_name) == (0.97, "rb-2026a")

    def test_the_oldest_of_ours(self):
        record = read_container(SAMPLE.parent / "0.1" / "alert.avro").records[0]
        seen = digest(record)
        assert (seen.flux, seen.flux_unit, seen.positive) == (9123.5, "nJy", True)

    @pytest.mark.parametrize(
        ("sign", "positive"),
        [
            ("t", True),
            ("1", True),
            (1, True),
            (1.0, True),
            (True, True),
            ("f", False),
            ("0", False),
            (0, False),
            (False, False),
            (None, None),
        ],
    )
    def test_signs_as_surveys_write_them(self, sign, positive):
        assert digest({"candidate": {"isdiffpos": sign}}).positive is positive

    def test_lsst_time_sign_and_magnitude(self):
        source = {
            "midpointMjdTai": 60000.0,
            "psfFlux": -1e4,
            "isNegative": True,
            "band": "i",
            "reliability": 0.5,
        }
        seen = digest({"diaSourceId": 5, "diaSource": source})
        assert seen.mjd == pytest.approx(60000.0 - 37 / 86400, abs=1e-9)
        assert (seen.mag, seen.positive, seen.band) == (pytest.approx(21.4), False, "i")
        assert (seen.number, seen.score, seen.score_name) == (5, 0.5, "reliability")

    def test_values_that_mean_none_are_none(self):
        seen = digest(
            {"candidate": {"rb": -999.0, "drb": 0.4, "drbversion": "d6", "ra": math.nan, "magpsf": None}}
        )
        assert (seen.score, seen.score_name, seen.ra, seen.mag) == (0.4, "d6", None, None)

    @pytest.mark.parametrize(
        "record", [{}, {"candidate": None}, {"candidate": []}, {"candidate": {"jd": "soon"}}]
    )
    def test_what_is_no_alert_gives_nothing(self, record):
        assert {value for value in vars(digest(record)).values()} == {None}
        assert cutouts(record) is None


class TestCutouts:
    def test_records_and_bare_bytes_and_other_spellings(self):
        stamp = np.arange(35, dtype=np.float32).reshape(5, 7)
        data = encode_stamp(stamp)
        for record in (
            {f"cutout{name}": {"stampData": data} for name in ("Science", "Template", "Difference")},
            {f"cutout{name}": data for name in ("Science", "Template", "Difference")},
            {f"cutout_{name}": data for name in ("science", "template", "difference")},
        ):
            planes = cutouts(record)
            assert planes.shape == (3, 7, 7)
            np.testing.assert_array_equal(planes[1, 1:6], stamp)
            assert np.isnan(planes[:, [0, 6]]).all()

    def test_stamps_of_unequal_size_share_their_middle(self):
        small, large = np.full((3, 3), 1.0), np.full((7, 7), 2.0)
        planes = cutouts({"cutoutScience": encode_stamp(small), "cutoutTemplate": encode_stamp(large)})
        assert planes.shape == (3, 7, 7)
        assert planes[0, 3, 3] == 1
        assert np.isfinite(planes[0]).sum() == 9
        assert np.isfinite(planes[1]).all()
        assert np.isnan(planes[2]).all()

    def test_ours_come_back(self):
        record = make_records(1)[0]
        np.testing.assert_array_equal(
            cutouts(record)[2], decode_stamp(record["cutoutDifference"]["stampData"])
        )


class TestShow:
    def test_a_picture_of_each_alert(self, tmp_path):
        result = run("show", SAMPLE / "alert.avro", SAMPLE / "exposure.avro", "--save", tmp_path)
        assert result.exit_code == 0
        (path,) = tmp_path.iterdir()
        assert path.name == f"{make_records(1)[0]['alertId']}.png"
        with Image.open(path) as picture:
            assert picture.width > 3 * 250
        lines = result.stdout.splitlines()
        assert len(lines) == 4
        assert lines[3].startswith("kmts.20240423.012345")
        assert "2 of 4 chips" in lines[3]

    def test_a_damaged_stamp_leaves_the_line(self, tmp_path, caplog):
        from ks4diff.io.packets import container_bytes

        record = make_records(1)[0]
        record["cutoutScience"] = {"fileName": "x", "stampData": b"no FITS"}
        (tmp_path / "a.avro").write_bytes(container_bytes([record]))
        result = run("show", tmp_path / "a.avro", "--save", tmp_path / "png")
        assert record["alertId"] in result.stdout
        assert "no picture" in caplog.text
        assert not (tmp_path / "png").exists()

    def test_schemas_by_version(self):
        assert json.loads(run("schema", "0.1").stdout)["name"] == "ks4.v0_1.alert"
        assert json.loads(run("schema", "--exposure").stdout)["name"] == "ks4.v1_0.exposure"

    def test_a_file_that_is_no_schema_is_named(self, tmp_path):
        (tmp_path / "x.avsc").write_text("{}")
        for name in ("x.avsc", "gone.avsc"):
            with pytest.raises(InputError, match=name):
                run("show", SAMPLE / "alert.avro", "--schema", tmp_path / name)


@pytest.mark.realdata
class TestReal:
    @pytest.mark.parametrize(("folder", "count"), FOLDERS)
    def test_every_packet_is_shown_in_a_line(self, realdata, folder, count):
        paths = sorted((realdata / folder).rglob("*.avro"))
        assert len(paths) == count
        result = run("show", *paths, "--schema", realdata / LSST_SCHEMA)
        assert result.exit_code == 0
        lines = [line for line in result.stdout.splitlines() if not line.startswith("schema ")]
        assert len(lines) == count
        for line in lines:
            fields = line.split()
            assert 50000 < float(fields[fields.index("mjd") + 1]) < 70000
            assert 0 <= float(fields[fields.index("ra") + 1]) < 360
            assert -90 <= float(fields[fields.index("dec") + 1]) <= 90
        shown = run("show", *paths[:3], "--json", "--schema", realdata / LSST_SCHEMA)
        assert len([json.loads(line) for line in shown.stdout.splitlines()]) == min(3, count)

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            (ZTF, ("ZTF18abudxnw", 60449.37846, "fid2", 14.9065, False, 0.826)),
            (WINTER, ("WNTR24awati", 60380.531487, "fid2", 13.35114, True, None)),
            (
                DECAM,
                (
                    "c4d_260708_015517_xxx_g_dts-1511-140151997p15275543",
                    61229.08006,
                    "g",
                    23.55404,
                    True,
                    0.9308,
                ),
            ),
            (RUBIN, ("7912941781254298", 60961.232664, "r", 23.6749, False, 0.112)),
        ],
    )
    def test_what_they_say(self, realdata, path, expected):
        schema = load_foreign_schema(realdata / LSST_SCHEMA) if path == RUBIN else None
        seen = digest(read_container(realdata / path, schema=schema).records[0])
        name, mjd, band, mag, positive, score = expected
        assert (seen.object, seen.band, seen.positive) == (name, band, positive)
        assert seen.mjd == pytest.approx(mjd, abs=2e-6)
        assert seen.mag == pytest.approx(mag, abs=1e-4)
        assert seen.score == (None if score is None else pytest.approx(score, abs=1e-3))

    def test_a_framed_packet_of_rubin_needs_its_schema(self, realdata):
        with pytest.raises(InputError, match=r"framed with schema 900.*--schema"):
            read_container(realdata / RUBIN)

    def test_stamps_of_every_survey_are_drawn(self, realdata, tmp_path):
        paths = [realdata / path for path in (ZTF, WINTER, DECAM, RUBIN)]
        paths.append(min((realdata / FINK_RUBIN).iterdir()))
        paths += [
            min((realdata / "skyportal+kowalski/data" / name).rglob("*.avro"))
            for name in ("pgir_alerts", "turbo_alerts")
        ]
        result = run("show", *paths, "--schema", realdata / LSST_SCHEMA, "--save", tmp_path)
        assert result.exit_code == 0
        assert len(list(tmp_path.glob("*.png"))) == len(paths) == 7
        record = read_container(realdata / ZTF).records[0]
        raw = gzip.decompress(record["cutoutScience"]["stampData"])
        pixels = np.frombuffer(raw[-17280:], ">f4", 63 * 63)  # FITS: six blocks of data at the end
        np.testing.assert_array_equal(cutouts(record)[0], pixels.reshape(63, 63))


def test_the_list_of_folders_is_of_all_real_packets(realdata):
    assert len([path for path in Path(realdata).rglob("*.avro")]) == sum(count for _, count in FOLDERS)
