"""Open a FITS file that may be anything: read-only, without allocating, with errors a person can act on."""

from __future__ import annotations

import gzip
import io
import math
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astropy.io import fits

# Raised on damaged tiles, derived from Exception alone and without a public name (astropy 6.1 to 8.0).
from astropy.io.fits.hdu.compressed._compression import CfitsioException

from ks4diff.io.fits_header import one_line
from ks4diff.products.errors import InputError

MAX_PIXELS = 2**29  # 2 GiB as float32, three times a whole KMTNet exposure
# What astropy raises on broken files; TypeError, KeyError and friends stand for bad header values.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    zlib.error,
    fits.VerifyError,
    CfitsioException,
)
_OTHER_FORMATS = {
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x9d": "compress-ed (.Z)",
}


class _CheckedHeaders:
    """Refuses a header with more than the standard's 999 axes: astropy would look for each of them."""

    def read(self, size: int | None = -1) -> bytes:
        """Return what the file's own read returns."""
        block = super().read(size)
        if block.startswith((b"SIMPLE  =", b"XTENSION=")):
            axes = re.search(rb"NAXIS   = *(\d{4,})", block)
            if axes:
                raise OSError(f"NAXIS = {axes[1][:20].decode()}: not a FITS header")
        return block


class _Plain(_CheckedHeaders, io.BufferedReader):
    """A file read as it is."""


class _Gzip(_CheckedHeaders, gzip.GzipFile):
    """A gzip file, unpacked while it is read."""


@contextmanager
def failing_as_input_error(prefix: str) -> Iterator[None]:
    """Turn what astropy raises on a broken file into an InputError, one line that starts with ``prefix``."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{prefix}: not enough memory") from None
    except READ_ERRORS as error:
        raise InputError(f"{prefix}: {one_line(error) or type(error).__name__}") from error


@contextmanager
def open_fits(path: Path) -> Iterator[tuple[fits.HDUList, gzip.GzipFile | None]]:
    """Yield the HDU list of a file, opened lazily, and its gzip stream when it is compressed.

    Raises
    ------
    InputError
        When the path is no file that can be read, or holds no FITS; one line naming it.

    """
    _check_path(path)
    try:
        stream = _Plain(io.FileIO(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    with stream:
        with failing_as_input_error(f"{path}: broken FITS file"):
            start = stream.read(2880)
        stream.seek(0)
        if not start.startswith(b"\x1f\x8b"):
            with _hdus(path, stream, start) as hdus:
                yield hdus, None
            return
        with _Gzip(fileobj=stream) as packed:
            with failing_as_input_error(f"{path}: broken gzip file"):
                start = packed.read(2880)
                packed.seek(0)
            with _hdus(path, packed, start) as hdus:
                yield hdus, packed


def read_to_end(packed: gzip.GzipFile) -> None:
    """Read the rest of a gzip stream, so that its checksum is compared.

    Raises
    ------
    OSError, EOFError, zlib.error
        When the stream is damaged or cut.

    """
    while packed.read(2**20):
        pass


def _hdus(path: Path, source: object, start: bytes) -> fits.HDUList:
    _check_start(path, start)
    with failing_as_input_error(f"{path}: broken FITS file"):
        # uint=False: unsigned integers come as floats with BLANK applied like any other image.
        return fits.open(source, mode="readonly", memmap=False, uint=False, lazy_load_hdus=True)


def _check_path(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: cannot be opened ({one_line(error)})") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder, not a FITS file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file")


def _check_start(path: Path, start: bytes) -> None:
    """Raise InputError unless the first (unpacked) bytes of a file are those of a FITS image or table."""
    if not start:
        raise InputError(f"{path}: is empty (0 bytes)")
    for magic, words in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{path}: is {words}; unpack it first")
    if not start.startswith(b"SIMPLE  ="):
        raise InputError(f"{path}: is not a FITS file (starts with {start[:16]!r}, not 'SIMPLE  =')")
    # astropy fails without naming a reason when the size in bytes overflows 64 bits.
    sides = [int(side) for side in re.findall(rb"NAXIS\d+ *= *(\d+)", start)]
    if math.prod(sides) > MAX_PIXELS and all(sides):
        size = " x ".join(str(side) for side in sides)
        raise InputError(
            f"{path}, HDU 0: header promises {size} pixels, more than the {MAX_PIXELS} supported"
        )
