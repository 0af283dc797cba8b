"""How large a share of a stack each of its frames has: the waves of its phases in the stars' widths tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.numerics.phase_waves import Frames, fitted, region_of
from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders
from ks4diff.numerics.psf_modes import radii
from ks4diff.numerics.scatter import excess_scatter
from ks4diff.stages.psf_clean import as_wide_as_neighbours, stamp_variance, widths
from ks4diff.stages.psf_stars import Sample
from ks4diff.stages.psf_waves import Waves, patterns, waves_at

SHARE = 0.3  # of an equal share: by how much a frame's may be another, and a region's beyond that
FEW_IN_REGION = 8  # stars
LEAST_SCATTER = 0.006  # of the peak that stars scatter by beyond their noise
MOST_ORDER = 3


def find_waves(sample: Sample, mean: np.ndarray, fwhm: float, frames: Frames, borders: Borders) -> Waves:
    """Return the waves that a stack's ``frames`` make in stars about a ``mean`` stamp [n, n].

    A mean of dithers has an equal share of each. A median has more of those between the others, so shares are
    fitted to how broad stars are along x and y, beyond a polynomial and steps at ``borders``, as if known
    within `SHARE`.
    """
    core = radii(mean.shape[0]) <= 1.5 * fwhm
    value, error = widths(sample, mean, core)
    calm = as_wide_as_neighbours(sample, value, error, borders.shape)
    some = sample.only(calm)
    value, error = _breadths(some, mean, core)
    place = np.stack([some.x, some.y])
    covers = frames.covers(*place)
    region = region_of(covers)
    held, many = np.unique(region, return_counts=True)
    regions = held[many >= FEW_IN_REGION]
    waves = Waves(
        frames=frames,
        regions=regions,
        shares=np.concatenate([np.ones((len(covers), 1)), np.zeros((len(covers), len(regions)))], axis=1),
        level=np.zeros(len(patterns(mean))),
        lost=np.zeros(len(patterns(mean))),
    )
    shown = waves_at(frames, *place, averaged=False)
    if len(some.x):
        waves = replace(
            waves, shares=waves.shares + _more_shares(waves, (place, value, error), shown, borders)
        )
    own = np.einsum("fn,fpn->pn", waves.shares_at(*place), shown)
    waves = replace(waves, level=own.mean(axis=1))
    lost = own - waves.level[:, None] - waves.at(*place, averaged=True)
    return replace(waves, lost=lost.var(axis=1))


def _more_shares(waves: Waves, stars, shown: np.ndarray, borders: Borders) -> np.ndarray:
    """Return float64 [frames, 1 + regions]: by how much shares are beyond an equal one."""
    place, value, error = stars
    n = place.shape[1]
    order = max(d for d in range(MOST_ORDER + 1) if d == 0 or n >= 8 * (d + 1) * (d + 2) / 2)
    smooth = terms(*(place / np.array(borders.shape[::-1])[:, None] * 2 - 1), order)
    smooth = np.concatenate([smooth, borders.beyond(*place).T], axis=1)
    covers = waves.frames.covers(*place)
    member = np.concatenate([np.ones((1, n)), region_of(covers) == waves.regions[:, None]])
    equal = covers / np.maximum(covers.sum(axis=0), 1)
    # of the blur a first and a second harmonic's cosines show as its strength times these
    half = shown.shape[1] // 2
    blur = np.stack([equal * _breadth_of(shown[:, k * half : (k + 1) * half]) for k in (0, 1)])
    waved = (blur[:, :, None] * member[None, None]).reshape(2, -1, n)
    off = value - blur.sum(axis=1)
    design = np.zeros((2, n, 2, smooth.shape[1]))
    design[0, :, 0], design[1, :, 1] = smooth, smooth
    sigma = np.hypot(error, LEAST_SCATTER)
    for _ in range(2):
        found, rest = fitted(
            design.reshape(2 * n, -1),
            np.concatenate(list(waved), axis=1),
            off.ravel(),
            sigma.ravel(),
            np.full(waved.shape[1], SHARE),
        )
        scatter = excess_scatter(rest, error.ravel())
        sigma = np.hypot(error, max(scatter, LEAST_SCATTER))
    return found.reshape(len(covers), -1)


def _breadth_of(shown: np.ndarray) -> np.ndarray:
    """Return half the variance that the cosines of harmonics [frames, 2 harmonics, n] stand for, pixels²."""
    return -(shown[:, 0] + shown[:, 2] / 4) / (2 * np.pi**2)


def _breadths(sample: Sample, mean: np.ndarray, core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (half the variance that each star has beyond the mean along x and y, errors) [2, k], pixels².

    Its flux and place are free.
    """
    down, along = np.gradient(mean)
    # the first harmonics' cosines stand for -1 / (2 pi²) of it
    broader = -2 * np.pi**2 * patterns(mean)[[0, 4]]
    design = np.stack([mean, along, down, *broader])[:, core]
    weight = sample.known[:, core] / stamp_variance(sample, mean[core])
    off = sample.stamps[:, core] - mean[core].astype(np.float32)
    gram = np.einsum("kp,ap,bp->kab", weight, design, design, optimize=True)
    gram[:, np.arange(5), np.arange(5)] *= 1 + 1e-6
    covariance = np.linalg.inv(gram)
    found = np.einsum("kab,kb->ka", covariance, (weight * off) @ design.T)
    return found[:, 3:].T, np.sqrt(np.einsum("kaa->ka", covariance)[:, 3:]).T
