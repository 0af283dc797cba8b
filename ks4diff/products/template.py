"""Reference tiles: what the store knows of one, and the part of it under a chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf


class PixelBox(NamedTuple):
    """Columns [x0, x1) and rows [y0, y1) of a tile's grid; it may reach beyond the tile."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A patch of sky: ``points`` spread evenly inside it and ``border`` along its edge.

    Both float64 [n, 2], ICRS degrees; each point stands for the same share of the patch.
    """

    points: np.ndarray
    border: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TileRecord:
    """One stack in the template store, as measured when it was added; pixels stay in its file.

    ``corners`` are ICRS degrees [4, 2] of the outer pixel corners, in order; ``issues`` name known defects,
    of which a store's user decides. ``coverage``, ``sigma`` and ``background`` float32 [rows, columns] have
    one value per square cell of ``cell_pix`` pixels: the fraction of pixels with data, the noise of one pixel
    and the sky left in the file, counts. ``flux_factor``, on a grid of its own over the whole tile, is what
    the file's counts are multiplied by so that ``zeropoint`` holds everywhere.
    """

    id: str  # unique in the store
    file: str
    hdu: str
    sha256: str
    band: str
    field: str | None  # such as 2149.115-50
    shape: tuple[int, int]
    wcs: WCS
    zeropoint: float  # AB magnitude of one count
    exptime: float | None
    mjd: float | None
    corners: np.ndarray
    cell_pix: int
    coverage: np.ndarray
    sigma: np.ndarray
    background: np.ndarray
    flux_factor: np.ndarray | None
    noise: NoiseModel
    psf: Psf | None  # the median one of those measured over the tile
    fwhm_pix: float | None
    fwhm_map: np.ndarray  # float32 [4, 4] over the tile, NaN where not measured: stacks have steps in it
    saturation: float | None  # counts
    n_stars: int
    issues: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TilePart:
    """A rectangle of a tile, or of a mosaic of tiles, on one pixel grid.

    ``image`` has no background; its variance is that of the local sky alone. ``filled`` is the fraction of
    pixels with data that were resampled from other tiles than the first. ``gain`` electrons per count as the
    Poisson noise of one pixel shows it, None where the stack does not tell.
    """

    image: MaskedImage
    wcs: WCS
    zeropoint: float
    noise: NoiseModel
    stars: StarList
    saturation: float | None
    tile_ids: tuple[str, ...]
    band: str
    fwhm_pix: float | None
    filled: float = 0.0
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class TileCover:
    """How much of a footprint one tile covers: fractions, alone and beyond the tiles named before it."""

    id: str
    band: str
    field: str | None
    issues: tuple[str, ...]
    fraction: float
    gained: float
