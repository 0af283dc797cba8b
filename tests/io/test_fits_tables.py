"""candidates.fits and difference.fits say what they hold and come back as they went."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.fits_image import read_chip
from ks4diff.io.fits_tables import read_candidates, read_meta, write_candidates, write_difference
from ks4diff.products.candidates import CANDIDATE_FLAGS, COLUMNS, Candidates, empty_table
from ks4diff.products.difference import Difference
from ks4diff.products.errors import InputError
from ks4diff.products.image import PixelFlag
from ks4diff.products.model import RB_FLAGS
from ks4diff.products.psf import Psf

META = {
    "software": "ks4diff 0.1.0",
    "config_digest": "0123456789abcdef" * 4,
    "template_ids": ("tile-1", "tile-2" * 20),
    "model_id": "rules-0",
    "science_file": "/data/별.fits",
    "flux_scale": float("nan"),
    "NIGHT": 20260821,
}


def candidates(n=5, unit="nJy"):
    table = empty_table(n)
    rng = np.random.default_rng(3)
    for column in COLUMNS:
        if column.dtype in ("f4", "f8"):
            table[column.name] = rng.normal(size=n)
    table["id"] = np.arange(n) + 2**40
    table["is_positive"] = np.arange(n) % 2 == 0
    table["flags"] = np.arange(n) * 37
    table["ra"][:1] = np.nan
    return Candidates(table=table, cutouts=np.zeros((n, 3, 5, 5), np.float32), flux_unit=unit)


def difference(rows=40, columns=56):
    rng = np.random.default_rng(4)
    image, score, error = rng.normal(size=(3, rows, columns)).astype(np.float32)
    image[3, 5] = np.nan
    flags = rng.integers(0, 127, (rows, columns)).astype(np.int32)
    psf = Psf(stamp=np.full((5, 5), 0.04, np.float32), fwhm_pix=3.25, n_stars=17)
    return Difference(
        difference=image,
        score_corr=score,
        flux_err=error,
        flags=flags,
        psf=psf,
        flux_scale=1.25,
        noise=0.5,
    )


def tan_sip():
    header = fits.Header()
    for name, value in {
        "CTYPE1": "RA---TAN-SIP",
        "CTYPE2": "DEC--TAN-SIP",
        "CRVAL1": 270.5,
        "CRVAL2": -28.0,
        "CRPIX1": 100.0,
        "CRPIX2": -50.0,
        "CD1_1": -1.1e-4,
        "CD1_2": 1e-6,
        "CD2_1": 2e-6,
        "CD2_2": 1.1e-4,
        "A_ORDER": 2,
        "B_ORDER": 2,
        "A_2_0": 2e-5,
        "B_0_2": -1e-5,
    }.items():
        header[name] = value
    return WCS(header)


class TestCandidates:
    @pytest.mark.parametrize("n", [0, 1, 5])
    def test_round_trip(self, tmp_path, n):
        written = candidates(n)
        write_candidates(tmp_path / "c.fits", written, meta=META)
        back = read_candidates(tmp_path / "c.fits")
        assert back.table.dtype == written.table.dtype
        for column in COLUMNS:
            np.testing.assert_array_equal(back.table[column.name], written.table[column.name])
        assert back.flux_unit == "nJy"
        assert back.cutouts.shape == (n, 3, 0, 0)

    @pytest.mark.parametrize("unit", ["nJy", "count"])
    def test_columns_types_units_and_comments(self, tmp_path, unit):
        write_candidates(tmp_path / "c.fits", candidates(unit=unit), meta={})
        with fits.open(tmp_path / "c.fits") as hdus:
            hdu = hdus["CANDIDATES"]
            assert hdu.columns.names == [*(column.name for column in COLUMNS), "rb_reasons"]
            for number, column in enumerate(COLUMNS, start=1):
                expected = unit if column.unit == "flux" else column.unit
                assert hdu.header.get(f"TUNIT{number}", "") == expected
                assert hdu.header[f"TCOMM{number}"] == column.description.replace("²", "^2")
            formats = dict(zip(hdu.columns.names, hdu.columns.formats, strict=True))
            assert [formats[name] for name in ("id", "ra", "rb", "flags", "is_positive")] == list("KDEJL")

    def test_flag_bits_are_named_and_rejecting_ones_marked(self, tmp_path):
        write_candidates(tmp_path / "c.fits", candidates(), meta={})
        header = fits.getheader(tmp_path / "c.fits", "CANDIDATES")
        total = 0
        for bit, flag in enumerate(CANDIDATE_FLAGS):
            assert flag.bit == 1 << bit
            assert header[f"FLAG{bit}"] == flag.name
            assert header[f"FREJ{bit}"] is flag.rejecting
            assert header[f"FDES{bit}"] == flag.description
            total += flag.bit * flag.rejecting
        assert header["FREJECT"] == total

    def test_readme_names_every_column_with_its_unit(self):
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        table = readme.split("| columns | unit | meaning |")[1].split("\n\n")[0]
        told = {}
        for line in table.splitlines()[2:]:
            _, names, unit, *_ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
            told |= dict.fromkeys(re.findall(r"`(\w+)`", names), unit)
        assert told == {column.name: column.unit for column in COLUMNS} | {"rb_reasons": ""}

    def test_the_bits_of_rb_flags_are_named(self, tmp_path):
        write_candidates(tmp_path / "c.fits", candidates(), meta={})
        header = fits.getheader(tmp_path / "c.fits", "CANDIDATES")
        for bit, flag in enumerate(RB_FLAGS):
            assert flag.bit == 1 << bit
            told = (header[f"RBF{bit}"], header[f"RBW{bit}"], header[f"RBD{bit}"])
            assert told == (flag.name, flag.withholds, flag.description)

    def test_reasons_are_a_column_of_names(self, tmp_path):
        reasons = [("psf_corr+", "s_neg-"), (), ("t_snr-",)]
        write_candidates(tmp_path / "c.fits", candidates(3), meta={}, reasons=reasons)
        table = fits.getdata(tmp_path / "c.fits", "CANDIDATES")
        assert table["rb_reasons"].tolist() == ["psf_corr+,s_neg-", "", "t_snr-"]
        assert len(read_candidates(tmp_path / "c.fits")) == 3

    def test_provenance_comes_back(self, tmp_path):
        write_candidates(tmp_path / "c.fits", candidates(), meta=META)
        meta = read_meta(tmp_path / "c.fits")
        assert meta["config_digest"] == META["config_digest"]
        assert meta["template_ids"] == ",".join(META["template_ids"])
        assert meta["model_id"] == "rules-0"
        assert meta["science_file"] == "/data/\\ubcc4.fits"
        assert meta["flux_scale"] is None
        assert fits.getval(tmp_path / "c.fits", "NIGHT", ext=1) == 20260821

    def test_same_input_same_bytes_and_no_dates(self, tmp_path):
        for name in ("a", "b"):
            write_candidates(tmp_path / f"{name}.fits", candidates(), meta=META)
        assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()
        assert "DATE" not in fits.getheader(tmp_path / "a.fits", 1)
        assert "DATE" not in fits.getheader(tmp_path / "a.fits", 0)

    def test_file_obeys_the_standard(self, tmp_path):
        write_candidates(tmp_path / "c.fits", candidates(), meta=META)
        with fits.open(tmp_path / "c.fits") as hdus:
            hdus.verify("exception")

    def test_input_is_not_modified(self, tmp_path):
        written = candidates()
        before = written.table.copy()
        write_candidates(tmp_path / "c.fits", written, meta=META)
        assert written.table.tobytes() == before.tobytes()

    def test_other_columns_are_refused(self, tmp_path):
        wrong = Candidates(table=np.zeros(2, [("id", "i8")]), cutouts=np.zeros((2, 3, 1, 1)), flux_unit="nJy")
        with pytest.raises(ValueError, match="COLUMNS"):
            write_candidates(tmp_path / "c.fits", wrong, meta={})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("key", ["much_too_long", "ü", "a b"])
    def test_keys_that_are_no_keywords(self, tmp_path, key):
        with pytest.raises(ValueError, match="not a FITS keyword"):
            write_candidates(tmp_path / "c.fits", candidates(), meta={key: 1})

    def test_reading_something_else(self, tmp_path):
        with pytest.raises(InputError, match=r"c\.fits"):
            read_candidates(tmp_path / "c.fits")
        (tmp_path / "c.fits").write_text("no table")
        with pytest.raises(InputError, match=r"c\.fits"):
            read_candidates(tmp_path / "c.fits")

    def test_reading_a_table_that_lacks_columns(self, tmp_path):
        columns = [fits.Column("id", "K", array=np.arange(3))]
        fits.BinTableHDU.from_columns(columns, name="CANDIDATES").writeto(tmp_path / "c.fits")
        with pytest.raises(InputError, match=r"lacks the columns ra, dec"):
            read_candidates(tmp_path / "c.fits")


class TestDifference:
    def test_hdus_and_pixels(self, tmp_path):
        product = difference()
        write_difference(tmp_path / "d.fits", difference=product, wcs=None, meta=META)
        with fits.open(tmp_path / "d.fits") as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "DIFFERENCE", "SCORR", "MASK", "PSF"]
            np.testing.assert_array_equal(hdus["DIFFERENCE"].data, product.difference)
            np.testing.assert_array_equal(hdus["SCORR"].data, product.score_corr)
            np.testing.assert_array_equal(hdus["MASK"].data, product.flags)
            np.testing.assert_array_equal(hdus["PSF"].data, product.psf.stamp)
            assert [hdus[name].header["BITPIX"] for name in ("DIFFERENCE", "SCORR", "MASK")] == [-32, -32, 32]
            assert hdus["DIFFERENCE"].header["FLXSCALE"] == 1.25
            assert hdus["DIFFERENCE"].header["NOISE"] == 0.5
            assert (hdus["PSF"].header["FWHM"], hdus["PSF"].header["NSTARS"]) == (3.25, 17)
            assert hdus[0].header["SOFTWARE"] == META["software"]
            assert "CTYPE1" not in hdus["DIFFERENCE"].header

    def test_mask_bits_are_named(self, tmp_path):
        write_difference(tmp_path / "d.fits", difference=difference(), wcs=None, meta={})
        header = fits.getheader(tmp_path / "d.fits", "MASK")
        for flag in PixelFlag:
            assert header[f"FLAG{int(np.log2(flag))}"] == flag.name

    def test_science_wcs_with_its_distortion(self, tmp_path):
        wcs = tan_sip()
        write_difference(tmp_path / "d.fits", difference=difference(), wcs=wcs, meta={})
        pixels = [[0.0, 0.0], [55.0, 39.0], [20.0, 10.0]]
        for name in ("DIFFERENCE", "SCORR", "MASK"):
            back = read_chip(tmp_path / "d.fits", hdu=name).wcs
            shift = back.all_pix2world(pixels, 0) - wcs.all_pix2world(pixels, 0)
            assert np.abs(shift).max() * 3600 < 1e-4
        assert "CTYPE1" not in fits.getheader(tmp_path / "d.fits", "PSF")

    @pytest.mark.realdata
    def test_tpv_of_decam(self, tmp_path, realdata):
        folder = realdata / "thomasvrussell+sfft/test/difference_noise_decorrelation/input_data"
        wcs = read_chip(folder / "DEC-OBS18a.mini.fits").wcs
        write_difference(tmp_path / "d.fits", difference=difference(), wcs=wcs, meta={})
        back = read_chip(tmp_path / "d.fits", hdu="SCORR").wcs
        pixels = [[0.0, 0.0], [55.0, 39.0], [250.0, 250.0]]
        assert np.abs(back.all_pix2world(pixels, 0) - wcs.all_pix2world(pixels, 0)).max() * 3600 < 1e-4

    def test_same_input_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            write_difference(tmp_path / f"{name}.fits", difference=difference(), wcs=tan_sip(), meta=META)
        assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()
