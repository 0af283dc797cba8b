"""Turn pixels read from one reference tile into the part under a chip: masked, flat, on one zero point."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.pools import pool
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.template import PixelBox, TilePart, TileRecord
from ks4diff.stages.footprint import shifted_wcs
from ks4diff.stages.ingest import MAX_COUNTS, is_believable

_STRIP_ROWS = 64  # worked on at a time: 2.4 MB of a chip's width stay in the cache
_SATURATION_REACH = 2  # neighbours of a full pixel hold spilt charge
_MIN_SKY_SIGMA = 0.05  # a sky below this is left: subtracting its map would only add the map's noise
_EXPOSURE_S = 120.0  # of KS4 (shared facts: kmtnet.md section 2)
# AB magnitude of one electron in 120 s: V and I measured at CTIO, B and R guessed (section 8), at 1.75
# electrons per count, which is the mean of the sites to 7 % (section 6)
_ELECTRON_ZEROPOINT = {"B": 28.7, "V": 28.9, "R": 29.2, "I": 29.4}
# variance of the median of n normal deviates over that of their mean; pi / 2 of many
_MEDIAN_LOSS = {1: 1.0, 2: 1.0, 3: 1.35, 4: 1.19, 5: 1.43, 6: 1.29, 7: 1.47, 8: 1.34}


def make_part(data: np.ndarray, box: PixelBox, record: TileRecord, stars: StarList) -> TilePart:
    """Return a box of one tile: masked, on one zero point, without sky, with its local variance.

    ``data`` float32 [y, x] as read, 0 where the box leaves the tile; it is not modified. Zeros are no data.
    """
    flags = np.empty(data.shape, dtype=np.uint16)
    sky, factor = _sky_cells(record), record.flux_factor
    out = data if sky is None and factor is None else np.empty_like(data)
    x = np.arange(box.x0, box.x1)

    def make_strip(top: int) -> bool:
        rows = slice(top, min(top + _STRIP_ROWS, len(data)))
        y = np.arange(box.y0 + rows.start, box.y0 + rows.stop)
        strange = _flag(data[rows], record.saturation, flags[rows])
        level = data[rows]
        if sky is not None:
            level = level - cell_values(sky, record.cell_pix, x, y)
        if factor is not None:
            cells = [n / m for n, m in zip(record.shape, factor.shape, strict=True)]
            level = level * cell_values(factor, cells, x, y)
        if out is not data:
            out[rows] = level
        return strange

    with pool() as threads:
        strange = any(list(threads.map(make_strip, range(0, len(data), _STRIP_ROWS))))
    _spread_saturation(flags)
    if strange or out is not data:
        lost = (flags & int(PixelFlag.NO_DATA | PixelFlag.NON_FINITE)) != 0
        out = np.where(lost, np.float32(0), out)
    return TilePart(
        image=MaskedImage(data=out, flags=flags, sky_variance=_sky_variance(box, record)),
        wcs=shifted_wcs(record.wcs, box.x0, box.y0),
        zeropoint=record.zeropoint,
        noise=record.noise,
        stars=_stars_in(stars, box, record),
        saturation=record.saturation,
        tile_ids=(record.id,),
        band=record.band,
        fwhm_pix=record.fwhm_pix,
        gain=_gain(record),
    )


def _gain(record: TileRecord) -> float | None:
    """Return the electrons per count that one pixel's Poisson noise shows; None of no KS4 stack.

    One count is worth as many electrons, in all exposures together, as the zero points tell; the median of n
    loses some, and resampling has taken noise from single pixels into its correlation with the next ones.
    """
    zeropoint = _ELECTRON_ZEROPOINT.get(record.band)
    if record.field is None or zeropoint is None or not record.exptime:
        return None
    exposures = max(round(record.exptime / _EXPOSURE_S), 1)
    total = zeropoint + 2.5 * float(np.log10(record.exptime / _EXPOSURE_S))
    electrons = 10 ** (0.4 * (total - record.zeropoint))
    middle = len(record.noise.correlation) // 2
    # bilinear weights reach one pixel and leave 4/9 of the variance
    near = record.noise.correlation[max(middle - 1, 0) : middle + 2, max(middle - 1, 0) : middle + 2]
    spread = float(np.clip(near.sum(), 1.0, 9 / 4))
    return electrons * spread / _MEDIAN_LOSS.get(exposures, np.pi / 2)


def _sky_variance(box: PixelBox, record: TileRecord) -> Cells:
    """Return the variance of the tile's sky over a box, on the scale of its zero point."""
    rows, columns = cell_grid(box.shape, record.cell_pix)
    cells = Cells(values=np.empty((rows, columns), dtype=np.float32), shape=box.shape)
    x, y = (axis[0] + box.x0 if k == 0 else axis[:, 0] + box.y0 for k, axis in enumerate(cells.middles()))
    values = cell_values(record.sigma**2, record.cell_pix, x, y)
    if record.flux_factor is not None:
        size = [n / m for n, m in zip(record.shape, record.flux_factor.shape, strict=True)]
        values = values * cell_values(record.flux_factor, size, x, y) ** 2
    return Cells(values=values, shape=box.shape)


def cell_values(cells: np.ndarray, cell_pix: float | list[float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return float32 [len(y), len(x)] of a map of square cells, bilinear between the cells' middles.

    ``cell_pix`` is the cells' side, or (rows, columns) of one cell. Beyond the outermost middles the map goes
    on level.
    """
    high, wide = cell_pix if isinstance(cell_pix, list) else (cell_pix, cell_pix)
    values = np.empty((len(y), len(x)), dtype=np.float32)
    _down(_across(cells, wide, x), high, y, values)
    return values


def _across(cells: np.ndarray, cell: float, x: np.ndarray) -> np.ndarray:
    """Return float32 [rows of cells, len(x)]: the map at each column of pixels."""
    left, part = _between(x, cell, cells.shape[1])
    right = np.minimum(left + 1, cells.shape[1] - 1)
    return (cells[:, left] * (1 - part) + cells[:, right] * part).astype(np.float32)


def _down(across: np.ndarray, cell: float, y: np.ndarray, out: np.ndarray) -> None:
    """Write the map at rows ``y`` into ``out``, from its values across at each row of cells."""
    # row by row: a matrix product over all cells would take ten times as long
    for row, below, part in zip(out, *_between(y, cell, len(across)), strict=True):
        above = min(below + 1, len(across) - 1)
        np.multiply(across[above] - across[below], part, out=row)
        row += across[below]


def _between(position: np.ndarray, cell: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the cell whose middle is at or before each pixel, the fraction of the way to the next one)."""
    at = np.clip((position + 0.5) / cell - 0.5, 0, n - 1)
    before = np.floor(at).astype(int)
    return before, (at - before).astype(np.float32)


def _sky_cells(record: TileRecord) -> np.ndarray | None:
    """Return the tile's sky map, None when its stack was made without sky."""
    used = record.coverage > 0
    if not used.any():
        return None
    level = np.median(np.abs(record.background[used]))
    return record.background if level > _MIN_SKY_SIGMA * np.median(record.sigma[used]) else None


def _flag(data: np.ndarray, saturation: float | None, flags: np.ndarray) -> bool:
    """Write the PixelFlag bits of rows as read into ``flags``; return whether some are no counts at all."""
    np.multiply(data == 0, np.uint16(PixelFlag.NO_DATA), out=flags, casting="unsafe")
    low, top = data.min(), data.max()  # NaN when one pixel is
    strange = not (low > -MAX_COUNTS and top < MAX_COUNTS)
    if strange:
        flags[~is_believable(data)] = PixelFlag.NON_FINITE
    if saturation is not None and not top < saturation:
        with np.errstate(invalid="ignore"):
            flags[(data >= saturation) & is_believable(data)] |= np.uint16(PixelFlag.SATURATED)
    return strange


def _spread_saturation(flags: np.ndarray) -> None:
    """Raise SATURATED, in place, at what touches full pixels."""
    rows = np.concatenate(
        [
            top + np.flatnonzero((flags[top : top + 64] >= PixelFlag.SATURATED).any(axis=1))
            for top in range(0, len(flags), 64)
        ]
    )
    found = [np.flatnonzero(flags[row] & PixelFlag.SATURATED) for row in rows]
    y = np.repeat(rows, [len(columns) for columns in found])
    x = np.concatenate(found) if found else np.zeros(0, dtype=int)
    for dy in range(-_SATURATION_REACH, _SATURATION_REACH + 1):
        for dx in range(-_SATURATION_REACH, _SATURATION_REACH + 1):
            if abs(dy) + abs(dx) <= _SATURATION_REACH:
                ny, nx = np.clip(y + dy, 0, flags.shape[0] - 1), np.clip(x + dx, 0, flags.shape[1] - 1)
                flags[ny, nx] |= np.uint16(PixelFlag.SATURATED)


def _stars_in(stars: StarList, box: PixelBox, record: TileRecord) -> StarList:
    x, y, flux = stars.x - box.x0, stars.y - box.y0, stars.flux
    keep = (x > -0.5) & (y > -0.5) & (x < box.shape[1] - 0.5) & (y < box.shape[0] - 0.5)
    if record.flux_factor is not None:
        rows, columns = record.flux_factor.shape
        j = np.clip(stars.y * rows / record.shape[0], 0, rows - 1).astype(int)
        i = np.clip(stars.x * columns / record.shape[1], 0, columns - 1).astype(int)
        flux = flux * record.flux_factor[j, i]
    return StarList(x=x[keep], y=y[keep], flux=flux[keep], fwhm=stars.fwhm[keep], clean=stars.clean[keep])
