"""Reference tiles: what the store knows of one, and the part of it under a chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel


@dataclass(frozen=True, kw_only=True)
class TileRecord:
    """One stack in the template store, as measured when it was added; pixels stay in its file.

    ``corners`` are ICRS degrees [4, 2] of the outer pixel corners, in order; ``coverage`` float32 [rows,
    columns] is the fraction of pixels with data in each ``cell_pix`` square cell; ``issues`` name known
    defects, of which a store's user decides.
    """

    id: str  # unique in the store
    file: str
    hdu: str
    sha256: str
    band: str
    field: str | None  # such as 2149.115-50
    shape: tuple[int, int]
    zeropoint: float  # AB magnitude of one count
    exptime: float | None
    corners: np.ndarray
    cell_pix: int
    coverage: np.ndarray
    noise: NoiseModel
    fwhm_pix: float | None
    saturation: float | None  # counts
    n_stars: int
    issues: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TilePart:
    """A rectangle of a tile, or of a mosaic of tiles, on one pixel grid."""

    image: MaskedImage
    wcs: WCS
    zeropoint: float
    noise: NoiseModel
    stars: StarList
    saturation: float | None
    tile_ids: tuple[str, ...]
