"""Measure one PSF for a whole image from its stars, blends included: small and crowded images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.numerics.moments import half_max_width
from ks4diff.numerics.psf_grid import freed_of_shifts, taper
from ks4diff.numerics.stars_fit import fit_stars, star_stamps
from ks4diff.products.chip import StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.variance import pixel_variance

PARTS = 10  # of the stars, left out in turn


def single_psf(
    image: MaskedImage, stars: StarList, gain: float, config: PsfConfig
) -> tuple[PsfField, StarList]:
    """Return (psf, stars): one PSF for the image, and its stars with positions and fluxes fitted with it.

    Starts from a Gaussian of the clean stars' width; in each round all stars are fitted together, and the
    clean ones, their neighbours subtracted, are centred, scaled and averaged with clipping. The stated error
    is the scatter of the clean stars' core pixels over the root of their number, that of the light what means
    of fewer stars differ by.

    Raises
    ------
    SkipChip
        With fewer than ``min_stars`` stars to average.

    """
    fwhm = float(np.percentile(stars.fwhm[stars.clean], 25))
    half = int(np.ceil(config.radius_fwhm * max(fwhm, 2.0)))
    stamp = gaussian(2 * half + 1, fwhm)
    n = min(len(stars), config.max_modelled)
    fitted = np.stack([stars.x[:n], stars.y[:n], stars.flux[:n]])
    chosen = np.flatnonzero(stars.clean[:n])[: config.max_stars]
    core = max(round(fwhm), 2)
    good = image.good
    variance = pixel_variance(image, gain, smooth_pix=fwhm / 2.3548)
    error = 0.0
    for _ in range(config.rounds):
        fitted, residual = fit_stars(image.data, good, variance, stamp, fitted, core=core, sweeps=4)
        usable = chosen[fitted[2, chosen] > 0]
        if len(usable) < config.min_stars:
            raise SkipChip("too few clean stars for a PSF", n_clean=float(len(usable)))
        stamps, known = star_stamps(residual, good, stamp, fitted[:, usable])
        flux = fitted[2, usable]
        weights = known * np.minimum(flux, np.percentile(flux, 75))[:, None, None]
        stamp, error = average(stamps, weights, stamp, config.clip_sigma)
    light_error = _light_error(stamps, weights, stamp, config.clip_sigma)
    fitted, _ = fit_stars(image.data, good, variance, stamp, fitted, core=core, sweeps=4)
    stamp = freed_of_shifts(stamp, fwhm)
    stamp /= stamp.sum()
    psf = Psf(stamp=stamp.astype(np.float32), fwhm_pix=half_max_width(stamp), n_stars=len(usable))
    kept = replace(
        stars, x=fitted[0], y=fitted[1], flux=fitted[2], fwhm=stars.fwhm[:n], clean=stars.clean[:n]
    )
    field = PsfField.uniform(psf, image.shape, error=error, white=True)
    return replace(field, light_error=light_error), kept


def _light_error(stamps: np.ndarray, weights: np.ndarray, psf: np.ndarray, clip_sigma: float) -> float:
    """Return the standard error of the mean's light beyond its core, a fraction; by the jackknife over stars.

    Stars come scaled by their cores: with other wings, or another pedestal, a mean of sum 1 has another core.
    """
    n = min(PARTS, len(stamps))
    part = np.arange(len(stamps)) % n
    core = []
    for k in range(n):
        without, _ = average(stamps[part != k], weights[part != k], psf, clip_sigma)
        core.append((without * psf).sum() / (psf**2).sum())
    return float(np.sqrt((n - 1) * np.var(core)))


def gaussian(n: int, fwhm: float) -> np.ndarray:
    """Return a Gaussian [n, n] of sum 1."""
    offset = np.arange(n) - n // 2
    stamp = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) * 4 * np.log(2) / fwhm**2)
    return stamp / stamp.sum()


def average(
    stamps: np.ndarray, weights: np.ndarray, before: np.ndarray, clip_sigma: float
) -> tuple[np.ndarray, float]:
    """Return (mean of the stamps [k, n, n], its error): clipped pixel by pixel, tapered, sum 1.

    Weights are 0 where a stamp is unknown; where all are, the PSF ``before`` stands in. The error is that of
    a core pixel (above half the peak) as a fraction of the peak.
    """
    weights = np.array(weights)
    value = np.where(weights > 0, stamps, np.nan)
    empty = ~(weights > 0).any(axis=0)
    value[:, empty] = before[empty]
    weights[:, empty] = 1.0
    middle = np.nanmedian(value, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(value - middle), axis=0)
    keep = np.isfinite(value) & (np.abs(value - middle) <= clip_sigma * spread + 1e-12)
    used = weights * keep
    total = used.sum(axis=0)
    summed = np.where(keep, value, 0.0)
    mean = np.where(total > 0, (used * summed).sum(axis=0) / np.maximum(total, 1e-30), middle)
    scatter = (used**2 * (summed - mean) ** 2).sum(axis=0) / np.maximum(total, 1e-30) ** 2
    core = mean > 0.5 * mean.max()
    error = float(np.sqrt(scatter[core].mean()) / mean.max())
    n = before.shape[0]
    offset = np.arange(n) - n // 2
    # neighbours too faint to fit leave a pedestal: 2 to 4 % of the light at a few stars per 1000 px, where a
    # Moffat's own wings there cost 0.5 %
    mean -= np.median(mean[np.hypot(offset[:, None], offset[None, :]) > 0.8 * (n // 2)])
    # what a PSF stamp does not reach must fade to 0, or its border rings through every filter
    mean *= taper(n, 0.75 * (n // 2), n // 2 + 0.5)
    return mean / mean.sum(), error
