"""Where a chip looked and how deep, and what that says of a position."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.coverage import UNCOVERED, UNKNOWN, ChipCoverage
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.photometry import magnitude
from ks4diff.stages.sky_cells import COARSE_ORDER, cells_of, positions_of, unit_vectors, with_neighbours

CELL_PIX = (
    128  # 51" on KMTNet: 10 kB a chip; halves of masked stars do not show, forced photometry's flags do
)
_SAMPLES = 32  # a side, for the polynomial and the cells touched
_DEGREE = 4  # KMTNet's distortion is of third degree: what is left is below 0.1 px
_GOOD_FRACTION = 0.5  # of a cell's pixels
_STEP = 4  # in both directions: a thousand of a cell's pixels tell its median as well as all


def coverage_of(subtracted: SubtractedChip) -> ChipCoverage | None:
    """Return where a subtracted chip, its pixels still there, can find something; None without a WCS."""
    wcs, difference = subtracted.chip.raw.wcs, subtracted.difference
    if wcs is None:
        return None
    shape = difference.flags.shape
    limit = np.full(cell_grid(shape, CELL_PIX), UNCOVERED, dtype=np.int16)
    for j, i, rows, columns in Cells(values=limit, shape=shape).boxes():
        good = difference.flags[rows, columns][::_STEP, ::_STEP] == 0
        if good.mean() > _GOOD_FRACTION:
            flux = 5 * float(np.median(difference.flux_err[rows, columns][::_STEP, ::_STEP][good]))
            mag = magnitude(flux, subtracted.chip.raw.zeropoint)
            limit[j, i] = UNKNOWN if mag is None else np.clip(round(mag * 1000), -32000, 32000)
    return footprint_coverage(wcs.celestial, shape, limit)


def footprint_coverage(wcs: WCS, shape: tuple[int, int], limit: np.ndarray) -> ChipCoverage | None:
    """Return the coverage of an image of ``shape`` with the given limits; None where the WCS fails."""
    rows, columns = shape
    across = np.linspace(-0.5, 0.5, _SAMPLES)
    x, y = (a.ravel() for a in np.meshgrid((0.5 + across) * columns - 0.5, (0.5 + across) * rows - 0.5))
    ra, dec = wcs.all_pix2world(x, y, 0)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        return None
    middle_ra, middle_dec = (float(v) for v in positions_of(unit_vectors(ra, dec).mean(axis=0)))
    plane = _plane(ra, dec, middle_ra, middle_dec)
    terms = _terms(*plane)
    to_pixel, *_ = np.linalg.lstsq(terms.T, np.stack([x, y], axis=1), rcond=None)
    cells = with_neighbours(cells_of(ra, dec, COARSE_ORDER), COARSE_ORDER)
    return ChipCoverage(
        ra=middle_ra,
        dec=middle_dec,
        radius=float(np.hypot(*plane).max()),
        to_pixel=np.ascontiguousarray(to_pixel.T),
        shape=shape,
        limit=limit,
        cells=tuple(cells),
    )


def pixels_of(coverage: ChipCoverage, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (x, y) of positions to a tenth of a pixel; NaN of those not near the chip."""
    xi, eta = _plane(ra, dec, coverage.ra, coverage.dec)
    near = np.hypot(xi, eta) <= 1.01 * coverage.radius  # farther out the polynomial says nothing
    x, y = coverage.to_pixel @ _terms(np.where(near, xi, np.nan), np.where(near, eta, np.nan))
    return x, y


def limit_at(coverage: ChipCoverage, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (covered bool, 5-sigma AB limit or NaN) [n] at positions in degrees."""
    x, y = pixels_of(coverage, np.asarray(ra, np.float64), np.asarray(dec, np.float64))
    rows, columns = coverage.shape
    inside = (x >= -0.5) & (y >= -0.5) & (x < columns - 0.5) & (y < rows - 0.5)
    cells = Cells(values=coverage.limit, shape=coverage.shape)
    j, i = cells.cell_of(np.where(inside, x, 0.0), np.where(inside, y, 0.0))
    value = coverage.limit[j, i]
    covered = inside & (value != UNCOVERED)
    return covered, np.where(covered & (value != UNKNOWN), value / 1000.0, np.nan)


def _plane(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Return gnomonic (xi, eta) in degrees about a position; NaN where it is more than 80 degrees away."""
    a, d, d0 = np.radians(np.asarray(ra) - ra0), np.radians(dec), np.radians(dec0)
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    cosine = np.where(cosine > 0.17, cosine, np.nan)
    xi = np.cos(d) * np.sin(a) / cosine
    eta = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cosine
    return np.degrees(xi), np.degrees(eta)


def _terms(xi: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Return the 15 monomials of degree 4 at most, [15, n]."""
    powers = [(i, n - i) for n in range(_DEGREE + 1) for i in range(n + 1)]
    return np.stack([xi**i * eta**j for i, j in powers])
