"""Turn pixels read from reference tiles into the part under a chip; several tiles into one grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

from ks4diff.numerics.lanczos import node_grid, noise_covariance, resample
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import CalibratedChip, RawChip, StarList
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.products.template import PixelBox, TilePart, TileRecord
from ks4diff.stages.align import resampled_noise
from ks4diff.stages.footprint import shifted_wcs
from ks4diff.stages.ingest import MAX_COUNTS, is_believable

MARGIN_PIX = 8  # taps of the resampling kernel, and a pixel for each rounding
_STRIP_ROWS = 64  # worked on at a time: 2.4 MB of a chip's width stay in the cache
_THREADS = 2
_SATURATION_REACH = 2  # neighbours of a full pixel hold spilt charge
_MIN_SKY_SIGMA = 0.05  # a sky below this is left: subtracting its map would only add the map's noise


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The rectangle of a part that another tile may fill: its box there and the bad pixels in it."""

    box: PixelBox
    wanted: np.ndarray  # bool [y, x]


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

    with ThreadPoolExecutor(_THREADS) as pool:
        strange = any(list(pool.map(make_strip, range(0, len(data), _STRIP_ROWS))))
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
    )


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


def missing(part: TilePart) -> Patch | None:
    """Return the rectangle around the pixels without data, or None when all have some."""
    wanted = (part.image.flags & int(PixelFlag.NO_DATA | PixelFlag.NON_FINITE)) != 0
    rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    if not len(rows):
        return None
    box = PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Patch(box=box, wanted=wanted[box.y0 : box.y1, box.x0 : box.x1])


def positions_in(patch: Patch, part: TilePart, wcs: WCS) -> np.ndarray:
    """Return float64 [2, rows, columns]: pixels of another tile's grid at the nodes of a patch.

    See `ks4diff.numerics.lanczos.resample`; pixels without a place there are NaN.
    """
    x, y = node_grid(patch.box.shape)
    sky = part.wcs.all_pix2world(x.ravel() + patch.box.x0, y.ravel() + patch.box.y0, 0)
    return np.array(wcs.all_world2pix(*sky, 0, quiet=True)).reshape(2, *x.shape)


def fill_from(part: TilePart, patch: Patch, nodes: np.ndarray, other: TilePart) -> TilePart:
    """Return the part with the bad pixels of a patch taken from another tile, where that has good ones.

    The other tile is resampled by Lanczos-4 and scaled to the part's zero point. The variance of filled
    pixels is the other tile's with what resampling does to its correlated noise; the noise model of the
    result is the mean of both, weighted by their pixels. ``nodes`` are pixels of ``other``.
    """
    area = proj_plane_pixel_area(part.wcs.celestial) / proj_plane_pixel_area(other.wcs.celestial)
    scale = area * 10 ** (0.4 * (part.zeropoint - other.zeropoint))
    data, raised = resample(other.image.data, other.image.flags, nodes, patch.box.shape)
    usable = patch.wanted & (raised == 0)
    if not usable.any():
        return part
    noise = resampled_noise(other.noise, noise_covariance(nodes[:, :-1, :-1]))
    where = (slice(patch.box.y0, patch.box.y1), slice(patch.box.x0, patch.box.x1))
    image = MaskedImage(
        data=part.image.data.copy(),
        flags=part.image.flags.copy(),
        sky_variance=_mixed_variance(part, patch, usable, (noise.sigma * scale) ** 2),
    )
    image.data[where][usable] = data[usable] * np.float32(scale)
    image.flags[where][usable] = 0
    saturated = patch.wanted & ((raised & int(PixelFlag.SATURATED)) != 0)
    image.flags[where][saturated] = PixelFlag.SATURATED
    good = max(int(np.count_nonzero(image.flags == 0)), 1)
    share = float(usable.sum()) / good
    return replace(
        part,
        image=image,
        noise=_mixed(part.noise, noise, share, scale),
        stars=_with_filled_stars(part, patch, usable, other, scale / area),
        tile_ids=(*part.tile_ids, *other.tile_ids),
        filled=part.filled + share,
    )


def _mixed_variance(part: TilePart, patch: Patch, usable: np.ndarray, variance: float) -> Cells:
    """Return the part's sky variance with the cells mostly filled from another tile taking that one's."""
    cells = part.image.sky_variance
    filled = np.zeros(part.image.shape, dtype=bool)
    filled[patch.box.y0 : patch.box.y1, patch.box.x0 : patch.box.x1] = usable
    values = cells.values.copy()
    for j, i, rows, columns in cells.boxes():
        share = filled[rows, columns].mean()
        if share > 0:
            values[j, i] = variance if share > 0.5 else max(values[j, i], 0.0)
    return Cells(values=values, shape=cells.shape)


def _mixed(first: NoiseModel, second: NoiseModel, share: float, scale: float) -> NoiseModel:
    """Return the noise of pixels of which ``share`` have the second model, times ``scale``."""
    n = max(len(first.correlation), len(second.correlation))
    covariance = sum(
        weight * (model.sigma * factor) ** 2 * np.pad(model.correlation, (n - len(model.correlation)) // 2)
        for model, weight, factor in ((first, 1 - share, 1.0), (second, share, scale))
    )
    variance = float(covariance[n // 2, n // 2])
    return replace(first, sigma=variance**0.5, correlation=covariance / variance)


def _with_filled_stars(
    part: TilePart, patch: Patch, usable: np.ndarray, other: TilePart, flux: float
) -> StarList:
    """Return the part's stars and those of the other tile that fall on filled pixels, brightest first."""
    sky = other.wcs.all_pix2world(other.stars.x, other.stars.y, 0)
    x, y = part.wcs.all_world2pix(*sky, 0, quiet=True)
    i, j = np.rint(x).astype(int) - patch.box.x0, np.rint(y).astype(int) - patch.box.y0
    inside = (i >= 0) & (j >= 0) & (i < usable.shape[1]) & (j < usable.shape[0])
    inside[inside] = usable[j[inside], i[inside]]
    columns = {
        "x": (part.stars.x, x[inside]),
        "y": (part.stars.y, y[inside]),
        "flux": (part.stars.flux, other.stars.flux[inside] * flux),
        "fwhm": (part.stars.fwhm, other.stars.fwhm[inside]),
        "clean": (part.stars.clean, other.stars.clean[inside]),
    }
    joined = {name: np.concatenate(pair) for name, pair in columns.items()}
    order = np.argsort(-joined["flux"], kind="stable")
    return StarList(**{name: values[order] for name, values in joined.items()})


def as_template(part: TilePart) -> CalibratedChip:
    """Return a part as the template of a chip, with what its store measured: nothing is measured again."""
    fwhm = part.fwhm_pix or 3.0
    half = int(np.ceil(2 * fwhm))
    offset = np.arange(-half, half + 1)
    stamp = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) * 4 * np.log(2) / fwhm**2)
    psf = Psf(stamp=(stamp / stamp.sum()).astype(np.float32), fwhm_pix=fwhm, n_stars=0)
    return CalibratedChip(
        raw=replace(as_chip(part), data=np.empty((0, 0), dtype=np.float32), flags=None),
        image=part.image,
        sky=None,
        stars=part.stars,
        psf=PsfField.uniform(psf, part.image.shape),
        noise=part.noise,
        gain=1.0,
        gain_source="given",
    )


def as_chip(part: TilePart) -> RawChip:
    """Return a part as an image to calibrate and subtract with; pixels without data are exact zeros."""
    bad = part.image.flags & int(~PixelFlag.SATURATED)
    return RawChip(
        data=np.where(bad != 0, np.float32(0), part.image.data),
        file="+".join(part.tile_ids),
        hdu="0",
        wcs=part.wcs,
        saturation=part.saturation,
        zeropoint=part.zeropoint,
        filter=part.band,
        flags=part.image.flags,
    )
