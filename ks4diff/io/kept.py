"""Kept differences on disk: FITS compressed by Rice, read in pieces, removed when their time is over."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path
from ks4diff.io.fits_header import one_line, quiet_astropy
from ks4diff.products.errors import InputError
from ks4diff.products.kept import KeptPart

log = logging.getLogger(__name__)

KEPT = "kept.fits"
_TILE = (64, 256)  # compressed together: four of them hold any 25 x 25 px piece, at 0.6 ms
_DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, fits.VerifyError)


def write_kept(
    path: Path,
    planes: Iterable[tuple[str, np.ndarray]],
    *,
    wcs: WCS | None,
    psf: np.ndarray,
    cards: dict[str, tuple[str | float | None, str]],
) -> None:
    """Write a chip's planes, each compressed before the next is made; ``path`` is replaced whole."""
    with quiet_astropy(str(path)), atomic_path(path) as temporary:
        header = fits.Header() if wcs is None else wcs.to_header(relax=True)
        for name, (value, comment) in cards.items():
            header[name] = (value, comment)
        fits.PrimaryHDU(header=header).writeto(temporary, overwrite=True)
        for name, plane in planes:
            tile = tuple(min(size, whole) for size, whole in zip(_TILE, plane.shape, strict=True))
            with fits.open(temporary, mode="append") as hdus:
                hdus.append(fits.CompImageHDU(plane, name=name, compression_type="RICE_1", tile_shape=tile))
        with fits.open(temporary, mode="append") as hdus:
            hdus.append(fits.ImageHDU(psf.astype(np.float32), name="PSF"))


class KeptFile:
    """An open kept difference."""

    def __init__(self, hdus: fits.HDUList) -> None:
        self._hdus = hdus
        self.cards = hdus[0].header
        self.wcs = WCS(self.cards) if "CTYPE1" in self.cards else None
        self.shape: tuple[int, int] = hdus["MASK"].shape

    def part(self, x: float, y: float, reach: int) -> KeptPart | None:
        """Return the pixels within ``reach`` of a position, None when it is off the chip."""
        rows, columns = self.shape
        column, row = round(x), round(y)
        if not (0 <= column < columns and 0 <= row < rows):
            return None
        x0, y0 = max(column - reach, 0), max(row - reach, 0)
        box = slice(y0, min(row + reach + 1, rows)), slice(x0, min(column + reach + 1, columns))
        score, error, mask = (self._hdus[name].section[box] for name in ("SCORE", "ERROR", "MASK"))
        return KeptPart(
            score=score,
            error=error,
            mask=mask,
            x0=x0,
            y0=y0,
            typical=float(self.cards["FLUXERR"]),
            fwhm_pix=float(self.cards["FWHM"]),
        )


@contextmanager
def open_kept(path: Path) -> Iterator[KeptFile]:
    """Yield an open kept difference.

    Raises
    ------
    InputError
        When it cannot be read, at opening or later.

    """
    try:
        with quiet_astropy(str(path)), fits.open(path) as hdus:
            yield KeptFile(hdus)
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read as a kept difference ({one_line(error)})") from error


def prune_kept(out: Path, *, days: float, gigabytes: float) -> int:
    """Remove the kept differences under ``out`` that are older than ``days`` or beyond ``gigabytes``.

    The newest stay; returns how many went.
    """
    found = []
    for path in out.glob(f"*/*/*/{KEPT}"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue  # another process removed it
        found.append((state.st_mtime, state.st_size, path))
    now, room, removed = time.time(), gigabytes * 1e9, 0
    for made, size, path in sorted(found, key=lambda one: (-one[0], os.fspath(one[2]))):
        room -= size
        if room < 0 or now - made > days * 86400:
            path.unlink(missing_ok=True)
            removed += 1
    if removed:
        log.info("%s: %d kept differences removed", out, removed)
    return removed
