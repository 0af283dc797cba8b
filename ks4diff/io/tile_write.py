"""Write a stack as a FITS file band by band, and keep exposures on disk while they are combined."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path

_FITS_BLOCK = 2880


class Scratch:
    """Float32 images of one shape in files of a temporary folder: a stack of chips is larger than memory."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self._folder = folder
        self._shape = shape
        self._n = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return self._n

    def append(self, data: np.ndarray) -> None:
        """Add an image."""
        data.astype(np.float32, copy=False).tofile(self._folder / f"{self._n}.f32")
        self._n += 1

    def bands(self, rows: int) -> Iterator[np.ndarray]:
        """Yield float32 [n, rows, x] of all images, from the first row on."""
        for top in range(0, self._shape[0], rows):
            n = min(rows, self._shape[0] - top)
            count, offset = n * self._shape[1], top * self._shape[1] * 4
            files = (self._folder / f"{k}.f32" for k in range(self._n))
            yield np.stack([np.fromfile(f, np.float32, count, offset=offset).reshape(n, -1) for f in files])


@contextmanager
def scratch(beside: Path, shape: tuple[int, int]) -> Iterator[Scratch]:
    """Yield scratch space on the disk where ``beside`` will lie; it is removed at the end."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder:
        yield Scratch(Path(folder), shape)


def write_stack(
    path: Path,
    bands: Iterable[np.ndarray],
    shape: tuple[int, int],
    wcs: WCS,
    cards: Sequence[tuple[str, object, str]],
    history: Sequence[str],
) -> None:
    """Write float32 bands of rows as one FITS image, atomically.

    Raises
    ------
    OSError
        When the folder cannot be written.
    ValueError
        When the bands do not make up ``shape``.

    """
    header = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2)])
    header["NAXIS1"], header["NAXIS2"] = shape[1], shape[0]
    header.update(wcs.to_header(relax=True))
    for name, value, comment in cards:
        if value is not None:
            header[name] = (value, comment)
    for line in history:
        header.add_history(line.encode("ascii", errors="replace").decode())
    rows = 0
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(header.tostring(padding=True).encode("ascii"))
        for band in bands:
            rows += len(band)
            stream.write(np.ascontiguousarray(band, dtype=">f4").tobytes())
        if rows != shape[0]:
            raise ValueError(f"{rows} rows of {shape[0]} were given")
        stream.write(bytes(-stream.tell() % _FITS_BLOCK))
