"""Fluxes of the same sources in two images of one grid, and the ratio of their scales that they show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ks4diff.numerics.pair_photometry import CommonWeights, common_weights, kernels_of, pair_sums
from ks4diff.numerics.pools import pool
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.psf import PsfField

WIDTH_STEP = 0.05  # of the weights' logarithm: parts of like PSFs share theirs


@dataclass(frozen=True, kw_only=True)
class StarRatioConfig:
    """Which sources are compared, and over what disc."""

    block_pix: int = 256  # one pair of PSFs each: as finely as a PSF follows the borders of a stack
    stars_per_block: int = 10  # brightest first; 36 of S/N 50 in four blocks give 0.3 %
    stars_in_all: int = 40  # at least, also where blocks are few
    faintest_snr: float = 15.0  # of the flux in the star list: fainter stars add nothing but blends
    enough_clean: int = 20  # over a chip: then unclean ones, among them cosmic rays, are left out
    farthest_ratio: float = 1.5  # from the chip's median
    in_either: float = 5.0  # S/N in each image: what only one shows is no star
    least_snr: float = 20.0  # of both images together, and ...
    # ... where a block has enough, this: a median of unlike exposures shows faint stars as their mean would,
    # with a core that was 5 % fainter at S/N 30 than at 500
    better_snr: float = 60.0
    enough_in_block: int = 4  # to have a middle of its own
    width: float = 1.4  # of the weights over the common PSF's: an error of a PSF's width of 1 % costs 0.3 %
    level_width: float = 2.0  # of the level's weights over these: its noise adds a tenth
    unlike: float = 0.01  # of the peak: PSFs that differ by more, across a border, are not those of one block
    inner_fwhm: float = 2.0  # radius within which every pixel must be good


@dataclass(frozen=True, kw_only=True)
class StarRatios:
    """Common sources: pixels, science flux over template flux, its error from the pixels' noise alone."""

    x: np.ndarray
    y: np.ndarray
    ratio: np.ndarray
    error: np.ndarray
    snr: np.ndarray  # of both images together

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self.x)


def star_ratios(chip: CalibratedChip, template: AlignedTemplate, config: StarRatioConfig) -> StarRatios:
    """Return the flux ratios of the brightest sources of the science list, block by block.

    Each image is seen through the other's PSF, so that both show the same scene with the same PSF, and both
    are summed with the same weights: blends, galaxies and unseen neighbours cancel, which they do not where
    each image is fitted with its own PSF (the wider one holds more of them: +1 % at 1.4 times the FWHM).
    Zackay, Ofek & Gal-Yam (2016) ask for the same: a scale at which filtered static stars leave nothing.
    """
    shape = chip.image.shape
    cells = Cells(values=np.empty(cell_grid(shape, config.block_pix)), shape=shape)
    boxes = cells.boxes()
    wanted = max(config.stars_per_block, config.stars_in_all // len(boxes))
    config = replace(config, stars_per_block=wanted)
    s = chip.stars
    order = np.argsort(-s.flux, kind="stable")
    inside = (s.x > -0.5) & (s.x < shape[1] - 0.5) & (s.y > -0.5) & (s.y < shape[0] - 0.5)
    order = order[inside[order]]
    if s.clean[order].sum() >= config.enough_clean:
        order = order[s.clean[order]]
    j, i = cells.cell_of(s.x[order], s.y[order])
    middles = np.array([[(a.start + a.stop - 1) / 2 for a in (columns, rows)] for *_, rows, columns in boxes])
    place = np.stack([s.x[order], s.y[order]])
    which, at = _alike((chip.psf, template.psf), place, j * cells.values.shape[1] + i, middles.T, config)
    members = np.argsort(which, kind="stable")
    first = np.searchsorted(which[members], np.arange(at.shape[1] + 1))
    there = [_Middles.of(part, *at) for part in (chip, template)]
    weights = _weights((chip.psf, template.psf), there, config)

    def one(k: int) -> np.ndarray:
        own = order[members[first[k] : first[k + 1]]]
        own = _targets(chip, own, there[0], k, config)
        kernels = kernels_of(weights[k], there[0].psf[k], there[1].psf[k])
        table = _block(chip, template, own, there, k, kernels, config)
        return np.concatenate([table, np.full((1, table.shape[1]), float(k))])

    with pool() as threads:
        found = np.concatenate([np.empty((7, 0)), *threads.map(one, range(at.shape[1]))], axis=1)
    return _ratios(found, config)


def _alike(
    psfs: tuple[PsfField, PsfField],
    place: np.ndarray,
    block: np.ndarray,
    middles: np.ndarray,
    config: StarRatioConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (part int64 [k], where each part's PSFs are taken [2, p]) of sources at ``place`` [2, k].

    Parts are the blocks, with the PSFs of their ``middles`` [2, b], less the sources whose own differ by more
    than `unlike`, across a border of a stack: parts of their own, with the PSFs of the brightest source.
    """
    points = np.concatenate([middles, place], axis=1)
    strength = [np.abs(psf.modes).max(axis=(1, 2), initial=0) / psf.mean.max() for psf in psfs]
    change = [psf.amplitudes.at(*points) * much[:, None] for psf, much in zip(psfs, strength, strict=True)]
    usual, own = np.split(np.concatenate(change), [middles.shape[1]], axis=1)
    part, at = np.empty_like(block), middles
    number, left = np.arange(middles.shape[1]), np.arange(len(block))
    while len(left):
        far = np.abs(own[:, left] - usual[:, block[left]]).max(axis=0, initial=0) > config.unlike
        part[left[~far]] = number[block[left[~far]]]
        left = left[far]
        lead = left[np.unique(block[left], return_index=True)[1]]
        number[block[lead]] = at.shape[1] + np.arange(len(lead))
        usual[:, block[lead]] = own[:, lead]
        at = np.concatenate([at, place[:, lead]], axis=1)
    return part, at


@dataclass(frozen=True, kw_only=True)
class _Middles:
    """What an image is like in the middles of parts [k]: the sky's variance, its FWHM and PSF.

    ``psf`` [k, b] is how much of each of the field's `basis`; ``noise`` [k, 2] the variance of sky that
    smooth weights see, correlation included, and that per count.
    """

    sky: np.ndarray
    fwhm: np.ndarray
    psf: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, part: CalibratedChip | AlignedTemplate, x: np.ndarray, y: np.ndarray) -> _Middles:
        """Return those of an image, all at once: block by block they take as long as the sums themselves."""
        sky = part.image.sky_variance.at(x, y)
        alike = max(float(part.noise.correlation.sum()), 1.0)
        noise = np.stack([sky * alike, np.full(len(sky), 1.0 / part.gain)], axis=1)
        return cls(sky=sky, fwhm=part.psf.fwhm.at(x, y), psf=part.psf.shares(x, y), noise=noise)


def _targets(
    chip: CalibratedChip, own: np.ndarray, there: _Middles, k: int, config: StarRatioConfig
) -> np.ndarray:
    """Return the sources of block ``k`` to measure, brightest first."""
    area = 2.27 * there.fwhm[k] ** 2  # pixels that a Gaussian PSF's noise comes from
    flux = chip.stars.flux[own]
    bright = flux > config.faintest_snr * np.sqrt(there.sky[k] * area + np.maximum(flux, 0.0) / chip.gain)
    return own[bright]


def _weights(
    psfs: tuple[PsfField, PsfField], there: list[_Middles], config: StarRatioConfig
) -> list[CommonWeights]:
    """Return the weights of each part."""
    narrow = config.width * np.hypot(*(image.fwhm for image in there)) / 2.3548
    step = np.rint(np.log(narrow) / WIDTH_STEP)
    bases = [psf.basis() for psf in psfs]
    made = {
        n: common_weights(*bases, width, config.level_width * width)
        for n in np.unique(step)
        if (width := float(np.exp(WIDTH_STEP * n)))
    }
    return [made[n] for n in step]


def _block(
    chip, template, own: np.ndarray, there, k: int, kernels: np.ndarray, config: StarRatioConfig
) -> np.ndarray:
    """Return [6, n]: x, y, both fluxes and their errors of as many sources of block ``k`` as are wanted."""
    if not len(own):
        return np.empty((6, 0))
    widths = [float(image.fwhm[k]) for image in there]
    noise = np.stack([image.noise[k] for image in there])
    x, y = chip.stars.x[own], chip.stars.y[own]
    images = (chip.image.data, template.image.data)
    flags = (chip.image.flags, template.image.flags)
    found = np.empty((4, 0))
    # bad pixels near them cost some: the next brightest fill up
    for start in range(0, len(own), config.stars_per_block):
        some = slice(start, start + config.stars_per_block)
        places = np.stack([np.rint(x[some]), np.rint(y[some])]).astype(np.int64)
        inner = config.inner_fwhm * max(widths)
        found = np.append(found, pair_sums(images, flags, kernels, places, noise, inner=inner), axis=1)
        if np.isfinite(found[0]).sum() >= config.stars_per_block:
            break
    table = np.concatenate([np.stack([x, y])[:, : found.shape[1]], found])
    return table[:, np.isfinite(found[0])][:, : config.stars_per_block]


def _ratios(found: np.ndarray, config: StarRatioConfig) -> StarRatios:
    """Return the ratios of ``found`` [7, n]: x, y, fluxes, errors and block, each about its block's middle.

    Blocks come one after the other.

    A quotient of two noisy fluxes is too large by 1 / (S/N)², and one of sources chosen by one of them by as
    much again; the difference over the best estimate, with which it is not correlated, is neither.
    """
    x, y, first, second, error, other, block = found
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = np.where((first > 0) & (second > 0), first / second, 1e-9)
        fair = (first > config.least_snr * error) & (second > config.least_snr * other)
    if not fair.any():
        empty = np.empty(0)
        return StarRatios(x=empty, y=empty, ratio=empty, error=empty, snr=empty)
    middle = np.full(len(x), np.median(quotient[fair]))
    edges = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(block)]
    blocks = [slice(*ends) for ends in pairwise(edges)]
    for part in blocks:
        # what is second order in the distance from the middle is lost
        if fair[part].sum() >= config.enough_in_block:
            middle[part] = np.median(quotient[part][fair[part]])
    own, its = error**-2.0, (middle * other) ** -2.0
    best = (own * first + its * middle * second) / (own + its)
    snr = best * np.sqrt(own + its)
    seen = (first > config.in_either * error) & (second > config.in_either * other)
    # a cosmic ray on a star, a source that changed: no response and no gain is so far off
    alike = np.abs(np.log(quotient / np.median(quotient[fair]))) < np.log(config.farthest_ratio)
    keep = seen & alike & (snr > config.least_snr)
    for part in blocks:
        better = keep[part] & (snr[part] > config.better_snr)
        if better.sum() >= config.enough_in_block:
            keep[part] = better
    off = (first - middle * second)[keep] / best[keep]
    relative = np.hypot(error, middle * other)[keep] / best[keep]
    return StarRatios(
        x=x[keep],
        y=y[keep],
        ratio=middle[keep] * (1 + off),
        error=middle[keep] * relative,
        snr=snr[keep],
    )
