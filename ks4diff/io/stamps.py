"""Cutouts as gzipped FITS, the form that readers of ZTF alerts expect."""

from __future__ import annotations

import gzip
import io
import zlib
from functools import lru_cache

import numpy as np
from astropy.io import fits

from ks4diff.products.errors import InputError

_BLOCK = 2880  # bytes: FITS pads header and data to whole blocks


def encode_stamp(stamp: np.ndarray) -> bytes:
    """Return a stamp [y, x] as one gzipped FITS image of big-endian float32; NaN stays NaN.

    Equal stamps give equal bytes: the gzip header carries no time. Level 1, because noise does
    not compress further, and a fixed header, because astropy takes four times as long to make it.
    """
    height, width = stamp.shape
    data = stamp.astype(">f4").tobytes()
    padding = b"\0" * (-len(data) % _BLOCK)
    return gzip.compress(_header(height, width) + data + padding, compresslevel=1, mtime=0)


def decode_stamp(data: bytes) -> np.ndarray:
    """Return the first image of a FITS file, gzipped or not, as native float32 [y, x].

    Raises
    ------
    InputError
        When the bytes are not FITS or hold no image.

    """
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with fits.open(io.BytesIO(raw), memmap=False) as hdus:
            image = next((hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None), None)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        raise InputError(f"stamp: not a FITS image ({error})") from error
    if image is None:
        raise InputError("stamp: FITS without an image")
    return np.asarray(image, dtype=np.float32)


@lru_cache(maxsize=8)
def _header(height: int, width: int) -> bytes:
    cards = (
        f"{'SIMPLE':<8}= {'T':>20} / FITS",
        f"{'BITPIX':<8}= {-32:>20} / 32-bit float, NaN where there is no good pixel",
        f"{'NAXIS':<8}= {2:>20}",
        f"{'NAXIS1':<8}= {width:>20}",
        f"{'NAXIS2':<8}= {height:>20}",
        "END",
    )
    return "".join(f"{card:<80}" for card in cards).ljust(_BLOCK).encode("ascii")
