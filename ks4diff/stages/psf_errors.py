"""Pack a PSF that varies over an image with its widths and its standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.numerics.moments import half_max_width
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.psf import PsfField
from ks4diff.stages.psf_clean import GROUP_PIX, groups, star_weights
from ks4diff.stages.psf_stars import Sample

SAMPLING = 0.0015  # of the peak: core rms on simulated chips beyond the stars' noise, sampling and wings


@dataclass(frozen=True, kw_only=True)
class Amplitudes:
    """Modes' strengths: maps [m, rows, columns], their variances, and the values at the stars [m, k]."""

    maps: np.ndarray
    variances: np.ndarray
    at_stars: np.ndarray


def packed(
    sample: Sample, shown: np.ndarray, amplitudes: Amplitudes, core: np.ndarray, shape: tuple[int, int]
) -> PsfField:
    """Return the field with its widths and errors.

    ``shown`` [1 + m, n, n] is the mean and its modes, ``core`` bool [n, n] the pixels that errors speak of.
    An error joins that of the amplitudes, that of the mean, and what stamps show beyond their noise.
    """
    mean, modes = shown[0], shown[1:]
    peak = mean.max()
    maps = amplitudes.maps if len(modes) else np.zeros((0, 1, 1))
    field = Cells(values=maps.astype(np.float32), shape=shape)
    weight = star_weights(sample, mean, core)
    squares = Cells(values=np.zeros(cell_grid(shape, GROUP_PIX)), shape=shape)
    common = 1 / weight.sum()
    px, py = squares.middles()
    error2 = np.full(squares.values.shape, common)
    if len(modes):
        strength = (modes[:, core] ** 2).mean(axis=1)
        variance = Cells(values=amplitudes.variances, shape=shape).at(px.ravel(), py.ravel())
        error2 = error2 + (strength @ variance).reshape(error2.shape)
    error2 = (
        SAMPLING**2 + error2 / peak**2 + _misfit(sample, shown, amplitudes.at_stars, core, shape) / peak**2
    )
    wide = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
    wx, wy = wide.middles()
    half = mean.shape[0] // 2
    cut = slice(max(half - 10, 0), half + 11)
    amplitude = field.at(wx.ravel(), wy.ravel())
    stamps = mean[cut, cut] + np.einsum("mp,mij->pij", amplitude, modes[:, cut, cut])
    fwhm = np.array([half_max_width(s) for s in stamps]).reshape(wide.values.shape)
    return PsfField(
        mean=mean.astype(np.float32),
        modes=modes.astype(np.float32),
        amplitudes=field,
        error=Cells(values=np.sqrt(error2).astype(np.float32), shape=shape),
        fwhm=Cells(values=fwhm.astype(np.float32), shape=shape),
        n_stars=len(sample.x),
    )


def _misfit(
    sample: Sample, shown: np.ndarray, at_stars: np.ndarray, core: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Return [rows, columns] of the groups: the mean square that the model misses in the core, noise off."""
    group, count = groups(sample, shape)
    design = np.concatenate([np.ones((1, len(sample.x))), at_stars])
    model = np.einsum("ak,ap->kp", design, shown[:, core])
    off = np.where(sample.known[:, core], sample.stamps[:, core] - model, 0.0)
    # of the flux, which the fit of the star left free
    scale = (off * shown[0][core]).sum(axis=1) / (shown[0][core] ** 2).sum()
    off = off - scale[:, None] * shown[0][core]
    weight = star_weights(sample, shown[0], core)
    total = np.maximum(np.bincount(group, weight, count), 1e-30)
    part = np.zeros((count, len(group)))
    part[group, np.arange(len(group))] = weight / total[group]
    square = ((part @ off) ** 2).mean(axis=1)
    noise = ((part**2) @ off**2).mean(axis=1)
    grid = cell_grid(shape, GROUP_PIX)
    many = np.bincount(group, minlength=count) >= 3
    value = np.where(many, square - noise, 0.0).reshape(grid)
    return np.maximum(ndimage.uniform_filter(value, 3, mode="nearest"), 0.0)
