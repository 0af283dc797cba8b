"""Patches of sky, and how much of one a reference tile covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from astropy.wcs import WCS, Sip

from ks4diff.products.errors import InputError
from ks4diff.products.template import Footprint, PixelBox, TileCover, TileRecord

SAMPLES = 64  # a side: a border through a sampled square errs by less than 1/64 of one side's share
_BORDER_SAMPLES = 17  # a side: KMTNet's distortion bends a chip's edge by 1 px between two
_FARTHEST_DEG = 60.0  # a tangent plane beyond this is not worth asking


def chip_footprint(wcs: WCS, shape: tuple[int, int]) -> Footprint:
    """Return the footprint of an image of ``shape`` (rows, columns), distortion included.

    Raises
    ------
    InputError
        When the WCS gives no finite position somewhere in the image.

    """
    return box_footprint(wcs, PixelBox(0, 0, shape[1], shape[0]))


def box_footprint(wcs: WCS, box: PixelBox) -> Footprint:
    """Return the footprint of a box of an image's grid; raises as `chip_footprint` does."""
    rows, columns = box.shape
    across = (np.arange(SAMPLES) + 0.5) / SAMPLES
    x, y = np.meshgrid(box.x0 - 0.5 + across * columns, box.y0 - 0.5 + across * rows)
    points = _sky(wcs, x.ravel(), y.ravel())
    border = _sky(wcs, *_edges(box.x0 - 0.5, box.y0 - 0.5, box.x1 - 0.5, box.y1 - 0.5))
    if not (np.isfinite(points).all() and np.isfinite(border).all()):
        raise InputError("the WCS gives no position for a part of the image")
    return Footprint(points=points, border=border)


def position_footprint(ra: float, dec: float, size_deg: float = 0.0) -> Footprint:
    """Return the footprint of a square of ``size_deg`` around a position, or of the position alone.

    Raises
    ------
    InputError
        When the position is none on the sky.

    """
    if not (np.isfinite(ra) and abs(dec) <= 90 and 0 <= size_deg <= 30):
        raise InputError(f"RA {ra:g} Dec {dec:g} size {size_deg:g} is no patch of sky (degrees)")
    if size_deg == 0:
        point = np.array([[ra % 360, dec]])
        return Footprint(points=point, border=point)
    pixel = size_deg / SAMPLES
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra % 360, dec]
    wcs.wcs.crpix = [(SAMPLES + 1) / 2] * 2
    wcs.wcs.cdelt = [-pixel, pixel]
    return chip_footprint(wcs, (SAMPLES, SAMPLES))


def polygon_footprint(corners: np.ndarray) -> Footprint:
    """Return the footprint of a polygon of sky, ICRS degrees [n, 2], smaller than 30 degrees.

    Raises
    ------
    InputError
        When fewer than three corners are finite, or they enclose nothing.

    """
    corners = np.asarray(corners, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise InputError("a polygon needs three or more corners (RA, Dec in degrees)")
    middle = unit_vectors(corners).mean(axis=0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = position_of(middle)
    x, y = wcs.wcs_world2pix(corners, 0).T
    step = np.linspace(0, 1, _BORDER_SAMPLES)[:, None]
    bx, by = ((v + step * (np.roll(v, -1) - v)).T.ravel() for v in (x, y))
    gx, gy = np.meshgrid(*(np.linspace(v.min(), v.max(), 2 * SAMPLES + 1) for v in (x, y)))
    gx, gy = gx.ravel(), gy.ravel()
    inside = _inside(gx, gy, x, y)
    if not inside.any():
        raise InputError("the polygon encloses no sky")
    return Footprint(points=_sky(wcs, gx[inside], gy[inside]), border=_sky(wcs, bx, by))


def _inside(px: np.ndarray, py: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points lie in a polygon, by the number of its edges to their right."""
    inside = np.zeros(len(px), dtype=bool)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        crosses = (y0 > py) != (y1 > py)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (px < x0 + (py - y0) * (x1 - x0) / (y1 - y0))
    return inside


def tile_corners(wcs: WCS, shape: tuple[int, int]) -> np.ndarray:
    """Return the outer pixel corners [4, 2] of an image, ICRS degrees, counter-clockwise in pixels."""
    rows, columns = shape
    x, y = [-0.5, columns - 0.5, columns - 0.5, -0.5], [-0.5, -0.5, rows - 0.5, rows - 0.5]
    return _sky(wcs, np.array(x), np.array(y))


def covered(record: TileRecord, footprint: Footprint) -> np.ndarray:
    """Return float [n], for each point of a footprint the fraction of pixels with data in its cell."""
    share = np.zeros(len(footprint.points))
    centre = unit_vectors(record.corners).mean(axis=0)
    near = unit_vectors(footprint.points) @ (centre / np.linalg.norm(centre))
    near = np.flatnonzero(near > np.cos(np.radians(_FARTHEST_DEG)))
    if len(near):
        x, y = record.wcs.all_world2pix(*footprint.points[near].T, 0, quiet=True)
        with np.errstate(invalid="ignore"):
            column = np.floor((x + 0.5) / record.cell_pix)
            row = np.floor((y + 0.5) / record.cell_pix)
            rows, columns = record.shape
            on = (x >= -0.5) & (y >= -0.5) & (x < columns - 0.5) & (y < rows - 0.5)
        share[near[on]] = record.coverage[row[on].astype(int), column[on].astype(int)]
    return share


def rank_tiles(records: Sequence[TileRecord], footprint: Footprint) -> list[TileCover]:
    """Return the tiles that cover any of a footprint, those first that add most to the ones before them."""
    shares = {record.id: covered(record, footprint) for record in records}
    left = {record.id: record for record in records if shares[record.id].any()}
    have = np.zeros(len(footprint.points))
    ranked = []
    while left:
        gain = {name: float(np.maximum(shares[name] - have, 0).mean()) for name in left}
        best = max(sorted(left), key=lambda name: (gain[name], left[name].exptime or 0.0))
        record = left.pop(best)
        ranked.append(
            TileCover(
                id=best,
                band=record.band,
                field=record.field,
                issues=record.issues,
                fraction=float(shares[best].mean()),
                gained=gain[best],
            )
        )
        have = np.maximum(have, shares[best])
    return ranked


def enclosing_box(wcs: WCS, footprint: Footprint, margin_pix: int) -> PixelBox:
    """Return the smallest box of a tile's grid around a footprint's border and ``margin_pix`` more.

    Raises
    ------
    InputError
        When the footprint has no finite place on that grid.

    """
    x, y = wcs.all_world2pix(*footprint.border.T, 0, quiet=True)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("the tile's projection does not reach the whole footprint")
    x, y = np.round(x, 6), np.round(y, 6)  # a border on a pixel's edge shall not take the next pixel in
    low = np.floor([x.min() + 0.5, y.min() + 0.5]).astype(int) - margin_pix
    high = np.ceil([x.max() + 0.5, y.max() + 0.5]).astype(int) + margin_pix
    return PixelBox(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def shifted_wcs(wcs: WCS, x0: float, y0: float) -> WCS:
    """Return the WCS of the part of an image that begins at pixel (x0, y0)."""
    made = wcs.deepcopy()
    made.wcs.crpix = np.asarray(wcs.wcs.crpix) - [x0, y0]
    if made.sip is not None:
        sip = made.sip
        made.sip = Sip(sip.a, sip.b, sip.ap, sip.bp, np.asarray(sip.crpix) - [x0, y0])
    made.wcs.set()
    return made


def unit_vectors(positions: np.ndarray) -> np.ndarray:
    """Return float64 [n, 3] of positions [n, 2] in degrees."""
    ra, dec = np.radians(np.asarray(positions, dtype=np.float64)).T
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def position_of(vector: np.ndarray) -> tuple[float, float]:
    """Return (RA, Dec) in degrees of a direction of any length."""
    x, y, z = vector
    return float(np.degrees(np.arctan2(y, x)) % 360), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def _edges(x0: float, y0: float, x1: float, y1: float) -> tuple[np.ndarray, np.ndarray]:
    along = np.linspace(0, 1, _BORDER_SAMPLES)[:-1]
    there, back = along, 1 - along
    zero, one = np.zeros_like(along), np.ones_like(along)
    u = np.concatenate([there, one, back, zero])
    v = np.concatenate([zero, there, one, back])
    return x0 + u * (x1 - x0), y0 + v * (y1 - y0)


def _sky(wcs: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack(wcs.all_pix2world(x, y, 0), axis=1)
