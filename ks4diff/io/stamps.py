"""Cutouts as gzipped FITS, the form that readers of ZTF alerts expect."""

from __future__ import annotations

import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from astropy.io import fits

from ks4diff.products.alert import StampGrid
from ks4diff.products.errors import InputError

_BLOCK = 2880  # bytes: FITS pads header and data to whole blocks
_LEVELS = 16.0  # steps per sigma at least: rounding adds at most 1 / (12 * 16**2) = 0.03 % of noise variance


def encode_stamp(stamp: np.ndarray, *, cards: str = "", noise: float | None = None) -> bytes:
    """Return a stamp [y, x] as one gzipped FITS image of big-endian float32; NaN stays NaN.

    Equal stamps give equal bytes: the gzip header carries no time. Level 1, because noise does
    not compress further, and a fixed header, because astropy takes four times as long to make it.

    Parameters
    ----------
    stamp
        Float32 [y, x].
    cards
        Further header cards, of 80 characters each: those of `sky_cards`.
    noise
        Standard deviation of a pixel. With it, pixels are rounded to the largest power of two that is
        at most a sixteenth of it, which more than halves the bytes; the step is in the header as QSTEP.

    """
    height, width = stamp.shape
    if noise is not None and noise > 0 and math.isfinite(noise):
        step = 2.0 ** math.floor(math.log2(noise / _LEVELS))
        # float64, where no bright pixel over a small step overflows; + 0.0 turns minus zeros into zeros
        stamp = np.rint(stamp / np.float64(step)) * step + 0.0
        cards += _real("SIGMA", noise, "noise of a pixel") + _real("QSTEP", step, "pixels are its multiples")
    data = stamp.astype(">f4").tobytes()
    header = (_opening(height, width) + cards + f"{'END':<80}").encode("ascii")
    header += b" " * (-len(header) % _BLOCK)
    return gzip.compress(header + data + b"\0" * (-len(data) % _BLOCK), compresslevel=1, mtime=0)


def sky_cards(shape: tuple[int, int], grid: StampGrid | None, zeropoint: float | None) -> str:
    """Return the header cards of a stamp's WCS, its middle pixel as reference, and of its zero point."""
    text = f"{'BUNIT':<8}= {chr(39) + 'count' + chr(39):<20} / of the science image".ljust(80)
    if zeropoint is not None:
        text += _real("MAGZP", zeropoint, "AB magnitude of one count")
    if grid is None:
        return text
    for axis, kind, value in ((1, "RA---TAN", grid.ra), (2, "DEC--TAN", grid.dec)):
        text += f"CTYPE{axis}  = '{kind}'".ljust(80) + f"CUNIT{axis}  = 'deg     '".ljust(80)
        text += _real(f"CRPIX{axis}", shape[2 - axis] // 2 + 1.0, "the middle pixel")
        text += _real(f"CRVAL{axis}", value, "[deg] where it is")
        text += "".join(_real(f"CD{axis}_{i}", grid.cd[axis - 1][i - 1], "[deg/pixel]") for i in (1, 2))
    return text + f"{'RADESYS':<8}= {chr(39) + 'ICRS    ' + chr(39)}".ljust(80)


def decode_stamp(data: bytes) -> np.ndarray:
    """Return the first image of a FITS file, gzipped or not, as native float32 [y, x].

    Raises
    ------
    InputError
        When the bytes are not FITS or hold no image.

    """
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with _silent(), fits.open(io.BytesIO(raw), memmap=False) as hdus:
            image = next((hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None), None)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        raise InputError(f"stamp: not a FITS image ({error})") from error
    if image is None:
        raise InputError("stamp: FITS without an image")
    return np.asarray(image, dtype=np.float32)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep astropy from judging other surveys' headers: TURBO's SIMPLE card is one column off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        yield


def _real(name: str, value: float, comment: str) -> str:
    return f"{name:<8}= {value:>20.12E} / {comment}".ljust(80)


@lru_cache(maxsize=8)
def _opening(height: int, width: int) -> str:
    cards = (
        f"{'SIMPLE':<8}= {'T':>20} / FITS",
        f"{'BITPIX':<8}= {-32:>20} / 32-bit float, NaN where there is no good pixel",
        f"{'NAXIS':<8}= {2:>20}",
        f"{'NAXIS1':<8}= {width:>20}",
        f"{'NAXIS2':<8}= {height:>20}",
    )
    return "".join(f"{card:<80}" for card in cards)
