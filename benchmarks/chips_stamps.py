"""The true PSFs of a drawn chip and what a median stack keeps of its stars, made once and kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.chips_truth import HALF, PLACES_ALONG, SPREAD, Geometry, cell_middles
from ks4diff.io.atomic import atomic_path
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid

VERSION = 4  # of what is kept; another number makes it anew, the sky is not drawn again
GROUP_PLACES = 64  # stars at which a group's stamp is averaged: their light scatters by 0.3 to 0.7 %
FEWEST = 3  # stars of a group worth its stamp


@dataclass(frozen=True, kw_only=True)
class TrueStamps:
    """Stamps [..., n, n] of stars of flux 1 on the chip's pixels, so far as they hold their light.

    ``psf`` and ``template_psf`` [rows, columns, n, n] at the middles of the 1k cells; ``mixed`` [rows,
    columns]: not the same dithers everywhere in the cell. ``kept`` [groups, n, n] is the mean over stars of
    one cell on the same dithers, of which ``cell`` and ``dithers`` [groups] are the numbers (`groups_of`).
    """

    psf: np.ndarray
    template_psf: np.ndarray
    mixed: np.ndarray
    kept: np.ndarray
    cell: np.ndarray
    dithers: np.ndarray

    def kept_of(self, cell: np.ndarray, dithers: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Return float64 [n]: the light ``inside`` (bool [n, n]) of stars of these groups, NaN: unknown."""
        light = self.kept[:, inside].sum(axis=1)
        same = (self.cell == np.asarray(cell)[:, None]) & (self.dithers == np.asarray(dithers)[:, None])
        return np.where(same.any(axis=1), light[same.argmax(axis=1)] if len(light) else np.nan, np.nan)


def disc(radius: float, half: int = HALF) -> np.ndarray:
    """Return bool [2 half + 1]²: the pixels within ``radius`` of the middle."""
    offset = np.arange(-half, half + 1)
    return np.hypot(offset[:, None], offset[None, :]) <= radius


def groups_of(geometry: Geometry, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (cell, dithers) int64 [n] of sources: the number of their 1k cell, the bits of their frames."""
    shape = (geometry.patch.rows, geometry.patch.columns)
    cells = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
    j, i = cells.cell_of(rows["x"], rows["y"])
    used, _ = geometry.frames_at(rows["ra"], rows["dec"])
    bits = (used * (1 << np.arange(len(used)))[:, None]).sum(axis=0)
    return j * cells.values.shape[1] + i, bits


def true_stamps(geometry: Geometry, stars: np.ndarray, folder: Path) -> TrueStamps:
    """Return the stamps of a chip whose constant stars are ``stars``; kept in ``folder``."""
    path = folder / f"stamps-{VERSION}.npz"
    if not path.exists():
        made = vars(_made(geometry, stars))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **made)
    with np.load(path) as kept:
        return TrueStamps(**dict(kept))


def _made(geometry: Geometry, stars: np.ndarray) -> TrueStamps:
    shape = (geometry.patch.rows, geometry.patch.columns)
    x, y = cell_middles(shape)
    rng = np.random.default_rng(1)
    psf, template_psf, mixed = [], [], []
    for cx, cy in zip(x.ravel(), y.ravel(), strict=True):
        psf.append(geometry.psf.stamp(cx, cy, HALF))
        template_psf.append(_mean(geometry.template_stamps(*_around(cx, cy, rng))))
        half = CELL_PIX * 0.48
        around = np.array([(i * half, j * half) for i in (-1, 0, 1) for j in (-1, 0, 1)]).T
        used, _ = geometry.frames_at(*geometry.wcs.all_pix2world(cx + around[0], cy + around[1], 0))
        mixed.append((used != used[:, :1]).any())
    cell, dithers = groups_of(geometry, stars)
    kept, which = [], []
    for group in sorted(set(zip(cell.tolist(), dithers.tolist(), strict=True))):
        members = np.flatnonzero((cell == group[0]) & (dithers == group[1]))
        if len(members) < FEWEST or group[1] == 0:
            continue
        some = stars[rng.permutation(members)[:GROUP_PLACES]]
        kept.append(_mean(geometry.template_stamps(some["x"], some["y"])))
        which.append(group)
    n = 2 * HALF + 1
    numbers = np.array(which, dtype=np.int64).reshape(-1, 2)
    return TrueStamps(
        psf=np.reshape(psf, (*x.shape, n, n)).astype(np.float32),
        template_psf=np.reshape(template_psf, (*x.shape, n, n)).astype(np.float32),
        mixed=np.reshape(mixed, x.shape),
        kept=np.reshape(kept, (-1, n, n)).astype(np.float32),
        cell=numbers[:, 0],
        dithers=numbers[:, 1],
    )


def _around(x: float, y: float, rng: np.random.Generator) -> np.ndarray:
    """Return float64 [2, n]: pixels around a place, one drawn in each square of a grid."""
    n = PLACES_ALONG
    square = np.stack(np.meshgrid(np.arange(n), np.arange(n))).reshape(2, -1)
    offset = ((square + rng.random(square.shape)) / n * 2 - 1) * SPREAD
    return np.rint(np.array([[x], [y]]) + offset)


def _mean(stamps: np.ndarray) -> np.ndarray:
    known = np.isfinite(stamps).all(axis=(1, 2))
    return stamps[known].mean(axis=0) if known.any() else stamps[0]


def template_variance(geometry: Geometry) -> float:
    """Return electrons² of a sky pixel of the tile: the mean over the cells' middles, borders left out."""
    shape = (geometry.patch.rows, geometry.patch.columns)
    x, y = (a.ravel() for a in cell_middles(shape))
    used, _ = geometry.frames_at(*geometry.wcs.all_pix2world(x, y, 0))
    own = geometry.variances
    count = used.sum(axis=0)
    return float(np.mean([(own @ u) / n**2 for u, n in zip(used.T, count, strict=True) if n]))
