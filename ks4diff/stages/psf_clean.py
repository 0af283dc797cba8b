"""Stars that show the PSF: their noise, who of them is none, and the light that is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_modes import radii
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.stages.psf_stars import Sample

MODEL_FLOOR = 0.005  # of the peak: what centring and sampling add to a star's own noise
WIDTH_FLOOR = 0.02  # of the peak: stars of a 512 px square may differ by so much at a border of a stack
PIXEL_CUT = 4.5  # sigma: cosmic rays and unseen neighbours
MEDIAN_STARS = 300  # of all stars of an image, spread evenly
PARTS = 8  # of a stamp's pixels, each of which is looked at apart
GROUP_PIX = 512.0  # of stars that share their noise and their place


def stamp_variance(sample: Sample, psf: np.ndarray) -> np.ndarray:
    """Return float32 [k, ...]: the variance of stamps about a model ``psf`` [...] of sum 1."""
    return sample.variance(psf) + np.float32(MODEL_FLOOR) ** 2 * (psf.astype(np.float32) ** 2 + 1e-12)


def star_weights(sample: Sample, psf: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return float64 [k]: the weight of each star, one for all pixels: of a typical core pixel."""
    return 1.0 / stamp_variance(sample, psf[core]).mean(axis=1, dtype=np.float64)


def by_pixels(work: Callable[[slice], Any], n: int) -> list:
    """Return what ``work`` gives for each of some equal parts of n pixels, on two threads."""
    edges = np.linspace(0, n, PARTS + 1).astype(int).tolist()
    with pool() as threads:
        return list(threads.map(work, [slice(*ends) for ends in pairwise(edges)]))


def weighted_mean(sample: Sample, psf: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return float64 [n, n]: the mean stamp; pixels far off their median do not count."""
    # the median of some hundred is sharp enough to clip about
    some = slice(None, None, max(len(sample.x) // MEDIAN_STARS, 1))
    weight = star_weights(sample, psf, core).astype(np.float32)[:, None]
    stamps, known = (a.reshape(len(a), -1) for a in (sample.stamps, sample.known))

    def part(pixels: slice) -> np.ndarray:
        middle = np.median(stamps[some, pixels], axis=0)
        off = stamps[:, pixels] - middle
        spread = 1.4826 * np.median(np.abs(off[some]), axis=0)
        kept = weight * (known[:, pixels] & (np.abs(off) <= 3.5 * spread + 1e-12))
        total = kept.sum(axis=0, dtype=np.float64)
        return middle + (kept * off).sum(axis=0, dtype=np.float64) / np.maximum(total, 1e-30)

    return np.concatenate(by_pixels(part, psf.size)).reshape(psf.shape)


def groups(sample: Sample, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Return (the group of each star, how many there are): stars of a 512 px square and of one region."""
    squares = Cells(values=np.zeros(cell_grid(shape, GROUP_PIX)), shape=shape)
    j, i = squares.cell_of(sample.x, sample.y)
    key = (j * squares.values.shape[1] + i) * (1 << 20) + sample.region
    held, group = np.unique(key, return_inverse=True)
    return group, len(held)


def widths(sample: Sample, psf: np.ndarray, core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (how much broader than the PSF each star is, the error of that), float64 [k].

    Width is the strength of the PSF's Laplacian in the stamp, as a fraction of the peak.
    """
    broader = ndimage.laplace(psf)
    broader /= -broader[psf.shape[0] // 2, psf.shape[0] // 2] / psf.max()
    weight = 1.0 / stamp_variance(sample, psf[core])
    p, b = psf[core], broader[core]
    off = sample.stamps[:, core] - p
    # freed of the flux
    pp, pb, bb = (weight * p * p).sum(1), (weight * p * b).sum(1), (weight * b * b).sum(1)
    po, bo = (weight * off * p).sum(1), (weight * off * b).sum(1)
    det = bb - pb * pb / pp
    return (bo - po * pb / pp) / det, 1 / np.sqrt(det)


def as_wide_as_neighbours(
    sample: Sample, value: np.ndarray, error: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Return bool [k]: which stars are as broad as most around them, by their `widths`.

    That of the stars of a group is the middle of the shorter half of all values, which galaxies on one side
    do not shift.
    """
    tolerance, loose = (3 * np.sqrt(error**2 + (k * WIDTH_FLOOR) ** 2) for k in (1, 3))
    keep = np.ones(len(value), dtype=bool)
    group, n = groups(sample, shape)
    most = {int(r): _shorter_half(value[sample.region == r]) for r in np.unique(sample.region)}
    for g in range(n):
        own = np.flatnonzero(group == g)
        # six show where most are
        if len(own) < 6:
            middle, wide = most[int(sample.region[own[0]])], loose[own]
        else:
            middle, wide = _shorter_half(value[own]), tolerance[own]
        keep[own] = np.abs(value[own] - middle) <= wide
    return keep


def _shorter_half(values: np.ndarray) -> float:
    """Return the middle of the shortest interval that holds half of the values."""
    ordered = np.sort(values)
    h = (len(ordered) + 1) // 2
    width = ordered[h - 1 :] - ordered[: len(ordered) - h + 1]
    k = int(np.argmin(width))
    return float(ordered[k + (h - 1) // 2] + ordered[k + h // 2]) / 2


def calibrated(sample: Sample, psf: np.ndarray, fwhm: float) -> Sample:
    """Return the sample without the pedestal of unseen neighbours and of the background's error.

    It is the same light around every star: over the flux, it falls with 1 / flux while the PSF's own wings
    stay, so a regression on 1 / flux tells one from the other.
    """
    n = psf.shape[0]
    ring = np.flatnonzero(radii(n) > min(2.5 * fwhm, 0.6 * (n // 2)))
    stamps, known = (a.reshape(len(a), -1) for a in (sample.stamps, sample.known))

    def part(pixels: slice) -> np.ndarray:
        at = ring[pixels]
        model = psf.ravel()[at]
        off = np.where(known[:, at], stamps[:, at] - model.astype(np.float32), np.float32(0))
        off[off**2 > PIXEL_CUT**2 * stamp_variance(sample, model)] = 0
        return off.sum(axis=1, dtype=np.float64)

    # the mean, as of the PSF: a sky's median is below its mean, by 0.2 % of the light in rich fields
    level = sum(by_pixels(part, len(ring))) / len(ring)
    faintness = 1 / sample.flux
    weight = sample.flux**2 / sample.sky
    weight = np.minimum(weight, 16 * np.median(weight))
    low, high = np.percentile(sample.flux, (10, 90))
    if len(sample.x) < 30 or high < 3 * low:
        return sample
    keep = np.ones(len(level), dtype=bool)
    for _ in range(4):
        w = weight * keep
        mf, ml = np.average(faintness, weights=w), np.average(level, weights=w)
        spread = np.average((faintness - mf) ** 2, weights=w)
        slope = np.average((faintness - mf) * (level - ml), weights=w) / spread
        off = (level - ml - slope * (faintness - mf)) * np.sqrt(weight)
        keep = np.abs(off) <= 3 * 1.4826 * np.median(np.abs(off))
    stamps = sample.stamps - (slope * faintness).astype(np.float32)[:, None, None]
    return Sample(**{**vars(sample), "stamps": stamps})
