"""Fit many overlapping stars at once, and average the PSF from them with their neighbours taken away."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.lanczos import tap_table


@jit
def _psf_at(psf, taps, dx, dy, out, half):
    """Fill out [2 half + 1]² with the PSF of a star (dx, dy) right of and above the middle pixel."""
    n = psf.shape[0]
    centre = n // 2
    steps = taps.shape[0] - 1
    span = taps.shape[1]
    before = span // 2 - 1
    x0 = int(np.floor(-dx))
    y0 = int(np.floor(-dy))
    wx = taps[int((-dx - x0) * steps + 0.5)]
    wy = taps[int((-dy - y0) * steps + 0.5)]
    size = 2 * half + 1
    line = np.empty((size + span, size))
    for r in range(size + span):
        yy = centre - half + y0 - before + r
        for c in range(size):
            total = 0.0
            if yy >= 0 and yy < n:
                for i in range(span):
                    xx = centre - half + c + x0 - before + i
                    if xx >= 0 and xx < n:
                        total += wx[i] * psf[yy, xx]
            line[r, c] = total
    for r in range(size):
        for c in range(size):
            total = 0.0
            for j in range(span):
                total += wy[j] * line[r + j, c]
            out[r, c] = total


@jit
def _add_star(image, psf, taps, x, y, flux, half, stamp):
    ix = int(np.floor(x + 0.5))
    iy = int(np.floor(y + 0.5))
    _psf_at(psf, taps, x - ix, y - iy, stamp, half)
    height, width = image.shape
    for r in range(2 * half + 1):
        yy = iy - half + r
        if yy < 0 or yy >= height:
            continue
        for c in range(2 * half + 1):
            xx = ix - half + c
            if 0 <= xx < width:
                image[yy, xx] += flux * stamp[r, c]


@jit
def _sweep(residual, good, variance, psf, taps, x, y, flux, core, move):
    """One Gauss-Seidel pass: refit each star alone on the residual plus itself; returns the largest move."""
    height, width = residual.shape
    reach = psf.shape[0] // 2
    stamp = np.empty((2 * reach + 1, 2 * reach + 1))
    largest = 0.0
    for s in range(len(x)):
        ix = int(np.floor(x[s] + 0.5))
        iy = int(np.floor(y[s] + 0.5))
        _add_star(residual, psf, taps, x[s], y[s], flux[s], reach, stamp)
        # normal equations for flux and flux * (dx, dy); derivative by central difference of the stamp
        a00 = a01 = a02 = a11 = a12 = a22 = b0 = b1 = b2 = 0.0
        for r in range(reach - core, reach + core + 1):
            yy = iy - reach + r
            if yy < 0 or yy >= height:
                continue
            for c in range(reach - core, reach + core + 1):
                xx = ix - reach + c
                if xx < 0 or xx >= width or not good[yy, xx]:
                    continue
                if (r - reach) ** 2 + (c - reach) ** 2 > core * core:
                    continue
                w = 1.0 / variance[yy, xx]
                p = stamp[r, c]
                px = -0.5 * (stamp[r, c + 1] - stamp[r, c - 1])
                py = -0.5 * (stamp[r + 1, c] - stamp[r - 1, c])
                d = residual[yy, xx]
                a00 += w * p * p
                a01 += w * p * px
                a02 += w * p * py
                a11 += w * px * px
                a12 += w * px * py
                a22 += w * py * py
                b0 += w * p * d
                b1 += w * px * d
                b2 += w * py * d
        if a00 > 0.0:
            new_flux = b0 / a00
            if move:
                det = (
                    a00 * (a11 * a22 - a12 * a12) - a01 * (a01 * a22 - a12 * a02) + a02 * (a01 * a12 - a11 * a02)
                )
                if det > 1e-12 * a00 * a11 * a22:
                    f = (b0 * (a11 * a22 - a12 * a12) - a01 * (b1 * a22 - a12 * b2) + a02 * (b1 * a12 - a11 * b2)) / det
                    g = (a00 * (b1 * a22 - b2 * a12) - b0 * (a01 * a22 - a12 * a02) + a02 * (a01 * b2 - b1 * a02)) / det
                    h = (a00 * (a11 * b2 - a12 * b1) - a01 * (a01 * b2 - b1 * a02) + b0 * (a01 * a12 - a11 * a02)) / det
                    if f > 0.0:
                        # a step is held to 0.3 px: farther the linear model does not reach
                        dx = min(max(g / f, -0.3), 0.3)
                        dy = min(max(h / f, -0.3), 0.3)
                        x[s] += dx
                        y[s] += dy
                        largest = max(largest, abs(dx), abs(dy))
                        new_flux = f
            flux[s] = max(new_flux, 0.0)
        _add_star(residual, psf, taps, x[s], y[s], -flux[s], reach, stamp)
    return largest


@jit
def _collect(residual, good, psf, taps, x, y, flux, stamps, weights):
    """Fill stamps [k, n, n] with each star alone, centred by Lanczos and divided by its flux."""
    height, width = residual.shape
    n = psf.shape[0]
    half = n // 2
    steps = taps.shape[0] - 1
    span = taps.shape[1]
    before = span // 2 - 1
    for s in range(len(x)):
        x0 = int(np.floor(x[s]))
        y0 = int(np.floor(y[s]))
        wx = taps[int((x[s] - x0) * steps + 0.5)]
        wy = taps[int((y[s] - y0) * steps + 0.5)]
        for r in range(n):
            for c in range(n):
                total = 0.0
                lost = 0.0
                for j in range(span):
                    yy = y0 + r - half - before + j
                    for i in range(span):
                        xx = x0 + c - half - before + i
                        w = wx[i] * wy[j]
                        if 0 <= yy < height and 0 <= xx < width and good[yy, xx]:
                            total += w * residual[yy, xx]
                        else:
                            lost += abs(w)
                stamps[s, r, c] = total / flux[s] + psf[r, c]
                weights[s, r, c] = 1.0 if lost < 0.1 else 0.0


def fit_stars(
    image: np.ndarray, good: np.ndarray, variance: np.ndarray, psf: np.ndarray, stars: np.ndarray, *, core: int, sweeps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (stars, residual): positions and fluxes of all stars fitted together, and what they leave.

    Parameters
    ----------
    image, variance
        Float32 [y, x], background subtracted.
    good
        Boolean [y, x]; other pixels are not fitted, so a saturated star is fitted on its wings.
    psf
        Float64 [n, n], odd, sum 1.
    stars
        Float64 [3, k]: x, y, flux; brightest first converges fastest.
    core
        Radius in pixels of the disc that is fitted.
    sweeps
        Gauss-Seidel passes over all stars.
    """
    x, y, flux = (np.array(row, dtype=np.float64) for row in stars)
    residual = image.astype(np.float64)
    taps = tap_table()
    stamp = np.empty(psf.shape)
    for s in range(len(x)):
        _add_star(residual, psf, taps, x[s], y[s], -flux[s], psf.shape[0] // 2, stamp)
    for sweep in range(sweeps):
        # fluxes first, so that no star wanders to a brighter neighbour before that one is modelled
        _sweep(residual, good, variance.astype(np.float64), psf, taps, x, y, flux, core, sweep > 0)
    return np.stack([x, y, flux]), residual


def star_stamps(
    residual: np.ndarray, good: np.ndarray, psf: np.ndarray, stars: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (stamps, weights), float64 [k, n, n]: each star alone, centred, divided by its flux.

    ``residual`` is the image with every star subtracted: a stamp is the residual there plus the PSF.
    Weights are 0 at masked pixels and beyond the border, else 1.
    """
    k, n = stars.shape[1], psf.shape[0]
    stamps = np.empty((k, n, n))
    weights = np.empty((k, n, n))
    _collect(residual, good, psf, tap_table(), stars[0].copy(), stars[1].copy(), stars[2].copy(), stamps, weights)
    return stamps, weights


def draw_stars(shape: tuple[int, int], psf: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """Return float64 [y, x]: the sum of all stars [3, k] (x, y, flux) drawn with one PSF."""
    image = np.zeros(shape)
    taps = tap_table()
    stamp = np.empty(psf.shape)
    for x, y, flux in stars.T:
        _add_star(image, psf, taps, x, y, flux, psf.shape[0] // 2, stamp)
    return image
