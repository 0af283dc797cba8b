"""Measure a PSF from the stars of an image, blends included."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.moments import half_max_width
from ks4diff.numerics.psf_grid import taper
from ks4diff.numerics.stars_fit import fit_stars, star_stamps
from ks4diff.products.chip import StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.variance import pixel_variance


@dataclass(frozen=True, kw_only=True)
class PsfConfig:
    """How a PSF is averaged from stars."""

    radius_fwhm: float = 3.5  # stamp half-width: the wings beyond hold about 1 % of a Moffat's light
    max_stars: int = 80  # brightest clean ones
    min_stars: int = 4
    max_modelled: int = 4000  # neighbours fitted together, brightest first
    rounds: int = 4
    clip_sigma: float = 3.5


def model_psf(
    image: MaskedImage, stars: StarList, gain: float, config: PsfConfig
) -> tuple[PsfField, StarList]:
    """Return (psf, stars): the PSF of an image and its stars with positions and fluxes fitted with it.

    Starts from a Gaussian of the clean stars' width; in each round all stars are fitted together, and the
    clean ones, their neighbours subtracted, are centred, scaled and averaged with clipping.

    Raises
    ------
    SkipChip
        With fewer than ``min_stars`` stars to average.

    """
    if stars.clean.sum() < config.min_stars:
        raise SkipChip("too few clean stars for a PSF", n_clean=float(stars.clean.sum()))
    fwhm = float(np.percentile(stars.fwhm[stars.clean], 25))
    half = int(np.ceil(config.radius_fwhm * max(fwhm, 2.0)))
    stamp = _gaussian(2 * half + 1, fwhm)
    n = min(len(stars), config.max_modelled)
    fitted = np.stack([stars.x[:n], stars.y[:n], stars.flux[:n]])
    chosen = np.flatnonzero(stars.clean[:n])[: config.max_stars]
    core = max(round(fwhm), 2)
    good = image.good
    variance = pixel_variance(image, gain, smooth_pix=fwhm / 2.3548)
    for _ in range(config.rounds):
        fitted, residual = fit_stars(image.data, good, variance, stamp, fitted, core=core, sweeps=4)
        usable = chosen[fitted[2, chosen] > 0]
        if len(usable) < config.min_stars:
            raise SkipChip("too few clean stars for a PSF", n_clean=float(len(usable)))
        stamp = _average(residual, good, stamp, fitted[:, usable], config)
    fitted, _ = fit_stars(image.data, good, variance, stamp, fitted, core=core, sweeps=4)
    psf = Psf(stamp=stamp.astype(np.float32), fwhm_pix=half_max_width(stamp), n_stars=len(usable))
    kept = replace(
        stars, x=fitted[0], y=fitted[1], flux=fitted[2], fwhm=stars.fwhm[:n], clean=stars.clean[:n]
    )
    return PsfField.uniform(psf, image.shape), kept


def _gaussian(n: int, fwhm: float) -> np.ndarray:
    offset = np.arange(n) - n // 2
    stamp = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) * 4 * np.log(2) / fwhm**2)
    return stamp / stamp.sum()


def _average(
    residual: np.ndarray, good: np.ndarray, stamp: np.ndarray, stars: np.ndarray, config: PsfConfig
) -> np.ndarray:
    """Return the mean of the stars' stamps, clipped pixel by pixel, weighted by flux, tapered, sum 1."""
    stamps, weights = star_stamps(residual, good, stamp, stars)
    weights = weights * np.minimum(stars[2], np.percentile(stars[2], 75))[:, None, None]
    known = weights > 0
    value = np.where(known, stamps, np.nan)
    empty = ~known.any(axis=0)
    value[:, empty] = stamp[empty]
    weights[:, empty] = 1.0
    middle = np.nanmedian(value, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(value - middle), axis=0)
    keep = np.isfinite(value) & (np.abs(value - middle) <= config.clip_sigma * spread + 1e-12)
    total = (weights * keep).sum(axis=0)
    summed = (weights * np.where(keep, value, 0.0)).sum(axis=0)
    mean = np.where(total > 0, summed / np.maximum(total, 1e-30), middle)
    n = stamp.shape[0]
    offset = np.arange(n) - n // 2
    # neighbours too faint to fit leave a pedestal: 2 to 4 % of the light at a few stars per 1000 px, where a
    # Moffat's own wings there cost 0.5 %
    mean -= np.median(mean[np.hypot(offset[:, None], offset[None, :]) > 0.8 * (n // 2)])
    # what a PSF stamp does not reach must fade to 0, or its border rings through every filter
    mean *= taper(n, 0.75 * (n // 2), n // 2 + 0.5)
    return mean / mean.sum()
