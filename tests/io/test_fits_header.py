"""What the reader makes of real-life headers: units, times, names, WCS; and the open frames."""

from __future__ import annotations

import hashlib
import logging
import re

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.fits_image import read_chip
from ks4diff.products.errors import ConfigError, InputError
from tests.fits_files import image_cards, scene, write, write_raw


class TestHeaderFacts:
    def facts(self, tmp_path, *cards):
        return read_chip(write(tmp_path / "a.fits", scene(), cards=cards))

    def test_plain_cards(self, tmp_path):
        chip = self.facts(
            tmp_path,
            ("GAIN", 1.9),
            ("RDNOISE", 5.0),
            ("SATURATE", 6e4),
            ("EXPTIME", 300.0),
            ("MAGZERO", 27.5),
            ("FILTER", " I  "),
            ("OBSERVAT", "SAAO"),
            ("OBJECT", "KB13475 "),
            ("MJD-OBS", 56481.25),
        )
        assert (chip.gain, chip.read_noise, chip.saturation, chip.zeropoint) == (1.9, 5.0, 6e4, 27.5)
        assert (chip.filter, chip.site, chip.object, chip.exptime) == ("I", "SAAO", "KB13475", 300.0)
        assert chip.mjd_mid == pytest.approx(56481.25 + 150 / 86400, abs=1e-9)
        assert chip.wcs is None

    def test_nothing_known(self, tmp_path):
        chip = self.facts(tmp_path)
        unknown = (chip.gain, chip.read_noise, chip.saturation, chip.zeropoint, chip.exptime, chip.mjd_mid)
        assert unknown == (None,) * 6
        assert (chip.filter, chip.site, chip.object, chip.wcs) == (None,) * 4

    @pytest.mark.parametrize(
        ("cards", "expected"),
        [
            ([("EGAIN", 2.5)], 2.5),
            ([("GAINA", 4.0), ("GAINB", 4.5)], 4.25),
            ([("GAINA", 4.0), ("GAINB", 0.0)], 4.0),
            ([("GAIN", 3.0), ("GAINA", 9.0)], 3.0),
            ([("GAIN", "1.9")], 1.9),
            ([("GAIN", " 1.9D0 ")], 1.9),
            ([("GAIN", 0.0), ("EGAIN", 2.0)], 2.0),
            ([("GAIN", -1)], None),
            ([("GAIN", "unknown")], None),
            ([("GAIN", "")], None),
            ([("GAIN", "nan")], None),
            ([("GAIN", True)], None),
            ([("GAIN", 1e30)], None),
            ([("GAIN", None)], None),
        ],
    )
    def test_gain(self, tmp_path, cards, expected):
        assert self.facts(tmp_path, *cards).gain == expected

    def test_amplifiers(self, tmp_path):
        chip = self.facts(
            tmp_path, ("RDNOISEA", 5.0), ("RDNOISEB", 6.0), ("SATURATA", 46536.0), ("SATURATB", 42408.0)
        )
        assert (chip.read_noise, chip.saturation) == (5.5, 42408.0)

    def test_only_magzero_is_an_ab_zero_point(self, tmp_path):
        assert self.facts(tmp_path, ("MAGZPT", 23.4), ("ZEROPT", 25.0), ("MAGZEROP", 0.0)).zeropoint is None

    def test_numbered_filter_is_text(self, tmp_path):
        assert self.facts(tmp_path, ("FILTER", ""), ("FILTERS", 58)).filter == "58"

    def test_options_override(self, tmp_path):
        path = write(tmp_path / "a.fits", scene(), cards=[("GAIN", 1.9), ("MAGZERO", 25.0)])
        chip = read_chip(path, gain=2.5, read_noise=0, saturation=5e4, zeropoint=30.0)
        assert (chip.gain, chip.read_noise, chip.saturation, chip.zeropoint) == (2.5, 0.0, 5e4, 30.0)

    @pytest.mark.parametrize("option", [{"gain": 0}, {"gain": float("nan")}, {"read_noise": -1}])
    def test_nonsense_options(self, tmp_path, option):
        path = write(tmp_path / "a.fits", scene())
        with pytest.raises(ConfigError, match=next(iter(option)).replace("_", "-")):
            read_chip(path, **option)

    @pytest.mark.parametrize(
        ("cards", "expected"),
        [
            ([("DATE-OBS", "2013-07-08T12:00:00")], 56481.5),
            ([("DATE-OBS", "2013-07-08T12:00:00.000Z")], 56481.5),
            ([("DATE-OBS", "2013-07-08"), ("UT", "12:00:00")], 56481.5),
            ([("DATE-OBS", "2013-07-08"), ("TIME-OBS", "12:00:00.0")], 56481.5),
            ([("DATE-OBS", "2013-07-08"), ("UTSTART", "12:00:00")], 56481.5),
            ([("DATE-OBS", "26/07/102"), ("TIME-OBS", "18:00:00")], 52481.75),
            ([("DATE-OBS", "08/07/98"), ("UT", "18:00:00")], 51002.75),
            ([("JD", 2456482.25)], 56481.75),
            ([("MJD-OBS", 56481.25), ("DATE-OBS", "2001-01-01T00:00:00")], 56481.25),
            ([("MJD-OBS", 56481.0), ("DATE-OBS", "2013-07-08"), ("UT", "12:00:00")], 56481.5),
            ([("MJD-OBS", 56481.0)], 56481.0),
            ([("MJD-OBS", 0.0), ("JD", 2456482.25)], 56481.75),
            ([("DATE-OBS", "2013-07-08")], None),
            ([("DATE-OBS", "2013-13-08T12:00:00")], None),
            ([("DATE-OBS", "yesterday"), ("UT", "12:00:00")], None),
            ([("DATE-OBS", "2013-07-08"), ("UT", "##########")], None),
        ],
    )
    def test_time(self, tmp_path, cards, expected):
        start = self.facts(tmp_path, *cards).mjd_mid
        assert start == (None if expected is None else pytest.approx(expected, abs=1e-9))

    def test_atomic_time_becomes_utc(self, tmp_path):
        chip = self.facts(tmp_path, ("MJD-OBS", 56416.5), ("TIMESYS", "TAI"))
        assert chip.mjd_mid == pytest.approx(56416.5 - 35 / 86400, abs=1e-9)

    def test_broken_cards_are_silent(self, tmp_path, caplog, recwarn):
        lines = [
            *image_cards(64, 48),
            "GAIN    =                      / no value",
            "RDNOISE = 5.0.0",
            "OBJECT  = 'it''s  ",
            "FILTER  = 'I       '           / \x7f",
            "DATE-OBS= '2013-99-99'",
            "CONTINUE  no string",
            "not a card at all",
            "CTYPE1  = '        '",
            "EXPTIME = 30.0",
        ]
        body = scene().astype(">f4").tobytes()
        with caplog.at_level(logging.INFO):
            chip = read_chip(write_raw(tmp_path / "a.fits", lines, body.ljust(14400, b"\0")))
        np.testing.assert_array_equal(chip.data, scene())
        assert (chip.gain, chip.read_noise, chip.exptime) == (None, None, 30.0)
        assert not caplog.records
        assert not recwarn.list

    def test_input_is_not_modified(self, tmp_path):
        path = write(tmp_path / "a.fits", scene().astype(np.uint16), cards=[("GAIN", 1.9)])
        path.chmod(0o444)
        before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        read_chip(path)
        assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


TAN = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 270.5,
    "CRVAL2": -28.0,
    "CRPIX1": 100.0,
    "CRPIX2": -50.0,
    "CD1_1": -1.1e-4,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 1.1e-4,
}


class TestWcs:
    def wcs(self, tmp_path, **changes):
        cards = [(name, value) for name, value in (TAN | changes).items() if value is not None]
        return read_chip(write(tmp_path / "a.fits", scene(), cards=cards)).wcs

    def test_tangent_plane(self, tmp_path):
        wcs = self.wcs(tmp_path)
        np.testing.assert_allclose(wcs.all_pix2world([[99, -51]], 0), [[270.5, -28.0]], atol=1e-9)

    def test_distortion_terms_count(self, tmp_path):
        plain = self.wcs(tmp_path).all_pix2world([[40, 20]], 0)
        (tmp_path / "a.fits").unlink()
        tpv = self.wcs(tmp_path, CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_1=1.01, PV2_1=1.0)
        assert abs(tpv.all_pix2world([[40, 20]], 0) - plain)[0, 0] > 1e-5

    def test_sip_beside_pv(self, tmp_path):
        sip = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5}
        alone = self.wcs(tmp_path, **sip)
        (tmp_path / "a.fits").unlink()
        both = self.wcs(tmp_path, **sip, PV1_1=1.0, PV1_5=1e-4, PV2_1=1.0, PV2_5=1e-4)
        pixels = [[40.0, 20.0], [0.0, 47.0]]
        np.testing.assert_array_equal(both.all_pix2world(pixels, 0), alone.all_pix2world(pixels, 0))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "GLON"),
            ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "LINEAR"),
            ({"CTYPE2": fits.card.UNDEFINED}, ""),
            ({"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, ""),
            ({"CD1_1": 0.0, "CD2_2": 0.0}, ""),
            ({"CD1_1": -1e-9, "CD2_2": 1e-9}, "absurd"),
            ({"CD1_1": -0.5, "CD2_2": 0.5}, "absurd"),
            ({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CRPIX1": 1e7}, ""),
            ({"RADESYS": "FK4", "EQUINOX": 1950.0}, "FK4"),
            (
                {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -28.0, "CRVAL2": 270.5, "CD1_1": 1e-4},
                "DEC--TAN",
            ),
        ],
    )
    def test_unusable_is_none_and_said_once(self, tmp_path, caplog, changes, reason):
        assert self.wcs(tmp_path, **changes) is None
        (record,) = caplog.records
        assert "WCS ignored" in record.getMessage()
        assert reason in record.getMessage()
        assert "\n" not in record.getMessage()

    def test_absent_is_none_and_silent(self, tmp_path, caplog):
        assert self.wcs(tmp_path, **dict.fromkeys(TAN)) is None
        assert not caplog.records


@pytest.mark.realdata
class TestRealFiles:
    def test_every_file_is_read_or_refused_with_one_line(self, realdata, recwarn):
        read, refusals = {}, {}
        for path in sorted(realdata.rglob("*")):
            if re.search(r"\.(fits?|fts)(\.fz|\.gz)?$", path.name, re.IGNORECASE):
                try:
                    read[str(path.relative_to(realdata))] = read_chip(path)
                except InputError as error:
                    refusals[path.name] = str(error)
        assert len(read) >= 80
        for chip in read.values():
            assert chip.data.dtype == np.float32
            assert chip.data.flags.c_contiguous
        for name, text in refusals.items():  # sky maps, matching kernels, an all-zero mask: no images
            assert re.search(r"no 2-D image HDU|at least 32 a side|constant image", text), (name, text)
            assert "\n" not in text
        assert not recwarn.list

    def test_pydia_frame(self, realdata):
        chip = read_chip(realdata / "MichaelDAlbrow+pyDIA/Example/Images/AKB13475I0028.fits")
        assert (chip.data.shape, chip.gain, chip.read_noise, chip.site) == ((512, 512), 1.9, 5.0, "SAAO")
        assert chip.mjd_mid == pytest.approx(56481.91645 + 150.0205 / 86400, abs=1e-7)
        assert chip.wcs is None

    def test_decam_transient_position(self, realdata):
        folder = realdata / "thomasvrussell+sfft/test/difference_noise_decorrelation"
        chip = read_chip(folder / "input_data/DEC-OBS04a.mini.fits")
        sky = chip.wcs.all_pix2world([[129.0, 128.0]], 0)[0]
        np.testing.assert_allclose(sky, [318.10828, -66.01573], atol=2e-4)

    def test_sip_and_pv_file_agrees_with_its_pv_solution(self, realdata):
        path = realdata / "EranOfek+AstroPack/data/test_images/fits_samples/PTF_Cropped.fits"
        sky = read_chip(path).wcs.all_pix2world([[0.3, 0.7], [1000.0, 1000.0]], 0)
        # From the PV cards alone, CTYPE set to TPV; without distortion the first is 1.2 arcsec away.
        np.testing.assert_allclose(sky, [[148.23115858, 70.0223347], [149.06878095, 69.74893468]], atol=2e-8)
