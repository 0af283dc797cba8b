"""Where the template shows what surrounds a star, by the pixels of both images instead of two centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.numerics.cross_shift import matching_places
from ks4diff.numerics.pixel_map import PixelMap
from ks4diff.numerics.pools import pool
from ks4diff.numerics.star_finder import measure_spots
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import CalibratedChip


@dataclass(frozen=True, kw_only=True)
class StampConfig:
    """Which matched stars are compared by their pixels, and how much of them."""

    per_square: int = 10  # best ones of each 512 px square: 40 of S/N 100 give a cell 0.003 px
    in_all: int = 3000  # small images have few squares, and take more stars of each
    core_fwhm: float = 0.5  # radius of the disc, of the FWHM that both images get: half of the maximum, ...
    # ... where a star outshines its neighbours
    psf_fwhm: float = 2.0  # radius of the PSFs: beyond lie 2 % of the light, smooth and even


def on_pixels(
    science: CalibratedChip,
    template: CalibratedChip,
    found: PixelMap,
    points: np.ndarray,
    expected: np.ndarray,
    config: StampConfig,
) -> np.ndarray:
    """Return float64 [n, 2]: template pixels that show what the science image does at its stars, or NaN.

    A centroid in a crowd is drawn to neighbours by as much as the seeing blends them, otherwise in each
    image. Convolved with the other's PSF both images blend alike, and what neither resolves does not matter.

    Parameters
    ----------
    science, template
        Background subtracted, each with the PSF on its own pixels.
    found
        From science to template pixels, right to 1 px.
    points
        Science positions of matched stars, float64 [n, 2].
    expected
        Their expected noise [n], px, by which the best are taken; the others stay unknown.
    config
        How many, and the disc's size.

    """
    shape = science.image.shape
    chosen = _best(points, expected, shape, config)
    cells = Cells(values=np.empty(cell_grid(shape, CELL_PIX)), shape=shape)
    j, i = cells.cell_of(*points[chosen].T)
    cell = j * cells.values.shape[1] + i
    middles = np.stack([axis.ravel() for axis in cells.middles()], axis=1)

    def work(k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = chosen[cell == k]
        return rows, _in_cell(science, template, found, (middles[k], points[rows]), config)

    with pool() as threads:
        parts = list(threads.map(work, np.unique(cell)))
    out = np.full(points.shape, np.nan)
    for rows, places in parts:
        out[rows] = places
    return out


def _best(
    points: np.ndarray, expected: np.ndarray, shape: tuple[int, int], config: StampConfig
) -> np.ndarray:
    """Return the rows of the stars of least noise in each square of 512 px."""
    squares = Cells(values=np.empty(cell_grid(shape, CELL_PIX / 2)), shape=shape)
    each = max(config.per_square, config.in_all // squares.values.size)
    j, i = squares.cell_of(*points.T)
    square = j * squares.values.shape[1] + i
    order = np.lexsort((expected, square))
    first = np.searchsorted(square[order], square[order])
    return np.sort(order[np.arange(len(order)) - first < each])


def _in_cell(
    science: CalibratedChip,
    template: CalibratedChip,
    found: PixelMap,
    stars: tuple[np.ndarray, np.ndarray],
    config: StampConfig,
) -> np.ndarray:
    """Return the template pixels of the stars (middle of their cell, positions [n, 2]) of one cell."""
    middle, points = stars
    turn = np.stack([found.at(middle + d)[0] - found.at(middle - d)[0] for d in 0.5 * np.eye(2)], axis=1)
    there = found.at(middle[None])[0]
    own, other = science.psf.at(*middle), template.psf.at(*there)
    scale = float(np.sqrt(abs(np.linalg.det(turn))))
    # in science pixels
    widths = science.psf.fwhm_pix, template.psf.fwhm_pix / scale
    half = [int(np.ceil(config.psf_fwhm * width)) for width in widths]
    psfs = (
        _turned(own, np.linalg.inv(turn), int(np.ceil(half[0] * scale)), widths[0]),
        _turned(other, turn, half[1], template.psf.fwhm_pix),
    )
    whole = np.rint(points)
    places = matching_places(
        (science.image.data, template.image.data),
        (science.image.flags, template.image.flags),
        psfs,
        np.concatenate([whole, found.at(whole)], axis=1),
        turn,
        max(round(config.core_fwhm * float(np.hypot(*widths))), 2),
        (float(science.image.sky_variance.at(*middle)), 1 / science.gain),
    )
    return places + (points - whole) @ turn.T


def _turned(stamp: np.ndarray, turn: np.ndarray, half: int, fwhm: float) -> np.ndarray:
    """Return the PSF [2 half + 1, 2 half + 1] as seen by pixels that are ``turn`` [2, 2] of its own, centred.

    Centred like a star, by a Gaussian window of its own ``fwhm``: a model's middle drifts with the stars
    that it was made of, by 0.02 px between a frame and a part of it.
    """
    middle = stamp.shape[0] // 2
    place = measure_spots(stamp.astype(np.float32), np.full((1, 2), float(middle)), fwhm / 2.3548)
    offset = np.arange(-half, half + 1)
    v, u = np.meshgrid(offset, offset, indexing="ij")
    x, y = np.einsum("ab,bij->aij", turn, np.stack([u, v]))
    at = [y + place["y"][0], x + place["x"][0]]
    return ndimage.map_coordinates(stamp.astype(np.float64), at, order=3)
