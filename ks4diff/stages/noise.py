"""Measure an image's pixel noise and its correlation where stars cannot pretend to be noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares

from ks4diff.numerics.noise import (
    autocovariance,
    bilinear_covariance,
    by_lag,
    pair_powers,
    power_spectrum,
)
from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_grid import extract, taper, transform
from ks4diff.products.chip import ReducedChip
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import PsfField

GRID = (64, 64)  # of the spectrum that is fitted; a covariance of a dozen lags needs no finer
LEAST_NOISE = 0.93  # of the fitted noise power: its own error is some 5 %
STOPPED = 1e-3  # of the squared transfer: less of it is no light
LOWEST_FREQUENCY = 0.08  # cycles per pixel: below, the background's own errors rule
RINGS = (0.08, 0.16, 0.24, 0.32, 0.4, 0.48)  # cycles per pixel, between rings: 4 lags tell no finer
FEWEST_QUIET = 10_000  # pixels: they tell a covariance to 1 % of the variance, the power of 81 lags to 9 %

Box = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Where noise ends and unresolved starlight begins."""

    max_lag_pix: int = 12
    kernel_lag_pix: int = 4  # resampling kernels reach no farther than this
    crowded_correlation: float = 0.12  # sky correlated by more than this at one FWHM is starlight
    psf_power_limit: float = 1e-4  # crowded skies hold 200 times the noise power at low k: 2 % are left here
    fewest_frequencies: float = 0.25  # are fitted, however sharp the PSF
    patch_pix: int = 512  # looked at in a large image: 260 000 pixels give a covariance to 0.3 % ...
    patches_along: int = 4  # ... in so many patches each way; a smaller image is looked at whole
    least_sky: float = 0.05  # a patch with less than this fraction of sky tells nothing


def measure_noise(chip: ReducedChip, psf: PsfField, config: NoiseConfig) -> NoiseModel:
    """Return the noise of one pixel and how it is correlated with its neighbours.

    Usually this is the covariance of the source-free pixels, less what is common to far pixels (errors of the
    background) and what has the shape of the PSF (stars too faint to mask). In a crowded field those pixels
    hold more unresolved starlight than noise; there it is the noise beyond the PSF's cut-off frequency, where
    starlight has no power, that tells. A large image is sampled: sixteen patches, the median of their
    covariances, each on the scale of the whole chip's sky (``chip.image.sky_variance`` over ``chip.rms``²).
    """
    covariance = _sampled(chip.sky, config, lambda box: _of_chip(chip, box, config))
    lag = _lag(config.max_lag_pix)
    covariance = covariance - max(float(covariance[lag > 0.75 * config.max_lag_pix].mean()), 0.0)
    middle = config.max_lag_pix
    at_fwhm = np.abs(lag - max(psf.fwhm_pix, 3.0)) < 0.75
    if float(covariance[at_fwhm].mean()) > config.crowded_correlation * float(covariance[middle, middle]):
        return _beyond_cutoff(chip, psf, config)
    psf_power = np.abs(transform(_cropped(psf.stamp, min(GRID)), GRID)) ** 2
    tapered = covariance * taper(2 * middle + 1, 0.0, middle + 1.0)
    fit = _fit_power(power_spectrum(tapered, GRID), _frequency() > LOWEST_FREQUENCY, psf_power)
    starlight = extract(np.fft.irfft2(fit[3] * psf_power, GRID), 2 * config.kernel_lag_pix + 1)
    core = slice(middle - config.kernel_lag_pix, middle + config.kernel_lag_pix + 1)
    kept = (covariance[core, core] - starlight) * taper(len(starlight), 2.0, config.kernel_lag_pix + 1.0)
    # starlight far above the noise never has the PSF's very shape: the fitted noise stays in any case
    return _of_power(np.maximum(power_spectrum(kept, GRID), LEAST_NOISE * _noise_power(fit)), len(kept))


def unshared_noise(
    images: tuple[np.ndarray, np.ndarray],
    models: tuple[NoiseModel, NoiseModel],
    psfs: tuple[PsfField, PsfField],
    sky: np.ndarray,
    config: NoiseConfig,
) -> tuple[NoiseModel, NoiseModel]:
    """Return both noise models without what the two aligned images have in common.

    Faint galaxies, flat-field and dark structure show in both and cancel in the difference: they are no noise
    of it, though each image alone cannot tell. Their power is the cross-spectrum of the images. What of it
    has the shape of the PSFs is starlight, nearly all of which the models do not hold any more: it is not
    taken twice (that made S_corr 2 % too loud). In a crowded field, where the noise by its shape is all that
    the models hold, nothing is taken at all.

    ``images`` [k, y, x], k squares of each, are background-subtracted on one flux scale, ``sky`` (bool, as
    they) marks the pixels free of sources in both; fewer than `FEWEST_QUIET` of them tell nothing, and the
    models are returned as they are.
    """
    if any(model.method != "sky" for model in models) or np.count_nonzero(sky) < FEWEST_QUIET:
        return models
    far = config.max_lag_pix
    with pool() as threads:
        squares = list(threads.map(lambda *square: pair_powers(*square, far), *images, sky))
    shared, difference = by_lag(sum(squares), sky.shape[1:], far)
    shared, difference = (c - float(c[_lag(far) > 0.75 * far].mean()) for c in (shared, difference))
    hats = [transform(_cropped(psf.stamp, min(GRID)), GRID) for psf in psfs]
    both = np.maximum((hats[0] * np.conj(hats[1])).real, 0.0)
    tapered = shared * taper(2 * far + 1, 0.0, far + 1.0)
    fit = _fit_power(power_spectrum(tapered, GRID), _frequency() > LOWEST_FREQUENCY, both)
    n = 2 * config.kernel_lag_pix + 1
    core = slice(far - config.kernel_lag_pix, far + config.kernel_lag_pix + 1)
    faded = taper(n, 2.0, config.kernel_lag_pix + 1.0)
    starlight = extract(np.fft.irfft2(fit[3] * both, GRID), n) * faded
    parts = (shared[core, core] * faded - starlight, starlight)
    other, starlight = (np.maximum(power_spectrum(part, GRID), 0.0) for part in parts)
    left = tuple(_less(model, psf, other, starlight) for model, psf in zip(models, psfs, strict=True))
    return _at_most(left, power_spectrum(difference * taper(2 * far + 1, 0.0, far + 1.0), GRID))


def _sampled(sky: np.ndarray, config: NoiseConfig, of_patch: Callable[[Box], np.ndarray]) -> np.ndarray:
    """Return the median of what the patches with sky (bool [y, x]) give, lag by lag."""
    boxes = _patches(sky.shape, config)
    shown = [box for box in boxes if sky[box].mean() > config.least_sky] or boxes
    with pool() as threads:
        return np.median(list(threads.map(of_patch, shown)), axis=0)


def _patches(shape: tuple[int, int], config: NoiseConfig) -> list[Box]:
    """Return where the noise is looked at: everywhere, or in the middles of equal parts of a large image."""
    n, side = config.patches_along, config.patch_pix
    if shape[0] * shape[1] <= (n * side) ** 2 or min(shape) < n * side:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    low = [[(2 * k + 1) * size // (2 * n) - side // 2 for k in range(n)] for size in shape]
    return [(slice(y, y + side), slice(x, x + side)) for y in low[0] for x in low[1]]


def _of_chip(chip: ReducedChip, box: Box, config: NoiseConfig, width: float = 0.0) -> np.ndarray:
    """Return a patch's covariance on the whole sky's scale, high-passed twice where ``width`` is given."""
    rows, columns = box
    margin = int(np.ceil(12 * width)) + 1 if width else 0
    top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
    data = chip.image.data[top : rows.stop + margin, left : columns.stop + margin]
    if width:
        data = _high_pass(_high_pass(data, width), width)
    data = data[rows.start - top :, columns.start - left :][: rows.stop - rows.start]
    data = data[:, : columns.stop - columns.start]
    middle = 0.5 * (columns.start + columns.stop - 1), 0.5 * (rows.start + rows.stop - 1)
    whole = rows.stop - rows.start == chip.sky.shape[0]
    relative = 1.0 if whole else float(chip.image.sky_variance.at(*middle)) / chip.rms**2
    return autocovariance(data, chip.sky[box], config.max_lag_pix) / relative


def _less(model: NoiseModel, psf: PsfField, shared: np.ndarray, starlight: np.ndarray) -> NoiseModel:
    """Return a noise model with the powers ``shared`` and ``starlight`` on `GRID` taken from it.

    The model's starlight is out of it already, nearly: of the shared one no more is taken than leaves what is
    noise by its shape, less what both images share at frequencies that the PSF does not pass: no starlight.
    """
    power = power_spectrum(model.sigma**2 * model.correlation, GRID)
    psf_power = np.abs(transform(_cropped(psf.stamp, min(GRID)), GRID)) ** 2
    fitted = _noise_power(_fit_power(power, _frequency() > LOWEST_FREQUENCY, psf_power))
    beyond = psf_power < STOPPED * psf_power[0, 0]
    fitted = fitted - (float(shared[beyond].mean()) if beyond.any() else 0.0)
    left = np.maximum(power - shared - starlight, np.minimum(power - shared, fitted))
    return _of_power(np.maximum(left, np.minimum(power, LEAST_NOISE * fitted)), len(model.correlation))


def _at_most(models: tuple[NoiseModel, ...], shown: np.ndarray) -> tuple[NoiseModel, NoiseModel]:
    """Return both noise models, together of no more power than ``shown`` on `GRID` at any |k|.

    The bound is that of rings in k, which are known to some 0.3 %; the models share what is too much.
    """
    powers = [power_spectrum(model.sigma**2 * model.correlation, GRID) for model in models]
    frequency = _frequency()
    ring = np.digitize(frequency, RINGS).ravel()
    part = np.bincount(ring, shown.ravel()) / np.bincount(ring, sum(powers).ravel())
    middle = np.bincount(ring, frequency.ravel()) / np.bincount(ring)
    factor = np.minimum(np.interp(frequency, middle, part), 1.0)
    first, second = (
        _of_power(factor * power, len(model.correlation)) for power, model in zip(powers, models, strict=True)
    )
    return first, second


def _of_power(power: np.ndarray, n: int) -> NoiseModel:
    """Return the "sky" noise model of a power spectrum on `GRID`, with a correlation [n, n]."""
    covariance = extract(np.fft.irfft2(power, GRID), n)
    variance = float(covariance[n // 2, n // 2])
    return NoiseModel(sigma=float(np.sqrt(variance)), correlation=covariance / variance, method="sky")


def _noise_power(fit: tuple[float, float, float, float]) -> np.ndarray:
    """Return the noise part of a power fitted by `_fit_power`."""
    return fit[0] * power_spectrum(bilinear_covariance(fit[1], fit[2]), GRID)


def _beyond_cutoff(chip: ReducedChip, psf: PsfField, config: NoiseConfig) -> NoiseModel:
    """Return the noise fitted at frequencies that the PSF does not pass, as bilinearly resampled white noise.

    That family holds white noise and says how the power goes on below the fitted frequencies.
    """
    # starlight is filtered out before the sources are masked: cut at a mask's edge it would leak to high k
    width = 0.5 * psf.fwhm_pix / 2.3548
    covariance = _sampled(chip.sky, config, lambda box: _of_chip(chip, box, config, width))
    covariance = covariance * taper(2 * config.max_lag_pix + 1, 0.0, config.max_lag_pix + 1)
    passed = (1 - np.exp(-2 * np.pi**2 * width**2 * _frequency() ** 2)) ** 4
    power = power_spectrum(covariance, GRID) / np.maximum(passed, 1e-6)
    psf_power = np.abs(transform(_cropped(psf.stamp, min(GRID)), GRID)) ** 2
    limit = max(
        config.psf_power_limit * psf_power[0, 0], float(np.quantile(psf_power, config.fewest_frequencies))
    )
    scale, mx, my, _ = _fit_power(power, psf_power <= limit, np.zeros_like(psf_power))
    kept = bilinear_covariance(mx, my)
    return NoiseModel(
        sigma=float(np.sqrt(scale * kept[1, 1])), correlation=kept / kept[1, 1], method="high frequencies"
    )


def _fit_power(
    power: np.ndarray, used: np.ndarray, psf_power: np.ndarray
) -> tuple[float, float, float, float]:
    """Return (scale, mx, my, starlight): power = scale * bilinear(mx, my) + starlight * psf_power."""
    level = max(float(np.median(power[used])), 1e-30)

    def mismatch(parameters: np.ndarray) -> np.ndarray:
        scale, mx, my, starlight = parameters
        model = scale * power_spectrum(bilinear_covariance(mx, my), GRID) + starlight * psf_power
        return (model[used] - power[used] / level).ravel()

    # soft_l1: a dead row or a fringe puts all its power in a few frequencies
    bounds = ([0, 0, 0, 0], [np.inf, 0.25, 0.25, np.inf])
    scale, mx, my, starlight = least_squares(
        mismatch, [1.0, 0.05, 0.05, 0.1], bounds=bounds, loss="soft_l1"
    ).x
    return scale * level, mx, my, starlight * level


def _frequency() -> np.ndarray:
    """Return |k| of each point of the spectrum's grid, cycles per pixel."""
    return np.hypot(np.fft.fftfreq(GRID[0])[:, None], np.fft.rfftfreq(GRID[1])[None, :])


def _lag(max_lag: int) -> np.ndarray:
    """Return the distance of each lag of a covariance from lag 0, pixels."""
    offset = np.arange(-max_lag, max_lag + 1)
    return np.hypot(offset[:, None], offset[None, :])


def _high_pass(image: np.ndarray, width: float) -> np.ndarray:
    """Return the image less itself smoothed by a Gaussian of standard deviation ``width`` pixels."""
    return image - ndimage.gaussian_filter(image, width, truncate=6.0)


def _cropped(stamp: np.ndarray, limit: int) -> np.ndarray:
    """Return the middle of a stamp, odd and no wider than ``limit``."""
    n = min(stamp.shape[0], limit - 1 if limit % 2 == 0 else limit)
    low = (stamp.shape[0] - n) // 2
    return stamp[low : low + n, low : low + n]
