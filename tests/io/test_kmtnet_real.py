"""Files built on KASI's own header dumps: every pixel lands where its DETSEC says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.products.exposure import FileForm
from tests import kmtnet_files as kf

pytestmark = pytest.mark.realdata
STEM = "kmta.20170209.044131"
FULL_ROWS, WIDTH = 9232, 1152
LOWER_LEFT = {"M": (1, 10166), "K": (9677, 10166), "N": (1, 1), "T": (9677, 1)}


@pytest.fixture(scope="module")
def headers(realdata):
    """Return the lines of the PRIMARY header and of the 32 amplifiers', by name, in the order of a MEF."""
    folder = realdata / "leecuctio+KMTNet-Camera-Electronics-Upgrade"
    stem = "xkmta.20170209.044131.MEF"
    names = [f"{chip}{k:02d}" for chip in kf.ORDER for k in range(1, 9)]
    files = {name: folder / f"{stem}.{name}header.txt" for name in names}
    found = {name: _lines(path) for name, path in {"primary": folder / f"{stem}.header.txt", **files}.items()}
    raw = (folder / "KMTNk.20170209.044131.Rawheader.txt").read_text().splitlines()
    found["raw K"] = [_plain(text) for text in raw]
    for pair in ("MK", "NT"):
        text = (folder / f"KMTA.20260821.012345.{pair}.fits.header.v1.0.txt").read_text()
        cards = [text[k : k + 80] for k in range(0, len(text), 80)]
        found[pair] = cards[: [c.strip() for c in cards].index("END")]
    return found


def _lines(path):
    lines = path.read_text().splitlines()
    return [item[:80] for item in lines[: [line.strip() for line in lines].index("END")]]


def _plain(text):
    """Undo the tabs of the raw dump."""
    match = re.match(r"(\S+)\s*\t\s*=\s*(.*)", text)
    if not match:
        return text.replace("\t", " ").ljust(80)[:80]
    value = match[2]
    return f"{match[1]:<8}= {value if value.startswith(chr(39)) else value.split('/')[0].strip().rjust(20)}"[
        :80
    ]


def shortened(lines, rows):
    """Return a header for fewer rows, its sections changed consistently."""
    short = []
    for item in lines:
        name = item[:8].strip()
        if name == "NAXIS2":
            item = kf.line(name, rows)
        elif match := re.search(r"\[(\d+:\d+),(\d+):(\d+)\]", item):
            item = f"{name:<8}= '[{match[1]},{match[2]}:{int(match[2]) + rows - 1}]'"
        short.append(item)
    return short


def value_of(lines, name):
    return (
        next(item for item in lines if item.startswith(f"{name:<8}="))
        .split("=", 1)[1]
        .split("/")[0]
        .strip(" '")
    )


def section(lines, name):
    return [int(n) for n in re.findall(r"\d+", value_of(lines, name))]


def code(x, y):
    """Return the 16-bit value that a detector pixel holds; neighbours in both axes differ."""
    return ((x[None, :] + 20011 * y[:, None]) % 65521).astype(np.uint16)


def pixels(x0, y0, columns, rows):
    return code(np.arange(x0, x0 + columns, dtype=np.int64), np.arange(y0, y0 + rows, dtype=np.int64))


def amplifier(lines, rows):
    """Return the raw strip whose data encode its DETSEC; prescan and overscan hold other values."""
    x1, x2, y1, _ = section(lines, "DETSEC")
    strip = np.full((rows, int(value_of(lines, "NAXIS1"))), 65535, np.int64)
    first, last = section(lines, "DATASEC")[:2]
    strip[:, first - 1 : last] = pixels(x1, y1, x2 - x1 + 1, rows)
    return strip


def mef(path, headers, rows, chips=kf.ORDER):
    hdus = [(headers["primary"], None)]
    for name in (f"{chip}{k:02d}" for chip in chips for k in range(1, 9)):
        lines = shortened(headers[name], rows) if rows < FULL_ROWS else headers[name]
        hdus.append((lines, kf.stored(amplifier(lines, rows))))
    return kf.write(path, hdus)


def trimmed(path, headers, rows, without=(), ramp=False):
    """Write the strips as SNU receives them: float, trimmed, the other cards as they were."""
    hdus = [(headers["primary"], None)]
    for name in (f"{chip}{k:02d}" for chip in kf.ORDER for k in range(1, 9)):
        lines = shortened(headers[name], rows)
        x1, x2, y1, _ = section(lines, "DETSEC")
        data = pixels(x1, y1, x2 - x1 + 1, rows).astype(">f4")
        if ramp:
            data = smooth(x1, y1, rows).astype(">f4")
        lines = [item for item in lines if item[:8].strip() not in ("BZERO", *without)]
        lines = [kf.line("NAXIS1", WIDTH) if item.startswith("NAXIS1 ") else item for item in lines]
        lines = [kf.line("BITPIX", -32) if item.startswith("BITPIX ") else item for item in lines]
        hdus.append((lines, data))
    return kf.write(path, hdus)


def smooth(x1, y1, rows, columns=WIDTH):
    return (np.arange(x1, x1 + columns) + 20011 * (np.arange(y1, y1 + rows) % 64)[:, None]).astype(np.float32)


def only(path):
    (files,) = find_exposures(path)
    return files


class TestEveryPixelLandsWhereItsDetsecSays:
    @pytest.mark.parametrize("make", [mef, trimmed])
    def test_few_rows_of_all_chips(self, tmp_path, headers, make):
        files = only(make(tmp_path / f"{STEM}.fits", headers, 48))
        assert files.form is (FileForm.RAW_MEF if make is mef else FileForm.TRIMMED_AMPS)
        assert str(files.id) == STEM
        for chip, (x0, y0) in LOWER_LEFT.items():
            raw = read_exposure_chip(files, chip)
            np.testing.assert_array_equal(raw.data, pixels(x0, y0, 8 * WIDTH, 48))
            assert all((a.overscan == 65535).all() for a in raw.amplifiers if make is mef)

    def test_full_height_of_a_chip_that_runs_backwards(self, tmp_path, headers):
        files = only(mef(tmp_path / f"{STEM}.fits", headers, FULL_ROWS, "K"))
        assert files.missing == ("M", "N", "T")
        raw = read_exposure_chip(files, "K")
        assert raw.data.shape == (FULL_ROWS, 8 * WIDTH)
        for row in range(0, FULL_ROWS, 1154):
            expected = pixels(9677, 10166 + row, 8 * WIDTH, min(1154, FULL_ROWS - row))
            assert (raw.data[row : row + 1154] == expected).all()

    @pytest.mark.parametrize(
        "without", [("CCDSEC",), ("CCDSEC", "EXTNAME"), ("CCDSEC", "EXTNAME", "CCDNAME", "AMPNAME")]
    )
    def test_without_ccdsec_the_seams_decide(self, tmp_path, headers, without):
        files = only(trimmed(tmp_path / f"{STEM}.fits", headers, 48, without, ramp=True))
        for chip, (x0, y0) in LOWER_LEFT.items():
            expected = smooth(x0, y0, 48, 8 * WIDTH)
            np.testing.assert_array_equal(read_exposure_chip(files, chip).data, expected)

    def test_the_cameras_own_file(self, tmp_path, headers):
        frame = np.full((48, 9688), 65535, np.int64)
        frame[:, 8 * 27 : 8 * (27 + WIDTH)] = pixels(9677, 10166, 8 * WIDTH, 48)[::-1, ::-1]
        path = tmp_path / "KMTNk.20170209.044131.fits"
        files = only(kf.write(path, [(shortened(headers["raw K"], 48), kf.stored(frame))]))
        assert (files.form, str(files.id), files.missing) == (FileForm.RAW_CHIP, STEM, ("M", "N", "T"))
        raw = read_exposure_chip(files, "K")
        np.testing.assert_array_equal(raw.data, pixels(9677, 10166, 8 * WIDTH, 48))
        assert all((a.overscan == 65535).all() for a in raw.amplifiers)

    @pytest.mark.parametrize("pair", ["MK", "NT"])
    def test_the_new_electronics(self, tmp_path, headers, pair):
        half = 24
        edits = {"NAXIS2": 2 * (half + 84), "AMPNAX2": half + 84, "IMAGEY": half}
        lines = [
            kf.line(name, edits[name]) if (name := item[:8].strip()) in edits else item
            for item in headers[pair]
        ]
        frame = np.full((2 * (half + 84), 19200), 65535, np.int64)
        for side, chip in enumerate(pair):
            for strip in range(8):  # RRRRLLLL: overscan right of the data in the left four strips
                column = 9600 * side + 1200 * strip + (0 if strip < 4 else 48)
                data = pixels(LOWER_LEFT[chip][0] + strip * WIDTH, LOWER_LEFT[chip][1], WIDTH, 2 * half)
                frame[:half, column : column + WIDTH] = data[:half]
                frame[-half:, column : column + WIDTH] = data[half:]
        path = tmp_path / f"KMTA.20260821.012345.{pair}.fits"
        files = only(kf.write(path, [(lines, kf.stored(frame))]))
        assert (files.form, str(files.id)) == (FileForm.RAW_PAIR, "kmta.20260821.012345")
        assert sorted(files.chips) == sorted(pair)
        assert files.image_type == "BIAS"
        for chip in pair:
            raw = read_exposure_chip(files, chip)
            np.testing.assert_array_equal(raw.data, pixels(*LOWER_LEFT[chip], 8 * WIDTH, 2 * half))
            assert all((a.overscan == 65535).all() for a in raw.amplifiers)


class TestRealHeadersAreRead:
    def test_metadata(self, tmp_path, headers):
        raw = read_exposure_chip(only(mef(tmp_path / f"x{STEM}.fits", headers, 32)), "M")
        assert (raw.site, raw.filter, raw.object, raw.exptime) == ("SSO", "I", "f=0.00", 30)
        assert raw.mjd_mid == pytest.approx(57793 + (59685.72 + 15) / 86400, abs=1e-8)
        assert raw.pointing == pytest.approx((177.4995, -32.9998888889))
        assert (raw.gain, raw.unit) == (None, "adu")

    @pytest.mark.parametrize("chip", kf.ORDER)
    def test_one_mosaic_centre_for_all_amplifiers(self, tmp_path, headers, chip):
        raw = read_exposure_chip(only(mef(tmp_path / f"{STEM}.fits", headers, 48)), chip)
        lines = headers[f"{chip}05"]
        x1, _, _, _ = section(lines, "CCDSEC")
        assert raw.wcs.wcs.crpix[0] == int(value_of(lines, "CRPIX1")) + x1 - 1
        # The chip's own corner and the header's CRPIX give the same centre of the mosaic on every chip.
        centre = raw.wcs.wcs.crpix + LOWER_LEFT[chip] - 1
        assert abs(centre - [(18892 + 1) / 2, (19397 + 1) / 2]).max() <= 1.5
