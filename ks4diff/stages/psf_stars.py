"""Choose the stars that show the PSF, and measure every star cell by cell with the PSF of its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.far_pixels import left_by
from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_stars import centred_stamps, cut, fit_cell, framed
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import PsfField

PATCH_PIX = 256.0  # of stars that are fitted with one PSF ...
UNLIKE = 0.01  # of the peak: ... unless theirs differs by more, at a border
FAINT_SIGMA = 0.3  # of the sky: a star's light beyond its small stamp may be this bright


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Stars that show the PSF: stamps float32 [k, n, n] over their flux, centred, neighbours subtracted.

    ``known`` bool as ``stamps``, False where a pixel was bad; ``row`` in the star list; ``sky`` its variance;
    ``region`` int, alike for stars that no border of a stack parts.
    """

    stamps: np.ndarray
    known: np.ndarray
    row: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    sky: np.ndarray
    region: np.ndarray
    gain: float

    def variance(self, psf: np.ndarray) -> np.ndarray:
        """Return float32 [k, ...]: the variance of stamps whose PSF is ``psf`` [...]."""
        shape = (-1,) + (1,) * psf.ndim
        flux = self.flux.astype(np.float32).reshape(shape)
        light = np.maximum(psf, 0).astype(np.float32) / np.float32(self.gain)
        return (self.sky.astype(np.float32).reshape(shape) / flux + light) / flux

    def without(self, strengths: np.ndarray, patterns: np.ndarray) -> Sample:
        """Return the sample less ``patterns`` [m, n, n], as strong as ``strengths`` [m, k] in each star."""
        pixels = self.stamps.shape[1] ** 2
        left = left_by(
            self.stamps.reshape(-1, pixels),
            strengths.astype(np.float32),
            patterns.reshape(-1, pixels).astype(np.float32),
        )
        return replace(self, stamps=left.reshape(self.stamps.shape))

    def only(self, keep: np.ndarray) -> Sample:
        """Return the sample of some stars."""
        return Sample(
            gain=self.gain,
            **{
                k: getattr(self, k)[keep]
                for k in ("stamps", "known", "row", "x", "y", "flux", "sky", "region")
            },
        )


def chosen_stars(stars: StarList, shape: tuple[int, int], per_cell: int) -> np.ndarray:
    """Return bool [n]: the brightest clean stars, spread: a quarter of ``per_cell`` in each 512 px square."""
    squares = Cells(values=np.zeros(cell_grid(shape, CELL_PIX / 2)), shape=shape)
    j, i = squares.cell_of(stars.x, stars.y)
    square = j * squares.values.shape[1] + i
    clean = np.flatnonzero(stars.clean)
    order = clean[np.lexsort((clean, square[clean]))]
    first = np.searchsorted(square[order], square[order])
    out = np.zeros(len(stars), dtype=bool)
    out[order[np.arange(len(order)) - first < max(per_cell // 4, 1)]] = True
    return out


@dataclass(frozen=True, kw_only=True)
class Measurer:
    """One image, how its pixels count, and which of its stars show the PSF."""

    image: MaskedImage
    gain: float
    chosen: np.ndarray  # bool [n]
    core: int  # radius of the disc that is fitted, px

    def cells(self) -> list[tuple[slice, slice]]:
        """Return (rows, columns) of the cells that are measured one by one."""
        shape = self.image.shape
        whole = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
        return [(rows, columns) for _, _, rows, columns in whole.boxes()]

    def around(self, stars: np.ndarray, psf: PsfField) -> np.ndarray:
        """Return bool [n]: the chosen stars and those near enough to shine into their stamps."""
        reach = psf.mean.shape[0] // 2 + 2 * self.core
        tree = cKDTree(stars[:2, self.chosen].T)
        distance, _ = tree.query(stars[:2].T, distance_upper_bound=reach)
        return np.isfinite(distance)

    def measure(
        self, stars: np.ndarray, psf: PsfField, boxes: Sequence[tuple[slice, slice]], sweeps: int
    ) -> tuple[np.ndarray, Sample]:
        """Return (stars float64 [3, n], sample): those in ``boxes`` fitted, and the chosen ones' stamps.

        ``stars`` [3, n] (x, y, flux), brightest first; those elsewhere come back as they are.
        """
        with pool() as threads:
            parts = list(threads.map(lambda box: self._cell(stars, psf, box, sweeps), boxes))
        out = stars.copy()
        for rows, fitted, _ in parts:
            out[:, rows] = fitted
        row = np.concatenate([shown for *_, (shown, _, _) in parts]).astype(int)
        sample = Sample(
            stamps=np.concatenate([stamps for *_, (_, stamps, _) in parts]),
            known=np.concatenate([known for *_, (_, _, known) in parts]),
            row=row,
            x=out[0, row],
            y=out[1, row],
            flux=out[2, row],
            sky=self.image.sky_variance.at(out[0, row], out[1, row]),
            region=np.zeros(len(row), dtype=np.int64),
            gain=self.gain,
        )
        return out, sample

    def _cell(self, stars: np.ndarray, psf: PsfField, box: tuple[slice, slice], sweeps: int):
        """Return (rows, fitted [3, k], (rows, stamps, known) of the chosen) of one cell's own stars."""
        rows, columns = box
        n = psf.mean.shape[0]
        reach = n // 2 + 2 * self.core
        x, y = stars[0], stars[1]
        near = (x > columns.start - reach) & (x < columns.stop + reach)
        near &= (y > rows.start - reach) & (y < rows.stop + reach)
        index = np.flatnonzero(near)
        margin = reach + n // 2 + 12
        pixels, bad = cut(self.image.data, self.image.flags, box, margin)
        psfs, which = _local(psf, box, x[index], y[index])
        local = stars[:, index] + np.array([[margin - columns.start], [margin - rows.start], [0.0]])
        sky = self.image.sky_variance.at(x[index], y[index])
        half = self._half(psf, local[2], sky, self.chosen[index])
        fitted = fit_cell(pixels, bad, psfs, local, which, half, (sky, self.gain), (self.core, sweeps))
        # finders put some stars a hair beyond the border: they belong to the cell that is there
        across = np.clip(np.rint(x[index]), 0, self.image.shape[1] - 1)
        down = np.clip(np.rint(y[index]), 0, self.image.shape[0] - 1)
        own = (across >= columns.start) & (across < columns.stop) & (down >= rows.start) & (down < rows.stop)
        shows = own & self.chosen[index] & (fitted[2] > 0) & self._whole(bad, fitted)
        stamps, known = centred_stamps(pixels, bad, psfs, fitted[:, shows], which[shows])
        back = fitted + np.array([[columns.start - margin], [rows.start - margin], [0.0]])
        return index[own], back[:, own], (index[shows], stamps, known)

    def _half(self, psf: PsfField, flux: np.ndarray, sky: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return the half-width of the stamp that each star needs."""
        full = psf.mean.shape[0] // 2
        profile = psf.mean[full, full:]
        out = np.full(len(flux), full, dtype=np.int64)
        for half in sorted({min(self.core * k // 2 + 1, full) for k in (5, 3)}, reverse=True):
            faint = ~chosen & (np.maximum(flux, 0) * profile[half] < FAINT_SIGMA * np.sqrt(sky))
            out[faint] = max(half, self.core + 1)
        return out

    def _whole(self, bad: np.ndarray, stars: np.ndarray) -> np.ndarray:
        """Return which stars have no bad pixel in the disc that is fitted."""
        offset = np.arange(-self.core, self.core + 1)
        v, u = (
            a[np.hypot(offset[:, None], offset[None, :]) <= self.core] for a in np.meshgrid(offset, offset)
        )
        ix, iy = np.rint(stars[0]).astype(int), np.rint(stars[1]).astype(int)
        return ~bad[iy[:, None] + v, ix[:, None] + u].any(axis=1)


def _local(
    psf: PsfField, box: tuple[slice, slice], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (framed PSFs of a cell's patches, the one of each star).

    Patches are of 256 px; stars where the amplitudes' own nodes say otherwise, by more than `UNLIKE`, get the
    PSF of those.
    """
    rows, columns = box
    if not len(psf.modes):
        return framed(psf.mean[None]), np.zeros(len(x), dtype=np.int64)
    shape = rows.stop - rows.start, columns.stop - columns.start
    found = [
        _patches(psf, cell_grid(shape, pix), (columns.start, rows.start), shape, (x, y))
        for pix in (PATCH_PIX, min(*psf.amplitudes.size, PATCH_PIX))
    ]
    strength = np.abs(psf.modes).max(axis=(1, 2)) / psf.mean.max()
    (_, rough), (_, fine) = found
    unlike = (np.abs(fine - rough) * strength[:, None]).max(axis=0) > UNLIKE
    key = np.where(unlike, -1 - found[1][0], found[0][0])
    amplitude = np.where(unlike, fine, rough)
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    stamps = psf.mean[None] + np.tensordot(amplitude[:, first].T.astype(np.float32), psf.modes, axes=1)
    return framed(stamps), which


def _patches(psf: PsfField, grid, corner, shape, place) -> tuple[np.ndarray, np.ndarray]:
    """Return (the number of each star's patch, the amplitudes [m, k] of its middle)."""
    patches = Cells(values=np.zeros(grid), shape=shape)
    px, py = (a.ravel() for a in patches.middles())
    j, i = patches.cell_of(place[0] - corner[0], place[1] - corner[1])
    number = j * grid[1] + i
    return number, psf.amplitudes.at(px + corner[0], py + corner[1])[:, number]
