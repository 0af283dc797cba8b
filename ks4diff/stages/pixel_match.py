"""The flux scale from all pixels with light in them: for small and crowded images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from scipy import ndimage

from ks4diff.numerics.matching import convolve, fit_scale
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.stages.variance import pixel_variance

MOST_PIXELS = 2**24  # at 137 bytes each 2.3 GB; a whole KMTNet chip would take 11.6 GB


@dataclass(frozen=True, kw_only=True)
class PixelMatchConfig:
    """How pixels are compared."""

    background_degree: int = 2  # of the first differential background, over the image
    background_mesh_fwhm: float = 12.0  # of the second: 100 times a point source's area, so none is eaten
    scale_range: float = 1000.0  # a flux scale farther from 1 than this factor is no match
    min_pixels: int = 1000
    max_pixels: int = 150_000  # fitted, in a regular grid: neighbours within a PSF say the same
    least_error: float = 0.005  # fraction: what PSF errors leave, which pixels do not show


@dataclass(frozen=True, kw_only=True)
class PixelMatch:
    """Scale and its error (fraction), and the background per pixel, float32 [y, x] science counts.

    ``stamp_error`` is what of the error the PSFs' stamps make; see `Match`.
    """

    scale: float
    error: float
    stamp_error: float
    background: np.ndarray


def pixel_match(chip: CalibratedChip, template: AlignedTemplate, config: PixelMatchConfig) -> PixelMatch:
    """Return one flux scale and the differential background from all pixels with light in them.

    Each image is convolved with the other's PSF, after which static sources differ by the scale alone: blends
    need no deblending and no star list. The background is what they leave, in two steps: a polynomial fitted
    with the scale, then the medians of a mesh.

    Raises
    ------
    SkipChip
        When the image has more than `MOST_PIXELS`, or the template explains none of its light.

    """
    if chip.image.data.size > MOST_PIXELS:
        raise SkipChip(
            "too few stars or too little sky in common to match so large an image",
            pixels=float(chip.image.data.size),
            limit=float(MOST_PIXELS),
        )
    good = chip.image.good & template.image.good
    width = max(chip.psf.fwhm_pix, template.psf.fwhm_pix)
    usable = _away_from(~good, int(np.ceil(2 * width)))
    if usable.sum() < config.min_pixels:
        raise SkipChip("too few pixels in common", pixels=float(usable.sum()))
    sampled = _thinned(usable, config.max_pixels)
    science = convolve(chip.image.data, template.psf.stamp)
    reference = convolve(template.image.data, chip.psf.stamp)
    variances = [
        pixel_variance(part.image, part.gain, smooth_pix=part.psf.fwhm_pix / 2.3548)
        for part in (chip, template)
    ]
    scale = 1.0
    for _ in range(3):
        # noise grows with the source: without this the few brightest stars would decide alone
        variance = variances[0] + scale**2 * variances[1] + (0.02 * scale * reference) ** 2
        weight = np.where(sampled, 1 / variance, 0.0)
        scale, error, background = fit_scale(science, reference, weight, degree=config.background_degree)
        if not (1 / config.scale_range < scale < config.scale_range):
            raise SkipChip("the template explains none of the science image's light", flux_scale=scale)
    left = science - scale * reference - background
    background = background + _mesh_background(
        left, usable, int(np.ceil(config.background_mesh_fwhm * width))
    )
    # pixels within a PSF's area of both images are one measurement, not many
    area = 2.27 * (chip.psf.fwhm_pix**2 + template.psf.fwhm_pix**2)
    step2 = float(usable.sum()) / float(sampled.sum())
    alike = max(area / step2, 1.0)
    return PixelMatch(
        scale=scale,
        error=float(np.hypot(np.sqrt(alike) * error / scale, config.least_error)),
        stamp_error=config.least_error,
        background=background.astype(np.float32),
    )


def _thinned(usable: np.ndarray, limit: int) -> np.ndarray:
    """Return ``usable`` on every n-th row and column only, n the least that leaves about ``limit`` pixels."""
    step = int(np.ceil(np.sqrt(usable.sum() / limit)))
    grid = np.zeros_like(usable)
    grid[::step, ::step] = True
    return usable & grid


def _away_from(bad: np.ndarray, distance: int) -> np.ndarray:
    """Return which pixels are farther than ``distance`` px from a bad pixel and from the border."""
    padded = np.pad(bad, 1, constant_values=True)
    return ndimage.distance_transform_edt(~padded)[1:-1, 1:-1] > distance


def _mesh_background(left: np.ndarray, usable: np.ndarray, mesh: int) -> np.ndarray:
    """Return float32 [y, x]: the smooth part of what the match left, sources and their residuals masked."""
    middle = float(np.median(left[usable]))
    spread = 1.4826 * float(np.median(np.abs(left[usable] - middle)))
    masked = ~usable | (np.abs(left - middle) > 3 * spread)
    mesh = min(mesh, max(min(left.shape) // 2, 16))
    return sep.Background(np.ascontiguousarray(left), mask=masked, bw=mesh, bh=mesh, fw=3, fh=3).back()
