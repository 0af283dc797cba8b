"""A 2-D image of any instrument from a FITS file, or one line that says why not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_hdus import checked_shape, describe, hdu_label, hdu_name, is_image, walk_hdus
from ks4diff.io.fits_header import header_facts, quiet_astropy
from ks4diff.io.fits_open import failing_as_input_error, open_fits, read_to_end
from ks4diff.io.fits_wcs import celestial_wcs
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError, InputError

_BLOCK_PIXELS = 2**24  # read this many at a time, so that float64 temporaries stay at 128 MiB


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
        where = f"{path}, HDU {hdu_label(chosen, image)}"
        with failing_as_input_error(f"{where}: cannot be read"):
            shape = checked_shape(where, image, path.stat().st_size, packed is not None)
            data = _read_pixels(image, shape)
            if packed is not None:
                read_to_end(packed)
        _check_content(where, data)
        headers = [image.header] if chosen == 0 else [image.header, hdus[0].header]
        facts = header_facts(headers) | overrides
        wcs = celestial_wcs(image.header, shape, hdus)
        return RawChip(data=data, file=str(path), hdu=hdu_label(chosen, image), wcs=wcs, **facts)


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
    for index, item in walk_hdus(path, hdus):
        if is_image(item):
            return index
        seen.append(f"{hdu_label(index, item)}: {describe(item)}")
    more = f"; and {len(seen) - 6} more" if len(seen) > 6 else ""
    raise InputError(f"{path}: no 2-D image HDU ({'; '.join(seen[:6])}{more})")


def _find_named(path: Path, hdus: fits.HDUList, wanted: int | str) -> int:
    text = str(wanted).strip()
    labels = []
    for index, item in walk_hdus(path, hdus):
        if text == str(index) or text.upper() == hdu_name(index, item).upper():
            if is_image(item):
                return index
            raise InputError(f"{path}, HDU {hdu_label(index, item)}: not a 2-D image but {describe(item)}")
        labels.append(hdu_label(index, item))
    more = ", ..." if len(labels) > 8 else ""
    raise InputError(f"{path}: no HDU {text!r} (it has {', '.join(labels[:8])}{more})")


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
