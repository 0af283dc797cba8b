"""The HDUs of an open FITS file, one at a time, and whether the file can hold what their headers promise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from astropy.io import fits

from ks4diff.io.fits_header import card
from ks4diff.io.fits_open import MAX_PIXELS, failing_as_input_error
from ks4diff.products.errors import InputError, TruncatedFile

MIN_SIDE = 32  # pixels: below this there is no room for a PSF stamp and its surroundings

# Largest expansion a file of n bytes can honestly promise: deflate cannot exceed 1032:1; a tile of
# constant pixels in the FITS tile compressions stays below 8192 pixels per byte.
_GZIP_RATIO = 1032
_TILE_RATIO = 8192
_MAX_HDUS = 1000  # some broken headers make astropy find the same HDU again without end
_BITPIX_BYTES = {8: 1, 16: 2, 32: 4, 64: 8, -32: 4, -64: 8}
_IMAGE_HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)


def walk_hdus(path: Path, hdus: fits.HDUList) -> Iterator[tuple[int, object]]:
    """Yield (index, HDU) one at a time, so that damage behind the wanted HDU does not matter."""
    for index in range(_MAX_HDUS):
        with failing_as_input_error(f"{path}, HDU {index}: header cannot be read"):
            try:
                item = hdus[index]
            except IndexError:
                return
        yield index, item
    raise InputError(f"{path}: broken FITS file: no such image in the first {_MAX_HDUS} HDUs")


def hdu_name(index: int, item: object) -> str:
    """Return EXTNAME, PRIMARY for an unnamed first HDU, else an empty string."""
    # Not ``item.name``: astropy raises there when EXTNAME cannot be parsed.
    return str(card(item.header, "EXTNAME") or "").strip() or ("PRIMARY" if index == 0 else "")


def hdu_label(index: int, item: object) -> str:
    """Return how messages name an HDU, such as "2 (SCI)"."""
    name = hdu_name(index, item)
    return f"{index} ({name})" if name and name != "PRIMARY" else str(index)


def is_image(item: object) -> bool:
    """Return whether an HDU holds a 2-D image."""
    return isinstance(item, _IMAGE_HDUS) and len(item.shape) == 2 and all(item.shape)


def describe(item: object) -> str:
    """Return what an HDU is, for a message that says why it is not used."""
    if not isinstance(item, _IMAGE_HDUS):
        return "a table" if isinstance(item, fits.BinTableHDU | fits.TableHDU) else "not an image"
    if not all(item.shape) or not item.shape:
        return "no data"
    sides = "x".join(str(n) for n in reversed(item.shape))
    return f"a {len(item.shape)}-D array of {sides}"


def checked_shape(
    where: str, image: object, file_size: int, packed: bool, min_side: int = MIN_SIDE
) -> tuple[int, int]:
    """Return (rows, columns) after refusing sizes that the file cannot hold; allocates nothing."""
    bitpix = image.header.get("BITPIX")
    if bitpix not in _BITPIX_BYTES:
        raise InputError(f"{where}: BITPIX {bitpix!r} is not a FITS pixel type")
    rows, columns = (int(n) for n in image.shape)
    size = f"{columns} x {rows} pixels"
    if min(rows, columns) < min_side:
        raise InputError(f"{where}: {size}; at least {min_side} a side are needed")
    if rows * columns > MAX_PIXELS:
        raise InputError(f"{where}: header promises {size}, more than the {MAX_PIXELS} supported")
    ratio = _GZIP_RATIO if packed else 1
    if isinstance(image, fits.CompImageHDU):
        promised = rows * columns / _TILE_RATIO
        if math.prod(image.tile_shape) > MAX_PIXELS:
            raise InputError(f"{where}: header promises tiles of {image.tile_shape} pixels")
    else:
        promised = rows * columns * _BITPIX_BYTES[bitpix]
    if promised > file_size * ratio:
        raise TruncatedFile(f"{where}: truncated: header promises {size}, the file has {file_size} bytes")
    info = image.fileinfo()
    # Padding to 2880 bytes may be missing without harm; a tile-compressed table has its own size.
    end = info["datLoc"] + (info["datSpan"] - 2879 if isinstance(image, fits.CompImageHDU) else promised)
    if not packed and end > file_size:
        raise TruncatedFile(
            f"{where}: truncated: header promises {size} up to byte {end}, the file has {file_size}"
        )
    return rows, columns
