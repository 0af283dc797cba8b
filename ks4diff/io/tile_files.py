"""Pixels of large stacks, read a box at a time from plain FITS files; packed files are unpacked once."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path
from ks4diff.io.fits_hdus import checked_shape, describe, hdu_label, hdu_name, is_image, walk_hdus
from ks4diff.io.fits_header import card, header_facts, quiet_astropy
from ks4diff.io.fits_open import failing_as_input_error, open_fits, read_to_end
from ks4diff.io.fits_wcs import celestial_wcs
from ks4diff.products.errors import InputError
from ks4diff.products.template import PixelBox

_CHUNK_BYTES = 2**23
_BAND_PIXELS = 2**22
_READERS = 2  # one waits for the disk while the other swaps bytes
_FITS_BLOCK = 2880
_STRUCTURE = ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM", "EXTEND", "INHERIT", "EXTNAME", "EXTVER")
_NAME_CARDS = ("OBJECT", "FIELD1", "FIELD2", "FIELD")
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


@dataclass(frozen=True, kw_only=True)
class TilePixels:
    """Where the pixels of an image lie in a plain FITS file, and how stored numbers become counts."""

    path: Path
    hdu: str
    offset: int
    shape: tuple[int, int]
    bitpix: int
    scale: float
    zero: float
    blank: int | None


@dataclass(frozen=True, kw_only=True)
class TileHeader:
    """What a stack's header says: `header_facts`, its WCS and the words that may name its field."""

    facts: dict[str, float | str | None]
    wcs: WCS | None
    mjd: float | None
    words: str
    pixels: TilePixels | None  # None when packed: see `unpack_tile`
    shape: tuple[int, int]
    hdu: str


def read_tile_header(path: Path, hdu: int | str | None = None) -> TileHeader:
    """Return what a file says of its image, by default the first 2-D one, without reading a pixel.

    Raises
    ------
    InputError
        When there is no image, or the file is shorter than its header says.

    """
    with _open_image(path, hdu) as (index, item, hdus, packed):
        where = f"{path}, HDU {hdu_label(index, item)}"
        with failing_as_input_error(f"{where}: cannot be read"):
            shape = checked_shape(where, item, path.stat().st_size, packed is not None)
            plain = packed is None and not isinstance(item, fits.CompImageHDU)
            headers = [item.header] if index == 0 else [item.header, hdus[0].header]
            facts = header_facts(headers)
            mean = next((card(h, "MEANMJD") for h in headers if card(h, "MEANMJD") is not None), None)
            return TileHeader(
                facts=facts,
                wcs=celestial_wcs(item.header, shape, hdus),
                mjd=float(mean) if isinstance(mean, int | float) else facts["mjd_mid"],
                words=_words(path, headers),
                pixels=_locate(path, index, item, shape) if plain else None,
                shape=shape,
                hdu=hdu_label(index, item),
            )


def read_image_wcs(path: Path) -> list[tuple[str, WCS, tuple[int, int]]]:
    """Return (HDU, WCS, shape) of every 2-D image of a file that has a usable WCS.

    Raises
    ------
    InputError
        When the file cannot be read.

    """
    found = []
    with quiet_astropy(str(path)), open_fits(path) as (hdus, _):
        for index, item in walk_hdus(path, hdus):
            if is_image(item):
                wcs = celestial_wcs(item.header, item.shape, hdus)
                if wcs is not None:
                    found.append((hdu_label(index, item), wcs, item.shape))
    return found


@contextmanager
def _open_image(path: Path, wanted: int | str | None) -> Iterator[tuple]:
    """Yield (index, HDU, HDU list, gzip stream) of the wanted image, by default the first 2-D one."""
    text = None if wanted is None else str(wanted).strip().upper()
    with quiet_astropy(str(path)), open_fits(path) as (hdus, packed):
        for index, item in walk_hdus(path, hdus):
            if text in (None, str(index), hdu_name(index, item).upper()):
                if is_image(item):
                    yield index, item, hdus, packed
                    return
                if text is not None:
                    raise InputError(f"{path}, HDU {hdu_label(index, item)}: not an image: {describe(item)}")
        raise InputError(f"{path}: no {'2-D image HDU' if text is None else f'HDU {wanted!r}'}")


def _words(path: Path, headers: list[fits.Header]) -> str:
    texts = [str(card(header, name) or "") for header in headers for name in _NAME_CARDS]
    number, rest = (str(card(headers[0], name) or "").strip() for name in ("FIELD1", "FIELD2"))
    return " ".join([f"{number}.{rest}", *texts, path.name, path.resolve().parent.name])


def _locate(path: Path, index: int, item: object, shape: tuple[int, int]) -> TilePixels:
    """Return where an open plain HDU keeps its pixels."""
    scale, zero, blank = (card(item.header, name) for name in ("BSCALE", "BZERO", "BLANK"))
    bitpix = int(item.header["BITPIX"])
    return TilePixels(
        path=path,
        hdu=hdu_label(index, item),
        offset=item.fileinfo()["datLoc"],
        shape=shape,
        bitpix=bitpix,
        scale=1.0 if scale is None else float(scale),
        zero=0.0 if zero is None else float(zero),
        blank=int(blank) if isinstance(blank, int) and bitpix > 0 else None,
    )


def read_box(pixels: TilePixels, box: PixelBox) -> np.ndarray:
    """Return float32 [y, x] of a box of the image; 0, which is no data, where the box leaves it.

    Only the rows' bytes inside the box are read: nothing is mapped and nothing else allocated.

    Raises
    ------
    InputError
        When the file has become unreadable or shorter.

    """
    rows, columns = pixels.shape
    inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= columns and box.y1 <= rows
    data = (np.empty if inside else np.zeros)(box.shape, dtype=np.float32)
    x0, x1 = max(box.x0, 0), min(box.x1, columns)
    y0, y1 = max(box.y0, 0), min(box.y1, rows)
    if x0 >= x1 or y0 >= y1:
        return data
    step = max(1, min(_BAND_PIXELS // (x1 - x0), -(-(y1 - y0) // _READERS)))
    try:
        handle = os.open(pixels.path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{pixels.path}: cannot be opened ({error.strerror})") from error
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            jobs = [
                pool.submit(_read_band, handle, pixels, (y, min(y + step, y1)), (x0, x1), data, box)
                for y in range(y0, y1, step)
            ]
            for job in jobs:
                job.result()
    finally:
        os.close(handle)
    return data


def _read_band(handle, pixels, rows, columns, out, box) -> None:
    """Read rows [y0, y1), columns [x0, x1) of the image into their place in ``out``."""
    dtype = np.dtype(_DTYPES[pixels.bitpix])
    x0, x1 = columns
    target = out[rows[0] - box.y0 : rows[1] - box.y0, x0 - box.x0 : x1 - box.x0]
    as_is = pixels.bitpix == -32 and pixels.scale == 1 and pixels.zero == 0
    raw = target if as_is else np.empty(target.shape, dtype=dtype)
    stride = pixels.shape[1] * dtype.itemsize
    start = pixels.offset + rows[0] * stride + x0 * dtype.itemsize
    for row in raw:
        if os.preadv(handle, [row.view(np.uint8)], start) != row.nbytes:
            y = (start - pixels.offset) // stride
            raise InputError(f"{pixels.path}, HDU {pixels.hdu}: ends in row {y}")
        start += stride
    if as_is:
        if sys.byteorder == "little":
            target.byteswap(inplace=True)
        return
    # counts beyond 3e38 become infinite and invalid bit patterns NaN; both are masked later
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = raw * pixels.scale + pixels.zero
    if pixels.blank is not None:
        target[raw == pixels.blank] = np.nan


def unpack_tile(path: Path, hdu: int | str | None, target: Path) -> None:
    """Write a packed image (.gz, .fz) as a plain float32 FITS file, in bands of rows.

    Raises
    ------
    InputError
        When the file is damaged.
    OSError
        When ``target`` cannot be written.

    """
    with _open_image(path, hdu) as (index, item, _, packed), atomic_path(target) as temporary:
        where = f"{path}, HDU {hdu_label(index, item)}"
        with temporary.open("wb") as stream, failing_as_input_error(f"{where}: cannot be read"):
            rows, columns = checked_shape(where, item, path.stat().st_size, packed is not None)
            stream.write(plain_header(item.header, (rows, columns)))
            step = max(1, _BAND_PIXELS // columns)
            for start in range(0, rows, step):
                band = item.section[start : min(start + step, rows), 0:columns]
                with np.errstate(over="ignore", invalid="ignore"):
                    stream.write(np.ascontiguousarray(band, dtype=">f4").tobytes())
            stream.write(bytes(-stream.tell() % _FITS_BLOCK))
            if packed is not None:
                read_to_end(packed)


def plain_header(header: fits.Header, shape: tuple[int, int]) -> bytes:
    """Return the bytes of a primary header for a float32 image that keeps what ``header`` says."""
    made = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2)])
    made["NAXIS1"], made["NAXIS2"] = shape[1], shape[0]
    for name in dict.fromkeys(header.copy(strip=True).keys()):
        value = card(header, name)
        plain = isinstance(value, str) and value.isascii() and value.isprintable() and len(value) < 68
        if name not in (*_STRUCTURE, "COMMENT", "HISTORY", "") and (plain or isinstance(value, int | float)):
            made[name] = value
    return made.tostring(sep="", endcard=True, padding=True).encode("ascii", errors="replace")


def copy_with_sha256(path: Path, target: Path | None) -> str:
    """Return the sha256 of a file, hex, copying it to ``target`` on the way unless that is None.

    Raises
    ------
    InputError
        When the file cannot be read.
    OSError
        When ``target`` cannot be written.

    """
    if target is None:
        return _pour(path, None)
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        return _pour(path, out)


def _pour(path: Path, out: object | None) -> str:
    digest = hashlib.sha256()
    try:
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    with stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
    return digest.hexdigest()
