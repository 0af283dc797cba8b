"""Subtract the aligned template from the chip: proper difference, score and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.numerics import zogy
from ks4diff.numerics.inpaint import fill
from ks4diff.numerics.moments import half_max_width
from ks4diff.numerics.noise import power_spectrum, relative_power
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference, Match
from ks4diff.products.image import PixelFlag
from ks4diff.products.psf import Psf
from ks4diff.stages.variance import pixel_variance


@dataclass(frozen=True, kw_only=True)
class SubtractConfig:
    """Which errors the score's variance holds, and how far a bad pixel reaches."""

    astrometric_noise: bool = True  # registration residuals times the gradient, ZOGY eqs 30-33
    mask_growth_fwhm: float = 1.0  # beyond it a hole takes less than a tenth of a source's score
    bleed_window_pix: int = 41  # a trail outlasts the residual of every star
    bleed_sigma: float = 5.0  # of the mean over that window
    edge_fwhm: float = 1.0  # closer to the border a source is cut


def subtract(
    chip: CalibratedChip, template: AlignedTemplate, match: Match, rms_pix: float, config: SubtractConfig
) -> Difference:
    """Return the difference image and score of a matched pair.

    ``rms_pix`` is the registration's rms per axis. Nothing is divided by its own scatter: the score is as
    normal as the noise models are right.
    """
    good = chip.image.good & template.image.good
    size = max(chip.psf.stamp.shape[0], template.psf.stamp.shape[0])
    shape = zogy.grid_shape(good.shape, size)
    # both are filled in the holes of either: what one shows and the other lacks would ring in the difference
    level = chip.image.data - match.background.over(slice(None), slice(None))
    science = _side(level, chip, good, match.science_noise, 1.0, shape)
    reference = _side(
        template.image.data, template, good, match.template_noise, 1.0 / match.flux_scale, shape
    )
    sigma = rms_pix if config.astrometric_noise else 0.0
    result = zogy.subtract(science, reference, sigma_x=sigma, sigma_y=sigma)
    deviation = np.sqrt(np.maximum(result.variance, 1e-6 * result.score_flux))
    psf = _centre_of(result.psf, size)
    return Difference(
        difference=(result.difference / result.flux).astype(np.float32),
        score_corr=(result.score / deviation).astype(np.float32),
        flux=(result.score / result.score_flux).astype(np.float32),
        flux_err=(deviation / result.score_flux).astype(np.float32),
        flags=_grown_flags(chip, template, result.difference, config),
        psf=Psf(stamp=psf, fwhm_pix=half_max_width(psf), n_stars=chip.psf.n_stars),
        flux_scale=match.flux_scale,
        noise=1.0 / result.flux,
    )


def _side(data, image, good, noise, flux, shape) -> zogy.Side:
    """Return one image as the subtraction wants it, with the noise that the match left to it."""
    variance = pixel_variance(image.image, image.gain, smooth_pix=image.psf.fwhm_pix / 2.3548)
    less_noise = np.float32(noise.sigma**2 - image.noise.sigma**2)
    return zogy.Side(
        data=fill(data, ~good),
        variance=np.where(good, variance + less_noise, np.float32(0)),
        psf=image.psf.stamp,
        flux=flux,
        sigma2=noise.sigma**2,
        correlation=relative_power(power_spectrum(noise.correlation, shape), shape),
    )


def _centre_of(stamp: np.ndarray, n: int) -> np.ndarray:
    """Return the middle n x n pixels of a larger odd stamp, float32."""
    low = (stamp.shape[0] - n) // 2
    return stamp[low : low + n, low : low + n].astype(np.float32)


def _grown_flags(
    chip: CalibratedChip, template: AlignedTemplate, difference: np.ndarray, config: SubtractConfig
) -> np.ndarray:
    """Return the flags of both images, of bleeds and of the border, grown by the reach of the filters."""
    flags = np.zeros(chip.image.shape, dtype=np.uint16)
    fwhm = max(chip.psf.fwhm_pix, template.psf.fwhm_pix)
    both = chip.image.flags | template.image.flags
    saturated = (both & (PixelFlag.SATURATED | PixelFlag.TEMPLATE_SATURATED)) != 0
    both = both | np.where(
        _bleeds(difference, saturated, fwhm, config), np.uint16(PixelFlag.BLEED), np.uint16(0)
    )
    for bit in PixelFlag:
        raised = (both & bit) != 0
        if raised.any():
            flags[ndimage.distance_transform_edt(~raised) <= config.mask_growth_fwhm * fwhm] |= np.uint16(bit)
    edge = int(np.ceil(config.edge_fwhm * fwhm))
    border = np.ones(flags.shape, dtype=bool)
    border[edge:-edge, edge:-edge] = False
    flags[border] |= np.uint16(PixelFlag.EDGE)
    return flags


def _bleeds(difference: np.ndarray, saturated: np.ndarray, fwhm: float, config: SubtractConfig) -> np.ndarray:
    """Return bool [y, x]: rows and columns that stand out for long beside a saturated star.

    Sought in the white difference ``difference`` (unit variance), where no star hides a trail of a tenth of
    the noise. A trail can be dark: an amplifier driven over its range takes hundreds of pixels to recover.
    """
    found = np.zeros(saturated.shape, dtype=bool)
    if not saturated.any():
        return found
    window = config.bleed_window_pix
    line = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]])
    for turned in (False, True):
        image, core = (difference.T, saturated.T) if turned else (difference, saturated)
        # one residual of a bright star counts no more than 3 sigma in the mean
        mean = ndimage.uniform_filter1d(np.clip(image, -3, 3), window, axis=1) * np.sqrt(window)
        reach = ndimage.binary_dilation(core, structure=line, iterations=int(np.ceil(3 * fwhm)))
        streak = (np.abs(mean) > config.bleed_sigma) | reach
        label, n = ndimage.label(streak, structure=line)
        index = np.arange(n + 1)
        own = np.bincount(label.ravel(), weights=reach.ravel(), minlength=n + 1)
        length = np.bincount(label.ravel(), minlength=n + 1)
        # a star's residual smeared by the window is at most a window longer than its core
        long = (np.asarray(ndimage.maximum(core, label, index)) > 0) & (length - own > 1.2 * window)
        long[0] = False
        found |= long[label].T if turned else long[label]
    return found
