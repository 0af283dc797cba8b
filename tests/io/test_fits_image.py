"""Reading any instrument's image: what is accepted, and one line for the rest."""

from __future__ import annotations

import gzip
import os
import re
import resource

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.fits_image import read_chip
from ks4diff.io.fits_open import MAX_PIXELS
from ks4diff.products.errors import InputError
from tests.fits_files import image_cards, scene, write, write_raw


def refused(path, *clauses, **options):
    """Check that the file is refused by one line naming it and every clause."""
    with pytest.raises(InputError) as caught:
        read_chip(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    for clause in clauses:
        assert clause in text
    assert len(text) < len(str(path)) + 400


class TestPixels:
    def test_float_image_comes_back_native_and_contiguous(self, tmp_path):
        data = scene()
        chip = read_chip(write(tmp_path / "a.fits", data))
        np.testing.assert_array_equal(chip.data, data)
        assert chip.data.dtype == np.float32
        assert chip.data.dtype.isnative
        assert chip.data.flags.c_contiguous
        assert chip.data.flags.writeable
        assert chip.hdu == "0"
        assert chip.file == str(tmp_path / "a.fits")

    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
    def test_every_fits_pixel_type(self, tmp_path, dtype):
        data = np.clip(scene() / 20, 0, 255).astype(dtype)
        chip = read_chip(write(tmp_path / "a.fits", data))
        np.testing.assert_array_equal(chip.data, data.astype(np.float32))

    def test_unsigned_32_bit_offset_is_applied_before_rounding_to_float32(self, tmp_path):
        data = scene().astype(np.uint32) + np.uint32(1)
        chip = read_chip(write(tmp_path / "a.fits", data))
        np.testing.assert_array_equal(chip.data, data)  # 2**31 in float32 would lose the last 8 bits

    def test_bscale_bzero_and_blank(self, tmp_path):
        raw = np.arange(48 * 64, dtype=">i2").reshape(48, 64)
        lines = [*image_cards(64, 48, 16), "BSCALE  = 0.5", "BZERO   = 100.0", "BLANK   = 7"]
        chip = read_chip(write_raw(tmp_path / "a.fits", lines, raw.tobytes().ljust(8640, b"\0")))
        assert np.isnan(chip.data[0, 7])
        assert np.isnan(chip.data).sum() == 1
        assert chip.data[0, 8] == 104.0

    def test_bands_of_rows_join_without_a_seam(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ks4diff.io.fits_image._BLOCK_PIXELS", 64 * 5)
        data = scene().astype(np.int16)  # tile compression of integers is lossless
        path = tmp_path / "a.fits.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data)]).writeto(path)
        np.testing.assert_array_equal(read_chip(path).data, data)
        np.testing.assert_array_equal(read_chip(write(tmp_path / "b.fits.gz", data)).data, data)

    def test_some_nan_pixels_stay_nan(self, tmp_path):
        data = scene()
        data[3, 4:9] = np.nan
        data[5, 5] = np.inf
        np.testing.assert_array_equal(read_chip(write(tmp_path / "a.fits", data)).data, data)

    def test_missing_padding_is_no_truncation(self, tmp_path):
        data = scene()
        path = write(tmp_path / "a.fits", data)
        os.truncate(path, 2880 + data.nbytes)
        np.testing.assert_array_equal(read_chip(path).data, data)

    def test_suffix_may_lie(self, tmp_path):
        data = scene()
        plain = write(tmp_path / "a.fits", data)
        lying = plain.rename(tmp_path / "plain.fits.gz")
        np.testing.assert_array_equal(read_chip(lying).data, data)
        packed = tmp_path / "packed.fits"
        packed.write_bytes(gzip.compress(lying.read_bytes()))
        np.testing.assert_array_equal(read_chip(packed).data, data)


class TestHdus:
    @pytest.fixture
    def mef(self, tmp_path):
        path = tmp_path / "mef.fits"
        table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.arange(3.0))], name="CAT")
        cube = fits.ImageHDU(np.zeros((3, 40, 40), np.float32), name="CUBE")
        hdus = [fits.PrimaryHDU(), table, cube, fits.ImageHDU(scene(), name="SCI")]
        hdus.append(fits.ImageHDU(scene(40, 50, seed=6), name="REF"))
        fits.HDUList(hdus).writeto(path)
        return path

    def test_first_two_dimensional_image_is_taken(self, mef):
        chip = read_chip(mef)
        assert (chip.hdu, chip.data.shape) == ("3 (SCI)", (48, 64))

    @pytest.mark.parametrize("name", [4, "4", "REF", "ref"])
    def test_named_or_numbered(self, mef, name):
        chip = read_chip(mef, hdu=name)
        assert (chip.hdu, chip.data.shape) == ("4 (REF)", (40, 50))

    @pytest.mark.parametrize("name", [0, "0", "primary"])
    def test_primary_by_number_or_name(self, tmp_path, name):
        assert read_chip(write(tmp_path / "a.fits", scene()), hdu=name).hdu == "0"

    def test_name_beyond_parsing(self, tmp_path):
        body = scene().astype(">f4").tobytes()
        path = write_raw(tmp_path / "a.fits", [*image_cards(64, 48), "EXTNAME = - 'SCI'"], body)
        assert read_chip(path).hdu == "0"

    @pytest.mark.parametrize("name", [9, "NOPE", -1])
    def test_absent_hdu_lists_those_there(self, mef, name):
        refused(mef, repr(str(name)), "3 (SCI)", hdu=name)

    @pytest.mark.parametrize(
        ("name", "what"), [("CAT", "a table"), (2, "a 3-D array of 40x40x3"), (0, "no data")]
    )
    def test_hdu_without_a_2d_image(self, mef, name, what):
        refused(mef, "not a 2-D image", what, hdu=name)

    def test_damage_behind_the_image_does_not_matter(self, mef):
        with open(mef, "r+b") as stream:
            stream.truncate(mef.stat().st_size - 5000)
        assert read_chip(mef).hdu == "3 (SCI)"

    def test_extension_inherits_from_the_primary_header(self, tmp_path):
        primary = fits.PrimaryHDU()
        primary.header["EXPTIME"] = 80.0
        primary.header["GAIN"] = 0.0
        image = fits.ImageHDU(scene())
        image.header["GAIN"] = 6.42
        fits.HDUList([primary, image]).writeto(tmp_path / "a.fits")
        chip = read_chip(tmp_path / "a.fits")
        assert (chip.gain, chip.exptime) == (6.42, 80.0)


class TestRefusals:
    def test_missing_file(self, tmp_path):
        refused(tmp_path / "none.fits", "no such file")

    def test_folder(self, tmp_path):
        refused(tmp_path, "folder")

    def test_device(self):
        refused("/dev/null", "not a regular file")

    def test_empty_file(self, tmp_path):
        (tmp_path / "a.fits").touch()
        refused(tmp_path / "a.fits", "empty")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_file(self, tmp_path):
        path = write(tmp_path / "a.fits", scene())
        path.chmod(0)
        refused(path, "Permission denied")

    def test_text_with_a_fits_suffix(self, tmp_path):
        (tmp_path / "a.fits").write_text("SIMPLE is better than complex\n" * 200)
        refused(tmp_path / "a.fits", "not a FITS file", "SIMPLE is")

    @pytest.mark.parametrize(
        ("start", "words"), [(b"PK\x03\x04", "zip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz")]
    )
    def test_other_archives_are_named(self, tmp_path, start, words):
        (tmp_path / "a.fits").write_bytes(start + b"x" * 5000)
        refused(tmp_path / "a.fits", words, "unpack")

    def test_gzip_of_text(self, tmp_path):
        (tmp_path / "a.fits.gz").write_bytes(gzip.compress(b"hello world, this is no image" * 9))
        refused(tmp_path / "a.fits.gz", "not a FITS file")

    @pytest.mark.parametrize("size", [400, 2879, 2880, 2881, 9000])
    def test_truncated(self, tmp_path, size):
        path = write(tmp_path / "a.fits", scene())
        os.truncate(path, size)
        refused(path)

    def test_truncation_names_the_sizes(self, tmp_path):
        path = write(tmp_path / "a.fits", scene())
        os.truncate(path, 9000)
        refused(path, "HDU 0", "truncated", "64 x 48", "9000")

    @pytest.mark.parametrize("fraction", [0.01, 0.5, 0.98])
    def test_truncated_gzip(self, tmp_path, fraction):
        path = write(tmp_path / "a.fits.gz", scene())
        os.truncate(path, int(path.stat().st_size * fraction))
        refused(path)

    def test_whole_gzip_of_a_truncated_file(self, tmp_path):
        whole = write(tmp_path / "a.fits", scene()).read_bytes()
        (tmp_path / "b.fits.gz").write_bytes(gzip.compress(whole[:9000]))
        refused(tmp_path / "b.fits.gz", "HDU 0")

    @pytest.mark.parametrize("size", [2880, 7000, 9000, -2880])
    def test_truncated_tile_compressed(self, tmp_path, size):
        path = tmp_path / "a.fits.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(scene(), name="SCI")]).writeto(path)
        os.truncate(path, size if size > 0 else path.stat().st_size + size)
        refused(path)

    def test_damaged_tile(self, tmp_path):
        path = tmp_path / "a.fits.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(scene().astype(np.int16))]).writeto(path)
        with fits.open(path) as hdus:
            start = hdus[1].fileinfo()["datLoc"]
        with open(path, "r+b") as stream:  # the first row's tile is said to be 3 bytes long
            stream.seek(start)
            stream.write((3).to_bytes(4, "big"))
        refused(path, "HDU 1", "decompression error")

    def test_corrupt_gzip_body(self, tmp_path):
        path = write(tmp_path / "a.fits.gz", scene())
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
        path.write_bytes(raw)
        refused(path)

    def test_cube(self, tmp_path):
        path = write(tmp_path / "a.fits", np.zeros((3, 40, 50), np.float32))
        refused(path, "no 2-D image HDU", "3-D array of 50x40x3")

    def test_no_data(self, tmp_path):
        fits.PrimaryHDU().writeto(tmp_path / "a.fits")
        refused(tmp_path / "a.fits", "no 2-D image HDU", "0: no data")

    def test_tiny(self, tmp_path):
        refused(write(tmp_path / "a.fits", scene(8, 8)), "HDU 0", "8 x 8", "32")

    def test_one_side_too_short(self, tmp_path):
        refused(write(tmp_path / "a.fits", scene(31, 64)), "64 x 31")
        assert read_chip(write(tmp_path / "b.fits", scene(32, 64))).data.shape == (32, 64)

    def test_all_nan(self, tmp_path):
        refused(write(tmp_path / "a.fits", np.full((40, 40), np.nan, np.float32)), "HDU 0", "finite")

    @pytest.mark.parametrize("value", [0.0, 217.5])
    def test_constant(self, tmp_path, value):
        data = np.full((40, 40), value, np.float32)
        data[0, :3] = np.nan
        refused(write(tmp_path / "a.fits", data), "HDU 0", "constant", f"{value:g}")

    @pytest.mark.parametrize("bitpix", [0, 24, -16, 128])
    def test_odd_pixel_type(self, tmp_path, bitpix):
        refused(write_raw(tmp_path / "a.fits", image_cards(64, 48, bitpix), b"\1" * 14400))

    @pytest.mark.parametrize("card", ["NAXIS1  = 'many'", "NAXIS1  =", "NAXIS1  = -64", "NAXIS1  = 64.5"])
    def test_odd_size_card(self, tmp_path, card):
        lines = image_cards(64, 48)
        lines[3] = card
        refused(write_raw(tmp_path / "a.fits", lines, b"\1" * 14400))

    @pytest.mark.parametrize("packed", [False, True])
    def test_number_of_axes_that_makes_the_list_of_hdus_endless(self, tmp_path, packed):
        lines = image_cards(64, 48)
        lines[2] = "NAXIS   =         7          2 / found by changing bytes at random"
        raw = write_raw(tmp_path / "a.fits", lines, scene().astype(">f4").tobytes()).read_bytes()
        (tmp_path / "b.fits").write_bytes(gzip.compress(raw) if packed else raw)
        refused(tmp_path / "b.fits")


class TestAbsurdSizes:
    """A header must not make us allocate: each runs with little address space to spare."""

    @pytest.fixture(autouse=True)
    def _little_memory(self):
        with open("/proc/self/statm") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, hard))
        yield
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    @pytest.mark.parametrize("side", [20_000, 100_000, 2**31, 10**12])
    def test_plain(self, tmp_path, side):
        path = write_raw(tmp_path / "a.fits", image_cards(side, side), b"\1" * 2880)
        refused(path, f"{side} x {side}")

    @pytest.mark.parametrize("side", [20_000, 10**6])
    def test_gzip(self, tmp_path, side):
        whole = write_raw(tmp_path / "a.fits", image_cards(side, side), b"\1" * 2880).read_bytes()
        (tmp_path / "b.fits.gz").write_bytes(gzip.compress(whole))
        refused(tmp_path / "b.fits.gz", f"{side} x {side}")

    @pytest.mark.parametrize("side", [20_000, 10**6])
    def test_tile_compressed(self, tmp_path, side):
        path = tmp_path / "a.fits.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(scene())]).writeto(path)
        raw = path.read_bytes()
        for name in (b"ZNAXIS1", b"ZNAXIS2"):
            raw = re.sub(name + rb" = +\d+", name + b" = " + b"%20d" % side, raw)
        path.write_bytes(raw)
        refused(path, f"{side} x {side}")

    def test_cap_is_a_cap_even_for_a_sparse_file_that_is_large_enough(self, tmp_path):
        columns = 2**15
        rows = MAX_PIXELS // columns + 1
        path = write_raw(tmp_path / "a.fits", image_cards(columns, rows, 8))
        os.truncate(path, 2880 * 2 + columns * rows)
        refused(path, str(MAX_PIXELS))
