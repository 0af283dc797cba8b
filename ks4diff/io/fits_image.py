"""A 2-D image of any instrument from a FITS file, or one line that says why not."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_header import card, header_facts, quiet_astropy
from ks4diff.io.fits_open import MAX_PIXELS, failing_as_input_error, open_fits, read_to_end
from ks4diff.io.fits_wcs import celestial_wcs
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError, InputError

MIN_SIDE = 32  # pixels: below this there is no room for a PSF stamp and its surroundings

# Largest expansion a file of n bytes can honestly promise: deflate cannot exceed 1032:1; a tile of
# constant pixels in the FITS tile compressions stays below 8192 pixels per byte.
_GZIP_RATIO = 1032
_TILE_RATIO = 8192
_BLOCK_PIXELS = 2**24  # read this many at a time, so that float64 temporaries stay at 128 MiB
_MAX_HDUS = 1000  # some broken headers make astropy find the same HDU again without end
_BITPIX_BYTES = {8: 1, 16: 2, 32: 4, 64: 8, -32: 4, -64: 8}
_IMAGE_HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)


def read_chip(
    path: str | os.PathLike[str],
    *,
    hdu: int | str | None = None,
    gain: float | None = None,
    read_noise: float | None = None,
    saturation: float | None = None,
    zeropoint: float | None = None,
) -> RawChip:
    """Return the image of a FITS file with what its header says.

    The file is opened read-only. Plain, gzip and tile-compressed (.fz) files are read whatever their
    suffix says.

    Parameters
    ----------
    path
        The file.
    hdu
        Number (0-based) or EXTNAME of the image HDU; by default the first with a 2-D image.
    gain, read_noise, saturation, zeropoint
        Override the header: electrons per count, electrons, counts, AB magnitude of one count.

    Returns
    -------
    RawChip
        ``data`` float32 [y, x] with BZERO, BSCALE and BLANK applied; BLANK, NaN and infinite stay
        non-finite.

    Raises
    ------
    InputError
        When there is no usable image; one line naming the file, the HDU and the offending value.
    ConfigError
        When an override is not a positive number (a read noise may be 0).

    """
    path = Path(path)
    overrides = _checked_overrides(
        gain=gain, read_noise=read_noise, saturation=saturation, zeropoint=zeropoint
    )
    with quiet_astropy(str(path)), open_fits(path) as (hdus, packed):
        chosen = _find(path, hdus, hdu)
        image = hdus[chosen]
        where = f"{path}, HDU {_label(chosen, image)}"
        with failing_as_input_error(f"{where}: cannot be read"):
            shape = _checked_shape(where, image, path.stat().st_size, packed is not None)
            data = _read_pixels(image, shape)
            if packed is not None:
                read_to_end(packed)
        _check_content(where, data)
        headers = [image.header] if chosen == 0 else [image.header, hdus[0].header]
        facts = header_facts(headers) | overrides
        wcs = celestial_wcs(image.header, shape, hdus)
        return RawChip(data=data, file=str(path), hdu=_label(chosen, image), wcs=wcs, **facts)


def _checked_overrides(**values: float | None) -> dict[str, float]:
    given = {name: float(value) for name, value in values.items() if value is not None}
    for name, value in given.items():
        least = 0.0 if name == "read_noise" else math.ulp(0.0)
        if not (math.isfinite(value) and value >= least):
            raise ConfigError(f"{name.replace('_', '-')} must be a positive number, not {value:g}")
    return given


def _find(path: Path, hdus: fits.HDUList, wanted: int | str | None) -> int:
    """Return the index of the HDU to read."""
    if wanted is not None:
        return _find_named(path, hdus, wanted)
    seen = []
    for index, item in _walk(path, hdus):
        if _is_image(item):
            return index
        seen.append(f"{_label(index, item)}: {_describe(item)}")
    more = f"; and {len(seen) - 6} more" if len(seen) > 6 else ""
    raise InputError(f"{path}: no 2-D image HDU ({'; '.join(seen[:6])}{more})")


def _find_named(path: Path, hdus: fits.HDUList, wanted: int | str) -> int:
    text = str(wanted).strip()
    labels = []
    for index, item in _walk(path, hdus):
        if text == str(index) or text.upper() == _name(index, item).upper():
            if _is_image(item):
                return index
            raise InputError(f"{path}, HDU {_label(index, item)}: not a 2-D image but {_describe(item)}")
        labels.append(_label(index, item))
    more = ", ..." if len(labels) > 8 else ""
    raise InputError(f"{path}: no HDU {text!r} (it has {', '.join(labels[:8])}{more})")


def _walk(path: Path, hdus: fits.HDUList) -> Iterator[tuple[int, object]]:
    """Yield (index, HDU) one at a time, so that damage behind the wanted HDU does not matter."""
    for index in range(_MAX_HDUS):
        with failing_as_input_error(f"{path}, HDU {index}: header cannot be read"):
            try:
                item = hdus[index]
            except IndexError:
                return
        yield index, item
    raise InputError(f"{path}: broken FITS file: no such image in the first {_MAX_HDUS} HDUs")


def _name(index: int, item: object) -> str:
    # Not ``item.name``: astropy raises there when EXTNAME cannot be parsed.
    return str(card(item.header, "EXTNAME") or "").strip() or ("PRIMARY" if index == 0 else "")


def _label(index: int, item: object) -> str:
    name = _name(index, item)
    return f"{index} ({name})" if name and name != "PRIMARY" else str(index)


def _is_image(item: object) -> bool:
    return isinstance(item, _IMAGE_HDUS) and len(item.shape) == 2 and all(item.shape)


def _describe(item: object) -> str:
    if not isinstance(item, _IMAGE_HDUS):
        return "a table" if isinstance(item, fits.BinTableHDU | fits.TableHDU) else "not an image"
    if not all(item.shape) or not item.shape:
        return "no data"
    sides = "x".join(str(n) for n in reversed(item.shape))
    return f"a {len(item.shape)}-D array of {sides}"


def _checked_shape(where: str, image: object, file_size: int, packed: bool) -> tuple[int, int]:
    """Return (rows, columns) after refusing sizes that the file cannot hold; allocates nothing."""
    bitpix = image.header.get("BITPIX")
    if bitpix not in _BITPIX_BYTES:
        raise InputError(f"{where}: BITPIX {bitpix!r} is not a FITS pixel type")
    rows, columns = (int(n) for n in image.shape)
    size = f"{columns} x {rows} pixels"
    if min(rows, columns) < MIN_SIDE:
        raise InputError(f"{where}: {size}; at least {MIN_SIDE} a side are needed")
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
        raise InputError(f"{where}: truncated: header promises {size}, the file has {file_size} bytes")
    info = image.fileinfo()
    # Padding to 2880 bytes may be missing without harm; a tile-compressed table has its own size.
    end = info["datLoc"] + (info["datSpan"] - 2879 if isinstance(image, fits.CompImageHDU) else promised)
    if not packed and end > file_size:
        raise InputError(
            f"{where}: truncated: header promises {size} up to byte {end}, the file has {file_size}"
        )
    return rows, columns


def _read_pixels(image: object, shape: tuple[int, int]) -> np.ndarray:
    """Return native float32 [y, x], read in bands of rows."""
    rows, columns = shape
    data = np.empty(shape, dtype=np.float32)
    step = max(1, _BLOCK_PIXELS // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        band = image.section[start:stop, 0:columns]
        if band.shape != (stop - start, columns):
            raise ValueError(f"rows {start} to {stop} have shape {band.shape}")
        # Counts beyond 3e38 become infinite, and invalid bit patterns NaN; both are masked later.
        with np.errstate(over="ignore", invalid="ignore"):
            data[start:stop] = band
    return data


def _check_content(where: str, data: np.ndarray) -> None:
    low = np.fmin.reduce(data, axis=None, initial=np.inf, where=np.isfinite(data))
    high = np.fmax.reduce(data, axis=None, initial=-np.inf, where=np.isfinite(data))
    if low > high:
        raise InputError(f"{where}: none of the {data.size} pixels is finite")
    if low == high:
        raise InputError(f"{where}: constant image, every finite pixel is {low:g}")
