"""Fluxes of the same stars in two images of one grid, and the ratio of their scales that they show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.box_photometry import MAX_NEIGHBOURS, box_fluxes
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip

WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class StarRatioConfig:
    """Which stars are compared."""

    block_pix: int = 512  # one PSF each: half a cell, over which a PSF changes by less than 1 %
    stars_per_block: int = 40  # brightest first; 36 of S/N 50 give 0.3 %
    faintest_snr: float = 15.0  # of the flux in the star list: fainter stars add nothing but blends
    core_fwhm: float = 2.0  # radius of the fitted disc; half of it is level
    psf_error: float = 0.02  # of the PSF, so that bright stars are not fitted on their peaks alone
    fewest_clean: int = 8  # a block with fewer clean stars takes all
    least_share: float = 0.9  # of a disc must be good
    farthest_pix: float = 0.7  # a fit that moves farther has gone to another star


@dataclass(frozen=True, kw_only=True)
class StarRatios:
    """Common stars: pixels, science flux over template flux, and its error from the pixels' noise alone."""

    x: np.ndarray
    y: np.ndarray
    ratio: np.ndarray
    error: np.ndarray
    snr: np.ndarray  # of the fainter of the two

    def __len__(self) -> int:
        """Return the number of stars."""
        return len(self.x)


def star_ratios(chip: CalibratedChip, template: AlignedTemplate, config: StarRatioConfig) -> StarRatios:
    """Return the flux ratios of the stars of the science list that both images show.

    In blocks, the brightest stars of each: PSF fluxes at the science positions, neighbours and a local level
    fitted with them, each image with its own PSF. The template's are moved by the shift that a block's stars
    have in common. Stamps that end hold less than all light; what both lack alike cancels.
    """
    shape = chip.image.shape
    blocks = Cells(values=np.empty(cell_grid(shape, config.block_pix)), shape=shape).boxes()
    stars = np.stack([chip.stars.x, chip.stars.y])
    order = np.argsort(-chip.stars.flux, kind="stable")
    inside = (stars[0] > -0.5) & (stars[0] < shape[1] - 0.5) & (stars[1] > -0.5) & (stars[1] < shape[0] - 0.5)
    order = order[inside[order]]
    tree = cKDTree(stars.T)
    cells = Cells(values=np.empty(cell_grid(shape, config.block_pix)), shape=shape)
    j, i = cells.cell_of(stars[0, order], stars[1, order])
    which = j * cells.values.shape[1] + i
    members = np.argsort(which, kind="stable")
    first = np.searchsorted(which[members], np.arange(len(blocks) + 1))

    def one(k: int) -> np.ndarray:
        own = order[members[first[k] : first[k + 1]]]
        _, _, rows, columns = blocks[k]
        middle = ((columns.start + columns.stop - 1) / 2, (rows.start + rows.stop - 1) / 2)
        return _block(chip, template, (stars, tree), own, middle, config)

    with ThreadPoolExecutor(WORKERS) as pool:
        found = np.concatenate([np.empty((5, 0)), *pool.map(one, range(len(blocks)))], axis=1)
    return StarRatios(x=found[0], y=found[1], ratio=found[2], error=found[3], snr=found[4])


def _block(chip, template, stars, own: np.ndarray, middle: tuple[float, float], config) -> np.ndarray:
    """Return [5, n] of `StarRatios` of the stars ``own``, brightest first."""
    place, tree = stars
    targets = _targets(chip, own, middle, config)
    if not len(targets):
        return np.empty((5, 0))
    width = max(float(psf.fwhm.at(*middle)) for psf in (chip.psf, template.psf))
    core = int(np.ceil(config.core_fwhm * width))
    _, near = tree.query(place[:, targets].T, k=MAX_NEIGHBOURS + 1, distance_upper_bound=core + 2 * width)
    near = np.atleast_2d(near)[:, 1:].astype(np.int64)
    near[near == place.shape[1]] = -1
    science = _measured(chip, place, targets, near, middle, core, config)
    reference = _measured(template, place, targets, near, middle, core, config)
    fine = np.isfinite(science[0]) & np.isfinite(reference[0])
    if not fine.any():
        return np.empty((5, 0))
    shift = np.median((reference - science)[2:4, fine], axis=1)
    if np.hypot(*shift) > 0.03:
        # half a pixel loses 3 % of a flux where the move is only linear
        moved = place + np.clip(shift, -2, 2)[:, None]
        reference = _measured(template, moved, targets, near, middle, core, config)
    with np.errstate(invalid="ignore"):
        fine = np.isfinite(science[0]) & np.isfinite(reference[0])
        fine &= np.minimum(science[4], reference[4]) >= config.least_share
        fine &= np.hypot(*science[2:4]) < config.farthest_pix
        fine &= np.hypot(*reference[2:4]) < config.farthest_pix
    s, r = science[:, fine], reference[:, fine]
    ratio = s[0] / r[0]
    noise = np.hypot(s[1] / s[0], r[1] / r[0])
    snr = np.minimum(s[0] / s[1], r[0] / r[1])
    return np.stack([*place[:, targets[fine]], ratio, ratio * noise, snr])


def _targets(chip: CalibratedChip, own: np.ndarray, middle, config: StarRatioConfig) -> np.ndarray:
    """Return the stars of a block to measure: bright, clean where there are enough."""
    if not len(own):
        return own
    sky = float(chip.image.sky_variance.at(*middle))
    area = 2.27 * float(chip.psf.fwhm.at(*middle)) ** 2  # pixels that a Gaussian PSF's noise comes from
    flux = chip.stars.flux[own]
    bright = flux > config.faintest_snr * np.sqrt(sky * area + np.maximum(flux, 0.0) / chip.gain)
    clean = bright & chip.stars.clean[own]
    chosen = clean if clean.sum() >= config.fewest_clean else bright
    return own[chosen][: config.stars_per_block]


def _measured(image, place, targets, near, middle, core, config) -> np.ndarray:
    """Return `box_fluxes` of one image."""
    sky = float(image.image.sky_variance.at(*middle))
    noise = np.empty((3, len(targets)))
    noise[:] = np.array([sky, 1.0 / image.gain, config.psf_error])[:, None]
    psf = image.psf.at(*middle)
    return box_fluxes(image.image.data, image.image.flags, psf, place, targets, near, noise, core=core)
