"""Copy the amplifiers of a file into one chip: threads over plain files, astropy for compressed ones."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_header import card
from ks4diff.io.kmtnet_sections import Piece

Fill = Callable[[memoryview, int], int]  # fills a buffer from an offset of the file, returns the bytes read

_BLOCK_BYTES = 2**20  # read at a time: stays in the processor's cache between reading and converting
_SECTION_PIXELS = 2**22  # through astropy, whose temporaries are float64
_NATIVE = {8: ">u1", 16: ">i2", -32: ">f4"}  # float32 holds their values exactly


def read_pieces(
    path: Path,
    hdus: fits.HDUList,
    pieces: Sequence[Piece],
    data: np.ndarray,
    threads: int,
    packed: gzip.GzipFile | None = None,
) -> list[np.ndarray | None]:
    """Copy every piece to its place in ``data`` (float32) and return their overscans (or None).

    ``packed`` is the stream of a gzip file; it is read once, from its first piece to its last.

    Raises
    ------
    OSError, ValueError and what astropy raises
        When the file ends early or a tile is damaged.

    """
    wanted = [piece for piece in pieces if piece.real]
    if any(not _is_plain(hdus[piece.hdu]) for piece in wanted):
        found = {id(piece): _read_section(hdus[piece.hdu], piece, data) for piece in wanted}
        return [found.get(id(piece)) for piece in pieces]
    sources = {piece.hdu: hdus[piece.hdu] for piece in wanted}
    plans = {index: _Plain(item) for index, item in sources.items()}
    if packed is not None:
        fill = partial(_fill_from_stream, packed)
        ordered = sorted(wanted, key=lambda piece: (piece.hdu, piece.rows, piece.columns))
        found = {id(piece): plans[piece.hdu].read(fill, piece, data) for piece in ordered}
        return [found.get(id(piece)) for piece in pieces]
    with path.open("rb") as stream, ThreadPoolExecutor(max(1, threads)) as pool:
        fill = partial(_fill_from_file, stream.fileno())
        jobs = {id(piece): pool.submit(plans[piece.hdu].read, fill, piece, data) for piece in wanted}
        return [jobs[id(piece)].result() if id(piece) in jobs else None for piece in pieces]


def sample_columns(item: object, shape: tuple[int, int], rows: int = 64) -> np.ndarray:
    """Return the medians of all columns over some rows spread over an image."""
    wanted = np.unique(np.linspace(0, shape[0] - 1, rows).astype(int))
    lines = [np.asarray(item.section[int(row) : int(row) + 1, 0 : shape[1]], np.float32) for row in wanted]
    return np.median(np.concatenate(lines), axis=0)


def _is_plain(item: object) -> bool:
    """Return whether an HDU's pixels lie in the (unpacked) file as they are: no tiles, no BLANK."""
    if isinstance(item, fits.CompImageHDU):
        return False
    return item.header.get("BITPIX") in _NATIVE and card(item.header, "BLANK") is None


class _Plain:
    """The pixels of one uncompressed HDU, read in blocks of rows; a cut file is an error."""

    def __init__(self, item: object) -> None:
        self.dtype = np.dtype(_NATIVE[item.header["BITPIX"]])
        self.rows, self.columns = item.shape
        self.start = item.fileinfo()["datLoc"]
        self.zero = _scaling(item.header, "BZERO", 0.0)
        self.scale = _scaling(item.header, "BSCALE", 1.0)

    def read(self, fill: Fill, piece: Piece, data: np.ndarray) -> np.ndarray | None:
        target = _target(piece, data)
        overscan = _overscan(piece)
        row_bytes = self.columns * self.dtype.itemsize
        step = max(1, _BLOCK_BYTES // row_bytes)
        buffer = memoryview(bytearray(step * row_bytes))
        first, last = piece.rows
        for row in range(first, last, step):
            count = min(step, last - row)
            view = buffer[: count * row_bytes]
            if fill(view, self.start + row * row_bytes) != len(view):
                raise OSError(f"file ends before row {row + count} of {self.rows}")
            block = np.frombuffer(view, self.dtype).reshape(count, self.columns)
            here = slice(row - first, row - first + count)
            self._convert(block[:, slice(*piece.columns)], target[here])
            if overscan is not None:
                self._convert(block[:, slice(*piece.overscan)], overscan[here])
        return _turned(piece, overscan)

    def _convert(self, source: np.ndarray, target: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            if self.scale != 1:
                np.multiply(source, np.float32(self.scale), out=target, dtype=np.float32)
                target += np.float32(self.zero)
            elif self.zero:
                np.add(source, np.float32(self.zero), out=target, dtype=np.float32)
            else:
                np.copyto(target, source)


def _read_section(item: object, piece: Piece, data: np.ndarray) -> np.ndarray | None:
    """Copy one piece through astropy, in bands of rows; scaling and BLANK are astropy's."""
    target = _target(piece, data)
    overscan = _overscan(piece)
    columns = item.shape[1]
    step = max(1, _SECTION_PIXELS // columns)
    first, last = piece.rows
    for row in range(first, last, step):
        stop = min(row + step, last)
        band = item.section[row:stop, 0:columns]
        if band.shape != (stop - row, columns):
            raise ValueError(f"rows {row} to {stop} have shape {band.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            target[row - first : stop - first] = band[:, slice(*piece.columns)]
            if overscan is not None:
                overscan[row - first : stop - first] = band[:, slice(*piece.overscan)]
    return _turned(piece, overscan)


def _fill_from_file(descriptor: int, view: memoryview, start: int) -> int:
    """Read from an offset without moving the file's position, so that threads do not disturb each other."""
    return os.preadv(descriptor, [view], start)


def _fill_from_stream(packed: gzip.GzipFile, view: memoryview, start: int) -> int:
    packed.seek(start)
    filled = 0
    while filled < len(view) and (count := packed.readinto(view[filled:])):
        filled += count
    return filled


def _scaling(header: fits.Header, name: str, default: float) -> float:
    value = card(header, name)
    return default if value is None else float(value)


def _target(piece: Piece, data: np.ndarray) -> np.ndarray:
    """Return the piece's part of the chip, turned so that the file's order of pixels fits it."""
    part = data[piece.y0 : piece.y1, piece.x0 : piece.x1]
    return part[::-1, ::-1] if piece.turn else part


def _overscan(piece: Piece) -> np.ndarray | None:
    if piece.overscan is None:
        return None
    return np.empty((piece.shape[0], piece.overscan[1] - piece.overscan[0]), np.float32)


def _turned(piece: Piece, overscan: np.ndarray | None) -> np.ndarray | None:
    """Return the overscan with its rows beside the chip's rows."""
    return overscan[::-1, ::-1].copy() if piece.turn and overscan is not None else overscan
