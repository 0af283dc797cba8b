"""Build the PSF that varies over an image from the stamps of its stars."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.psf_grid import taper
from ks4diff.numerics.psf_modes import (
    calm_wings,
    change_basis,
    local_means,
    modes_above_noise,
    polynomial,
    radii,
    terms,
)
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.psf import PsfField
from ks4diff.stages.psf_clean import (
    GROUP_PIX,
    as_wide_as_neighbours,
    calibrated,
    groups,
    stamp_variance,
    star_weights,
    weighted_mean,
)
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_errors import Amplitudes, packed
from ks4diff.stages.psf_stars import Sample

FADE = 0.85  # of the half-width: there a stamp begins to fade, or its border would ring through every filter
CHI2_CUT = 2.5  # times the median: galaxies and blends
PIXEL_CUT = 4.5  # sigma: cosmic rays and unseen neighbours
FEW = 40  # stars: with fewer the PSF is one
SCALES_PIX = (
    300.0,
    130.0,
)  # sigma of the local averages: how close a border of a stack is followed


def build_field(
    sample: Sample, before: PsfField, fwhm: float, config: PsfConfig, *, rounds: int
) -> tuple[PsfField, Sample]:
    """Return (field, the stars that it rests on).

    Stars broader or sharper than their neighbours are dropped (galaxies, cosmic rays), then those that the
    model does not fit. Modes are the patterns in which groups of stars differ beyond their noise; their
    amplitudes are polynomials plus local averages, shrunk by significance. Mean and modes are at last
    regressed from the full stamps on those amplitudes, the wings smoothed. Modes, amplitudes and rejection
    take ``rounds``.
    """
    shape = before.amplitudes.shape
    n = before.mean.shape[0]
    core = radii(n) <= 1.5 * fwhm
    mean = weighted_mean(sample, before.mean, core)
    sample = sample.only(as_wide_as_neighbours(sample, mean, core, shape))
    sample = calibrated(sample, mean, fwhm)
    coefficients = weighted_mean(sample, mean, core)[None]
    amplitudes = _none(sample)
    for _ in range(rounds):
        if len(sample.x) >= FEW:
            modes = _modes(sample, coefficients[0], fwhm, shape, config)
            amplitudes = _amplitudes(sample, coefficients[0], modes, shape, config)
        coefficients, chi2 = _regressed(sample, coefficients, amplitudes.at_stars, core)
        keep = chi2 <= CHI2_CUT * max(np.median(chi2), 1.0)
        sample = sample.only(keep)
        amplitudes = Amplitudes(
            maps=amplitudes.maps, variances=amplitudes.variances, at_stars=amplitudes.at_stars[:, keep]
        )
    # stars come scaled by the flux of their cores; with every PSF of sum 1 the field is linear in amplitudes
    sums = _finished(coefficients, fwhm, level=False).sum(axis=(1, 2))
    total = (1 + (sums[1:] / sums[0]) @ amplitudes.at_stars).astype(np.float32)
    level = Sample(**{**vars(sample), "stamps": sample.stamps / total[:, None, None]})
    coefficients, _ = _regressed(level, coefficients, amplitudes.at_stars, core)
    shown = _finished(coefficients, fwhm)
    return packed(sample, shown, amplitudes, core, shape), sample


def _modes(
    sample: Sample, mean: np.ndarray, fwhm: float, shape: tuple[int, int], config: PsfConfig
) -> np.ndarray:
    """Return [m, n, n]: patterns of change within 2.5 FWHM, of largest value 1 each."""
    n = mean.shape[0]
    window = taper(n, 1.5 * fwhm, 2.5 * fwhm)
    inside = window > 0
    group, count = groups(sample, shape)
    squares = Cells(values=np.zeros(cell_grid(shape, GROUP_PIX)), shape=shape)
    weight = star_weights(sample, mean, radii(n) <= 1.5 * fwhm)
    known = sample.known[:, inside]
    off = np.where(known, sample.stamps[:, inside] - mean[inside].astype(np.float32), np.float32(0))
    sigma = np.sqrt(stamp_variance(sample, mean[inside]))
    off = np.clip(off, -5 * sigma, 5 * sigma)
    # every other star of a group, brightest first, to either half
    order = np.lexsort((-sample.flux, group))
    rank = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    side = np.empty(len(order), dtype=int)
    side[order] = rank % 2
    sums = np.zeros((2, count, off.shape[1]))
    totals = np.zeros((2, count))
    for s in (0, 1):
        part = np.zeros((count, len(group)))
        mine = side == s
        part[group[mine], np.flatnonzero(mine)] = weight[mine]
        totals[s] = part.sum(axis=1)
        sums[s] = part @ off
    both = (totals > 0).all(axis=0)
    totals, sums = totals[:, both], sums[:, both]
    scale = np.sqrt(4 / (1 / totals[0] + 1 / totals[1]))
    pixel = np.sqrt((weight[:, None] * sigma**2).mean(axis=0)) / window[inside]
    means = sums / totals[:, :, None] * scale[:, None] / pixel
    basis = change_basis(mean, fwhm)[:, inside] / pixel
    place = np.stack(squares.middles()).reshape(2, -1)[:, both] / np.array(shape[::-1])[:, None] * 2 - 1
    found = modes_above_noise(means, basis, place, scale, config.max_modes)
    out = np.zeros((len(found), n, n))
    out[:, inside] = found * pixel
    return out / np.abs(out).max(axis=(1, 2), keepdims=True) * mean.max() if len(out) else out


def _none(sample: Sample) -> Amplitudes:
    empty = np.empty((0, 1, 1))
    return Amplitudes(maps=empty, variances=empty, at_stars=np.empty((0, len(sample.x))))


def _amplitudes(
    sample: Sample, mean: np.ndarray, modes: np.ndarray, shape: tuple[int, int], config: PsfConfig
) -> Amplitudes:
    """Return the modes' amplitudes over the image from their fit to every star."""
    grid = cell_grid(shape, config.node_pix)
    nodes = Cells(values=np.zeros(grid), shape=shape)
    m = len(modes)
    if m == 0:
        return _none(sample)
    inside = (modes != 0).any(axis=0)
    v = modes[:, inside]
    off = sample.stamps[:, inside] - mean[inside].astype(np.float32)
    weight = sample.known[:, inside] / stamp_variance(sample, mean[inside])
    design = np.concatenate([mean[None, inside], v])
    gram = np.einsum("kp,ap,bp->kab", weight, design, design, optimize=True)
    gram[:, np.arange(m + 1), np.arange(m + 1)] *= 1 + 1e-6
    covariance = np.linalg.inv(gram)
    fit = np.einsum("kab,kb->ka", covariance, (weight * off) @ design.T)[:, 1:].T
    error = np.sqrt(np.einsum("kaa->ka", covariance))[:, 1:].T
    nx, ny = (a.ravel() for a in nodes.middles())
    size = np.array(shape[::-1])[:, None] / 2
    place = np.stack([sample.x, sample.y]) / size - 1
    node_place = np.stack([nx, ny]) / size - 1
    kernels = [_kernel(nodes, (sample.x, sample.y), sigma) for sigma in SCALES_PIX]
    maps, variances = np.zeros((m, *grid)), np.zeros((m, *grid))
    for a in range(m):
        value, sigma = fit[a], error[a]
        order, polynomial_fit, polynomial_covariance = polynomial(place, value, sigma, config.max_order)
        design = terms(*node_place, order)
        # where no star is, a polynomial goes no farther than at the stars
        held = terms(*place, order) @ polynomial_fit
        maps[a] = np.clip(design @ polynomial_fit, held.min(), held.max()).reshape(grid)
        variances[a] = np.einsum("ki,ij,kj->k", design, polynomial_covariance, design).reshape(grid)
        for kernel in kernels:
            now = Cells(values=maps[a], shape=shape)
            rest = value - now.at(sample.x, sample.y)
            scatter = 1.4826 * np.median(np.abs(rest / sigma))
            wide = sigma * max(scatter, 1.0)
            # a galaxy left over must not bend the map
            rest = np.clip(rest, -4 * wide, 4 * wide)
            mean_rest, variance = local_means(kernel, rest, wide, grid)
            maps[a] += mean_rest
            variances[a] += variance
    at_stars = Cells(values=maps, shape=shape).at(sample.x, sample.y)
    # about the mean star, so that the mean of the regression is a PSF and not an extrapolation
    middle = at_stars.mean(axis=1)
    maps, at_stars = maps - middle[:, None, None], at_stars - middle[:, None]
    return Amplitudes(maps=maps, variances=variances, at_stars=at_stars)


def _kernel(nodes: Cells, stars: tuple[np.ndarray, np.ndarray], sigma: float) -> np.ndarray:
    """Return float32 [nodes, stars]: a Gaussian of the distance, 0 beyond 3 sigma along either axis."""
    nx, ny = nodes.middles()
    across, down = (
        np.exp(-0.5 * ((at[:, None] - star) / sigma) ** 2).astype(np.float32)
        for at, star in ((nx[0], stars[0]), (ny[:, 0], stars[1]))
    )
    across[across < 0.011] = 0
    down[down < 0.011] = 0
    return (down[:, None, :] * across[None, :, :]).reshape(-1, len(stars[0]))


def _regressed(
    sample: Sample, before: np.ndarray, amplitudes: np.ndarray, core: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean and modes [1 + m, n, n], chi² per core pixel of each star) from the full stamps.

    Weighted least squares pixel by pixel; pixels that are masked or far off show the model of before.
    """
    n = sample.stamps.shape[1]
    design = np.concatenate([np.ones((1, len(sample.x))), amplitudes]).astype(np.float32)
    weight = star_weights(sample, before[0], core)
    weighted = design.astype(np.float64) * weight
    gram = weighted @ design.T.astype(np.float64)
    gram[np.diag_indices(len(gram))] *= 1 + 1e-6
    solver = np.linalg.solve(gram, weighted).astype(np.float32)
    flat = sample.stamps.reshape(len(sample.x), -1)
    known = sample.known.reshape(flat.shape)
    sigma2 = stamp_variance(sample, before[0].ravel())
    now = np.zeros((len(design), n * n), dtype=np.float32)
    now[: len(before)] = before.reshape(len(before), -1)[: len(design)]
    if len(before) != len(design):
        now = solver @ np.where(known, flat, now[0])
    for _ in range(2):
        off = flat - design.T @ now
        far = ~known | (off**2 > PIXEL_CUT**2 * sigma2)
        off[far] = 0
        now = now + solver @ off
    off = flat - design.T @ now
    chi2 = np.where(known, off**2 / sigma2, 0)[:, core.ravel()].mean(axis=1)
    return now.astype(np.float64).reshape(-1, n, n), chi2


def _finished(coefficients: np.ndarray, fwhm: float, *, level: bool = True) -> np.ndarray:
    """Return mean and modes with calm wings, faded to 0 at the border; ``level``: of sum 1 and 0."""
    n = coefficients.shape[1]
    fade = taper(n, FADE * (n // 2), n // 2 + 0.5)
    out = np.stack([calm_wings(stamp, fwhm) for stamp in coefficients]) * fade
    # a change of width by 5 % moves a Moffat's wings beyond 3 FWHM by 1e-4 of the peak: less than their noise
    out[1:] *= taper(n, 2.0 * fwhm, 3.5 * fwhm)
    if not level:
        return out
    out /= out[0].sum()
    out[1:] -= out[1:].sum(axis=(1, 2), keepdims=True) * out[0]
    return out
