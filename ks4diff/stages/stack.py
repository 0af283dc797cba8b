"""Combine exposures of one's own into a template: one grid, one flux scale, a clipped mean."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from scipy.spatial import cKDTree

from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.errors import InputError, SkipChip
from ks4diff.products.registration import Registration
from ks4diff.stages.footprint import chip_footprint, position_of, unit_vectors
from ks4diff.stages.register import RegisterConfig, register, template_position

_GRID_MARGIN_PIX = 4


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """How exposures are put together."""

    max_side_pix: int = 24000  # a KS4 tile has 22000
    clip_sigma: float = 4.0
    clip_fraction: float = 0.3  # of the median besides: seeing changes a star's core by as much
    affine_rms_pix: float = 0.5  # beyond, the WCS have not the same distortion and the stars alone count
    match_pix: float = 1.5
    min_flux_stars: int = 5


@dataclass(frozen=True, kw_only=True)
class StackGrid:
    """A north-up tangent-plane grid around some exposures."""

    wcs: WCS
    shape: tuple[int, int]
    scale_arcsec: float


@dataclass(frozen=True, kw_only=True)
class Warped:
    """An exposure on the stack's grid and flux scale: float32 [y, x], NaN where it has nothing good."""

    data: np.ndarray
    sigma: float
    flux_scale: float  # the exposure's counts were multiplied by this
    registration: str  # how it was placed, for the provenance


def stack_grid(
    images: Sequence[tuple[WCS, tuple[int, int]]], scale_arcsec: float | None, config: StackConfig
) -> StackGrid:
    """Return the grid that encloses images given as (WCS, shape), at their median scale unless one is given.

    Raises
    ------
    InputError
        When the images are too far apart for one grid.

    """
    border = np.concatenate([chip_footprint(wcs, shape).border for wcs, shape in images])
    areas = [proj_plane_pixel_area(wcs.celestial) for wcs, _ in images]
    scale = scale_arcsec or 3600 * float(np.median(areas)) ** 0.5
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = position_of(unit_vectors(border).sum(axis=0))
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    wcs.wcs.crpix = [1.0, 1.0]
    x, y = wcs.wcs_world2pix(border, 0).T
    half = np.ceil([np.abs(x).max(), np.abs(y).max()]) + _GRID_MARGIN_PIX
    if not np.isfinite(half).all() or 2 * half.max() + 1 > config.max_side_pix:
        raise InputError(f"the exposures do not fit on one grid of {config.max_side_pix} pixels a side")
    wcs.wcs.crpix = half + 1
    wcs.wcs.set()
    return StackGrid(wcs=wcs, shape=(int(2 * half[1]) + 1, int(2 * half[0]) + 1), scale_arcsec=scale)


def warp(chip: CalibratedChip, first: CalibratedChip, grid: StackGrid, config: StackConfig) -> Warped:
    """Return an exposure on the grid, its stars on those of ``first`` and its fluxes on that one's scale.

    The WCS places it; where stars match, an affine correction on top of the WCS, or, when the WCS lack
    distortion, the stars' own polynomial. Without matching stars the two zero points give the flux scale.

    Raises
    ------
    SkipChip
        When neither stars nor zero points relate the fluxes.

    """
    found: Registration | None = None
    if chip is not first:
        try:
            found = register(first, chip, RegisterConfig())
        except SkipChip:
            found = None
    x, y = node_grid(grid.shape)
    sky = np.stack(grid.wcs.all_pix2world(x.ravel(), y.ravel(), 0))
    place, how = _placement(chip, first, found, sky, config)
    scale = 1.0 if chip is first else _flux_scale(chip, first, found, config)
    scale *= (grid.scale_arcsec / 3600) ** 2 / proj_plane_pixel_area(chip.raw.wcs.celestial)
    data, flags = resample(chip.image.data, chip.image.flags, place.reshape(2, *x.shape), grid.shape)
    data *= np.float32(scale)
    data[flags != 0] = np.nan
    return Warped(data=data, sigma=chip.noise.sigma * scale, flux_scale=scale, registration=how)


def _placement(
    chip: CalibratedChip,
    first: CalibratedChip,
    found: Registration | None,
    sky: np.ndarray,
    config: StackConfig,
) -> tuple[np.ndarray, str]:
    """Return (pixels float64 [2, n] of the exposure at sky positions [2, n], how they were found)."""
    by_wcs = np.stack(chip.raw.wcs.all_world2pix(*sky, 0, quiet=True))
    if found is None:
        return by_wcs, "WCS"
    stars = first.stars
    true = template_position(found, stars.x, stars.y)
    guess = np.stack(
        chip.raw.wcs.all_world2pix(*first.raw.wcs.all_pix2world(stars.x, stars.y, 0), 0, quiet=True)
    )
    rows, columns = chip.image.shape
    inside = np.isfinite(guess).all(axis=0) & (true > 0).all(axis=0) & (true[0] < columns) & (true[1] < rows)
    design = np.stack([guess[0], guess[1], np.ones_like(guess[0])], axis=1)
    solution, *_ = np.linalg.lstsq(design[inside], true[:, inside].T, rcond=None)
    rms = float(np.sqrt(np.mean((design[inside] @ solution - true[:, inside].T) ** 2)))
    if rms <= config.affine_rms_pix:
        with_one = np.concatenate([by_wcs, np.ones((1, by_wcs.shape[1]))])
        return solution.T @ with_one, f"WCS corrected by {found.n_matched} stars"
    at = first.raw.wcs.all_world2pix(*sky, 0, quiet=True)
    return template_position(found, *at), f"{found.n_matched} stars"


def _flux_scale(
    chip: CalibratedChip, first: CalibratedChip, found: Registration | None, config: StackConfig
) -> float:
    """Return what brings the exposure's counts to those of ``first``."""
    if found is not None:
        expected = template_position(found, first.stars.x, first.stars.y).T
        own = np.stack([chip.stars.x, chip.stars.y], axis=1)
        distance, j = cKDTree(own).query(expected, distance_upper_bound=config.match_pix)
        i = np.flatnonzero(np.isfinite(distance))
        i = i[first.stars.clean[i] & chip.stars.clean[j[i]]]
        ratio = first.stars.flux[i] / chip.stars.flux[j[i]]
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        if len(ratio) >= config.min_flux_stars:
            return float(np.median(ratio))
    if first.raw.zeropoint is None or chip.raw.zeropoint is None:
        raise SkipChip("neither common stars nor zero points relate its fluxes to the first exposure's")
    return 10 ** (0.4 * (first.raw.zeropoint - chip.raw.zeropoint))


def combine(values: np.ndarray, sigma: np.ndarray, config: StackConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean float32 [y, x], 0 where no exposure has data; the number of exposures in each pixel).

    ``values`` float32 [n, y, x] with NaN for no data; weights are 1 / ``sigma``², [n]. What is farther from
    the median than ``clip_sigma`` sigma and ``clip_fraction`` of the median is left out; of two exposures
    that disagree so, the fainter is kept, for cosmic rays and satellites only add light.
    """
    noise = sigma[:, None, None].astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pixels that no exposure has
        middle = np.nanmedian(values, axis=0)
        low = np.nanmin(values, axis=0)
    two = np.isfinite(values).sum(axis=0) == 2
    middle = np.where(two, low, middle)
    # two values differ by sqrt(2) sigma
    allowed = config.clip_sigma * noise * np.where(two, np.float32(2**0.5), np.float32(1))
    keep = np.isfinite(values) & (np.abs(values - middle) <= allowed + config.clip_fraction * np.abs(middle))
    weight = keep / noise**2
    total = weight.sum(axis=0)
    mean = np.where(keep, values, 0.0) * weight
    mean = np.where(total > 0, mean.sum(axis=0) / np.maximum(total, 1e-30), 0.0)
    return mean.astype(np.float32), keep.sum(axis=0)
