"""Boxes read from stacks: every pixel type, every packing, nothing but what is asked."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.tile_files import copy_with_sha256, read_box, read_image_wcs, read_tile_header, unpack_tile
from ks4diff.products.errors import InputError
from ks4diff.products.template import PixelBox
from tests.tiles import tan_wcs, write_tile

SHAPE = (70, 110)


def ramp(dtype="f4"):
    return np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_any_pixel_type_reads_as_counts(tmp_path, dtype):
    fits.PrimaryHDU(ramp(dtype)).writeto(tmp_path / "a.fits")
    pixels = read_tile_header(tmp_path / "a.fits").pixels
    box = PixelBox(30, 20, 95, 50)
    np.testing.assert_array_equal(read_box(pixels, box), ramp(dtype)[20:50, 30:95].astype("f4"))


def test_scaled_integers_and_blanks(tmp_path):
    hdu = fits.PrimaryHDU(ramp("i2"))
    hdu.header["BLANK"] = 7
    hdu.writeto(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits", mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 0.5, 100.0
    data = read_box(read_tile_header(tmp_path / "a.fits").pixels, PixelBox(0, 0, 20, 1))
    assert np.isnan(data[0, 7])
    assert data[0, 8] == 104.0


def test_beyond_the_tile_there_is_no_data(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(ramp() + 1)]).writeto(tmp_path / "a.fits")
    pixels = read_tile_header(tmp_path / "a.fits").pixels
    padded = np.pad(ramp() + 1, 15)
    np.testing.assert_array_equal(read_box(pixels, PixelBox(-15, -15, 125, 85)), padded)
    assert not read_box(pixels, PixelBox(200, 0, 230, 30)).any()


@pytest.mark.parametrize("suffix", [".fits.gz", ".fits.fz"])
def test_packed_files_are_unpacked_with_their_header(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    wcs = tan_wcs(SHAPE)
    if suffix.endswith("fz"):
        hdu = fits.CompImageHDU(ramp(), wcs.to_header(), compression_type="GZIP_1")
        hdu.header["FILTER"] = "R"
        hdu.header["COMMENT"] = "not copied"
        hdu.writeto(path)
    else:
        write_tile(path, ramp(), wcs)
    assert read_tile_header(path).pixels is None
    unpack_tile(path, None, tmp_path / "plain.fits")
    header = read_tile_header(tmp_path / "plain.fits")
    assert header.facts["filter"] == "R"
    np.testing.assert_array_equal(read_box(header.pixels, PixelBox(0, 0, SHAPE[1], SHAPE[0])), ramp())
    np.testing.assert_allclose(
        header.wcs.all_pix2world([[3, 5]], 0), wcs.all_pix2world([[3, 5]], 0), atol=1e-10
    )
    assert (tmp_path / "plain.fits").stat().st_size % 2880 == 0


def test_a_file_cut_after_it_was_opened_is_one_line(tmp_path):
    fits.PrimaryHDU(ramp()).writeto(tmp_path / "a.fits")
    pixels = read_tile_header(tmp_path / "a.fits").pixels
    with (tmp_path / "a.fits").open("r+b") as stream:
        stream.truncate(2880 + 4 * 110 * 40)
    with pytest.raises(InputError, match="ends in row 40"):
        read_box(pixels, PixelBox(0, 0, 110, 70))
    (tmp_path / "a.fits").unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        read_box(pixels, PixelBox(0, 0, 110, 70))


def test_damaged_packed_file_leaves_nothing_behind(tmp_path):
    path = write_tile(
        tmp_path / "a.fits.gz", np.random.default_rng(1).normal(size=SHAPE).astype("f4"), tan_wcs(SHAPE)
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.fits\.gz"):
        unpack_tile(path, None, tmp_path / "out" / "plain.fits")
    assert not list((tmp_path / "out").iterdir())


def test_copy_gives_the_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"pixels" * 1000)
    expected = hashlib.sha256(b"pixels" * 1000).hexdigest()
    assert (
        copy_with_sha256(tmp_path / "a", tmp_path / "b") == expected == copy_with_sha256(tmp_path / "b", None)
    )


def test_every_image_with_a_wcs_is_part_of_an_exposure(tmp_path):
    hdus = [fits.PrimaryHDU()]
    hdus += [fits.ImageHDU(ramp(), tan_wcs(SHAPE).to_header(), name=name) for name in ("M", "K")]
    hdus.append(fits.ImageHDU(ramp(), name="MASK"))
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    assert [label for label, *_ in read_image_wcs(tmp_path / "a.fits")] == ["1 (M)", "2 (K)"]
