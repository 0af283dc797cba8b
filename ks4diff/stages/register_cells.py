"""What a registration is worth in each part of the image, and its local refinement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics import polynomial
from ks4diff.numerics.centroid_noise import biweight
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.stages.register_fit import Fit

WITHIN = (-0.45, 0.0, 0.45)  # places in a cell, of its size, at which the map's error is taken


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """When stars refine the map locally, and when a cell of about 1024 px is called bad."""

    local_pix: float = 512.0  # cells of the refinement: tree rings and stack borders are larger
    local_stars: int = 30  # fewer do not tell a shift from their blends
    local_sigma: float = 5.0  # 324 cells of a chip reach 5 sigma by chance once in 900 chips
    floor_pix: float = 0.003  # error of the best map: what a polynomial leaves of KMTNet's distortion
    # of terms that stars do not prove: a KMTNet chip's strongest bend, 50 px half a chip from its middle,
    # is 0.04 px half-way across a cut-out of 256 px, where a few stars' noise would allow 0.2
    bend_pix: float = 50.0
    bend_reach_pix: float = 4608.0
    bad_error_pix: float = 0.15  # of the map: a ghost of 5 % of a star's peak at FWHM 3 px
    bad_rms_pix: float = 0.3  # of the stars' residuals, weighted
    bad_shift_pix: float = 0.05  # mean residual that many stars agree on


def refined(fit: Fit, science: np.ndarray, shape: tuple[int, int], config: CellConfig) -> Cells | None:
    """Return the correction [2, rows, columns] px in cells where many stars agree on it, None if nowhere."""
    grid = Cells(values=np.empty(cell_grid(shape, config.local_pix)), shape=shape)
    j, i = grid.cell_of(*science.T)
    index = j * grid.values.shape[1] + i
    order = np.argsort(index, kind="stable")
    start = np.searchsorted(index[order], np.arange(grid.values.size + 1))
    values = np.zeros((2, grid.values.size), dtype=np.float32)
    for cell in np.flatnonzero(np.diff(start) >= config.local_stars):
        rows = order[start[cell] : start[cell + 1]]
        mean, error = _agreed(fit.residual[rows], fit.sigma[rows])
        if float(np.hypot(*mean)) > config.local_sigma * error:
            values[:, cell] = mean
    if not values.any():
        return None
    return Cells(values=values.reshape(2, *grid.values.shape), shape=shape)


def _agreed(residual: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (mean [2], standard error per axis) of residuals [n, 2] with noise sigma [n], outliers apart.

    About their own median: where the map is off by more than the stars' noise, all of them lie outside its.
    """
    mean = np.median(residual[sigma <= np.median(sigma)], axis=0)
    for _ in range(3):
        weight = biweight(np.hypot(*(residual - mean).T) / sigma, 5.0) / sigma**2
        total = float(weight.sum())
        if total == 0:
            return mean, np.inf
        mean = weight @ residual / total
    return mean, float(np.sqrt((weight**2 * sigma**2).sum())) / total


def told_rms(residual: np.ndarray, telling: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return (rms, what of it is not noise) per axis, px, of residuals [n, 2] of stars that tell (bool [n]).

    Those beyond three times the spread are left out, once: the spread is the median distance / 1.1774, what a
    two-dimensional normal has. ``expected`` [n] is the noise per axis. The second is a standard error low, so
    that noise alone makes none of few stars. (NaN, 0) with fewer than 10.
    """
    distance = np.hypot(*residual[telling].T)
    if len(distance) < 10:
        return np.nan, 0.0
    inside = distance <= 3 * np.median(distance) / 1.1774
    square = 0.5 * float((distance[inside] ** 2).mean())
    noise = float((expected[telling][inside] ** 2).mean())
    return float(np.sqrt(square)), float(np.sqrt(max(square * (1 - inside.sum() ** -0.5) - noise, 0.0)))


def verdicts(
    fit: Fit, science: np.ndarray, residual: np.ndarray, shape: tuple[int, int], config: CellConfig
) -> dict[str, Cells]:
    """Return n_stars, residual_rms, error and bad per cell of about 1024 px; see `Registration`.

    ``residual`` [n, 2] is what the refined map leaves of ``science`` [n, 2] positions.
    """
    grid = Cells(values=np.empty(cell_grid(shape, CELL_PIX)), shape=shape)
    mean, mean_error, n = _means(grid, fit, science, residual)
    j, i = grid.cell_of(*science.T)
    # not by the biweight, which would take a tenth off a normal's rms
    inverse = np.where(fit.weight > 0, fit.sigma**-2, 0.0)
    square = _sums(grid, j, i, inverse * 0.5 * (residual**2).sum(axis=1))
    total = _sums(grid, j, i, inverse)
    with np.errstate(invalid="ignore", divide="ignore"):
        rms = np.where(n >= 3, np.sqrt(square / total), np.nan)
        excess = np.where(n >= 10, np.clip(0.5 * (mean**2).sum(axis=0) - mean_error**2, 0, None), 0.0)
        shifted = (np.hypot(*mean) > config.bad_shift_pix) & (np.hypot(*mean) > 4 * mean_error) & (n >= 10)
    bend = config.bend_pix * (fit.map.scale / config.bend_reach_pix) ** fit.error_degree
    error = np.sqrt(_map_error(grid, fit, bend) ** 2 + excess + config.floor_pix**2)
    bad = (error > config.bad_error_pix) | (rms > config.bad_rms_pix) | shifted
    values = {"n_stars": n, "residual_rms": rms, "error": error, "bad": bad}
    return {name: Cells(values=value.astype(np.float32), shape=shape) for name, value in values.items()}


def _means(
    grid: Cells, fit: Fit, science: np.ndarray, residual: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (weighted mean [2, j, i], its standard error per axis [j, i], stars [j, i]) per cell."""
    j, i = grid.cell_of(*science.T)
    total = _sums(grid, j, i, fit.weight)
    used = fit.weight > 0
    n = _sums(grid, j[used], i[used], np.ones(int(used.sum())))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.stack([_sums(grid, j, i, fit.weight * axis) for axis in residual.T]) / total
        # a biweight star tells less than its weight says: the sum of w² sigma² is the variance
        spread = np.sqrt(_sums(grid, j, i, fit.weight**2 * fit.sigma**2)) / total
    return np.nan_to_num(mean), np.where(total > 0, spread, np.inf), n


def _sums(grid: Cells, j: np.ndarray, i: np.ndarray, values: np.ndarray) -> np.ndarray:
    n, m = grid.values.shape
    return np.bincount(j * m + i, weights=values, minlength=n * m).reshape(n, m)


def _map_error(grid: Cells, fit: Fit, bend: float) -> np.ndarray:
    """Return the rms over each cell of the polynomial's standard error per axis, px.

    The noise of the terms that were fitted, and those that the stars showed but did not prove: of one degree
    more the values found, or their noise where that is less, or ``bend`` px, what such terms can be.
    """
    high, wide = grid.size
    x, y = grid.middles()
    n = polynomial.n_terms(fit.degree)
    own, noise, missed = (np.zeros(x.shape) for _ in range(3))
    for down in WITHIN:
        for along in WITHIN:
            points = np.stack([(x + along * wide).ravel(), (y + down * high).ravel()], axis=1)
            columns = polynomial.design(*fit.map.unit(points), fit.error_degree)
            few = columns[:, :n]
            own += np.einsum("nk,kl,nl->n", few, fit.own_covariance, few).reshape(x.shape)
            noise += np.einsum("nk,kl,nl->n", columns, fit.covariance, columns).reshape(x.shape)
            missed += 0.5 * ((fit.difference @ columns.T) ** 2).sum(axis=0).reshape(x.shape)
    places = len(WITHIN) ** 2
    missed = np.minimum(np.minimum(np.maximum(noise - own, 0), missed), places * bend**2)
    return np.sqrt((own + missed) / places)
