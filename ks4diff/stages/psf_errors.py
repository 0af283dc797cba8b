"""Pack a PSF that varies over an image with its widths and its standard errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.numerics.moments import half_max_width
from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_borders import Borders
from ks4diff.numerics.psf_modes import radii
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.psf import PsfField
from ks4diff.stages.psf_amplitudes import Amplitudes
from ks4diff.stages.psf_clean import GROUP_PIX, star_weights, widths
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_stars import Sample

SAMPLING = 0.0015  # of the peak: what sub-pixel sampling and calmed wings leave
LARGEST = 1.6  # sigma: the largest of a core's some five independent deviations, rms
PRIOR_SCATTER = 0.02  # of the peak: stars of a stack differ by so much by their dithers and phases ...
PRIOR_STARS = 5.0  # ... of which so many are as good as known before
STEP = 0.05  # of the peak: a PSF's at a border of a stack whose dithers' FWHM scatter by a fifth
SLOPE = 0.006  # of the peak per 1000 px: a FWHM that changes by 3 % over half a chip, at one place


def packed(
    sample: Sample, shown: np.ndarray, amplitudes: Amplitudes, core: np.ndarray, config: PsfConfig, last: bool
) -> PsfField:
    """Return the field with its widths and errors.

    ``shown`` [1 + m, n, n] is the mean and its modes, ``core`` bool [n, n] the pixels that errors speak of.
    An error is the standard deviation expected of the core's worst pixel: the noise of the mean and of the
    amplitudes, how stars scatter about the model beyond their noise, what the stars near by have in common,
    and, without modes, how far from the stars a place is. Only the ``last`` field has errors, NaN before, and
    its FWHM in every cell.
    """
    mean, modes = shown[0], shown[1:]
    shape = amplitudes.borders.shape
    field = Cells(values=amplitudes.drawn(config).astype(np.float32), shape=shape)
    error = _errors(sample, shown, amplitudes, core) if last else Cells.constant(np.nan, shape)
    return PsfField(
        mean=mean.astype(np.float32),
        modes=modes.astype(np.float32),
        amplitudes=field,
        error=error,
        fwhm=_fwhm(mean, modes, field, last),
        n_stars=len(sample.x),
        light_error=_light_error(sample, mean, core),
    )


def _errors(sample: Sample, shown: np.ndarray, amplitudes: Amplitudes, core: np.ndarray) -> Cells:
    """Return the standard error of the core, over the peak, in squares of 512 px."""
    mean, modes, shape = shown[0], shown[1:], amplitudes.borders.shape
    peak = mean.max()
    squares = Cells(values=np.zeros(cell_grid(shape, GROUP_PIX)), shape=shape)
    px, py = (a.ravel() for a in squares.middles())
    error2 = np.full(px.shape, SAMPLING**2 + LARGEST**2 * _noise(sample, mean, core) / peak**2)
    if len(modes):
        strength = (modes[:, core] ** 2).max(axis=1) / peak**2
        error2 += strength @ amplitudes.variance(px, py)
    else:
        away = np.hypot(px - sample.x.mean(), py - sample.y.mean()) / 1000
        error2 += (SLOPE * away) ** 2
    scatter2, near2 = _misfit(sample, shown, amplitudes.at_stars, core, squares)
    error2 += scatter2 + near2.ravel()
    return replace(squares, values=np.sqrt(error2).reshape(squares.values.shape).astype(np.float32))


def _light_error(sample: Sample, mean: np.ndarray, core: np.ndarray) -> float:
    """Return the error of the mean's light beyond its core, which sky noise makes."""
    weight = star_weights(sample, mean, core)
    pixel2 = weight**2 @ (sample.sky / sample.flux**2) / weight.sum() ** 2
    return float(np.sqrt((core.size - core.sum()) * pixel2))


def with_unseen_steps(field: PsfField, sample: Sample, likely: Borders) -> PsfField:
    """Return the field with, in its error, steps at ``likely`` borders where no star shows them."""
    n = field.mean.shape[0]
    _, error = widths(sample, field.mean, radii(n) <= 1.5 * field.fwhm_pix)
    squares = Cells(values=field.error.values, shape=field.error.shape)
    x, y = (a.ravel() for a in squares.middles())
    told = np.full(len(x), STEP**-2)
    stars, here = (likely.beyond(*place) for place in ((sample.x, sample.y), (x, y)))
    for k in range(len(x)):
        same = (stars == here[:, k : k + 1]).all(axis=0)
        told[k] += (1 / (error[same] ** 2 + PRIOR_SCATTER**2)).sum()
    values = np.sqrt(field.error.values**2 + 1 / told.reshape(field.error.values.shape))
    return replace(field, error=replace(field.error, values=values.astype(np.float32)))


def _fwhm(mean: np.ndarray, modes: np.ndarray, field: Cells, last: bool) -> Cells:
    """Return the FWHM of every 1k cell, or of the image's middle alone."""
    shape = field.shape
    wide = Cells(values=np.zeros(cell_grid(shape, CELL_PIX) if last else (1, 1)), shape=shape)
    half = mean.shape[0] // 2
    cut = slice(max(half - 10, 0), half + 11)
    amplitude = field.at(*(a.ravel() for a in wide.middles()))
    stamps = mean[cut, cut] + np.einsum("mp,mij->pij", amplitude, modes[:, cut, cut])
    with pool() as threads:
        fwhm = np.array(list(threads.map(half_max_width, stamps)), dtype=np.float32)
    return replace(wide, values=fwhm.reshape(wide.values.shape))


def _noise(sample: Sample, mean: np.ndarray, core: np.ndarray) -> float:
    """Return the variance of the mean's noisiest core pixel."""
    weight = star_weights(sample, mean, core)
    return float((weight**2 @ sample.variance(mean[core])).max() / weight.sum() ** 2)


def _misfit(
    sample: Sample, shown: np.ndarray, at_stars: np.ndarray, core: np.ndarray, squares: Cells
) -> tuple[float, np.ndarray]:
    """Return (the variance of stars about the model, the square of what those near by share), of the peak.

    Both in width, in which PSFs change most, and beyond the stars' noise; the second per square, from the
    nine around it.
    """
    value, error = widths(sample.without(at_stars, shown[1:]), shown[0], core)
    middle = np.median(value)
    spread2 = (1.4826 * np.median(np.abs(value - middle))) ** 2
    scatter2 = max(spread2 - float(np.median(error**2)), 0.0)
    # stars of less noise than the scatter tell it
    telling = float((PRIOR_SCATTER**2 / (PRIOR_SCATTER**2 + error**2)).sum())
    scatter2 = (telling * scatter2 + PRIOR_STARS * PRIOR_SCATTER**2) / (telling + PRIOR_STARS)
    value = np.clip(value, -4 * np.sqrt(scatter2 + error**2), 4 * np.sqrt(scatter2 + error**2))
    weight = 1 / (error**2 + scatter2)
    j, i = squares.cell_of(sample.x, sample.y)
    sums = np.zeros((2, *squares.values.shape))
    np.add.at(sums[0], (j, i), weight)
    np.add.at(sums[1], (j, i), weight * value)
    around = np.pad(sums, ((0, 0), (1, 1), (1, 1)))
    n, m = squares.values.shape
    around = sum(around[:, a : a + n, b : b + m] for a in range(3) for b in range(3))
    shared = around[1] / np.maximum(around[0], 1e-30)
    near2 = np.where(around[0] > 0, shared**2 - 1 / np.maximum(around[0], 1e-30), 0.0)
    return scatter2, np.maximum(near2, 0.0)
