"""Positions on the sphere: unit vectors, HEALPix cells (nested) and the names made of them."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.time import Time
from astropy_healpix import lonlat_to_healpix, neighbours

FINE_ORDER = 16  # of detections and objects: 3.2" a side, so the widest gate reaches no second ring
COARSE_ORDER = 7  # of chips: 27', a chip of KMTNet touches about ten
NAME_ORDER = 19  # 0.4" a side: 12 * 4^19 cells, which nine letters (26^9) can number
ARCSEC = np.pi / 180 / 3600
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NAME_LETTERS = 9


def cells_of(ra: np.ndarray, dec: np.ndarray, order: int = FINE_ORDER) -> np.ndarray:
    """Return the nested HEALPix cell of positions, ICRS degrees, int64; -1 where one is not finite."""
    ra, dec = np.atleast_1d(np.asarray(ra, np.float64)), np.atleast_1d(np.asarray(dec, np.float64))
    known = np.isfinite(ra) & np.isfinite(dec)
    cells = np.full(ra.shape, -1, dtype=np.int64)
    if known.any():
        cells[known] = lonlat_to_healpix(
            ra[known] * u.deg, dec[known] * u.deg, nside=2**order, order="nested"
        )
    return cells


def with_neighbours(cells: np.ndarray, order: int = FINE_ORDER) -> list[int]:
    """Return the cells and all that touch them, sorted, each once; -1 is left out."""
    cells = np.unique(cells[cells >= 0])
    if len(cells) == 0:
        return []
    around = neighbours(cells, nside=2**order, order="nested")  # -1 where two faces leave no neighbour
    every = np.unique(np.concatenate([cells, np.ravel(around)]))
    return every[every >= 0].tolist()


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return float64 [n, 3] unit vectors of positions in degrees."""
    a, d = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def positions_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (ra in [0, 360), dec) in degrees of vectors [..., 3] of any length but 0."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    return np.where(ra == 360.0, 0.0, ra), np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation_arcsec(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the angle between unit vectors [..., 3]; exact for small angles, where the arc cosine is not."""
    chord = np.sqrt(((first - second) ** 2).sum(axis=-1))
    return 2 * np.arcsin(np.minimum(chord / 2, 1.0)) / ARCSEC


def object_names(ra: np.ndarray, dec: np.ndarray, mjd: float) -> list[str]:
    """Return KS4-yy and nine letters each: the year of the first alert and the 0.4" cell of its position.

    A name depends on that one detection alone, so neither the order of other exposures nor who else writes
    changes it.
    """
    year = Time(mjd, format="mjd", scale="utc").datetime.year % 100
    return [f"KS4-{year:02d}{_letters(cell)}" for cell in cells_of(ra, dec, NAME_ORDER).tolist()]


def next_name(name: str) -> str:
    """Return the name of the next cell, for an object whose own name another has."""
    number = 0
    for letter in name[-_NAME_LETTERS:]:
        number = 26 * number + _LETTERS.index(letter)
    return name[:-_NAME_LETTERS] + _letters((number + 1) % 26**_NAME_LETTERS)


def _letters(number: int) -> str:
    text = ""
    for _ in range(_NAME_LETTERS):
        number, digit = divmod(number, 26)
        text = _LETTERS[digit] + text
    return text
