"""Resample the template onto the science grid."""

from __future__ import annotations

import numpy as np
from scipy.signal import convolve2d

from ks4diff.numerics.inpaint import fill
from ks4diff.numerics.lanczos import node_grid, noise_covariance, resample
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.products.registration import Registration
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.register import template_position

MIN_COVERAGE = 0.05  # with less overlap there are too few stars to match anything


def align(
    template: CalibratedChip, chip: CalibratedChip, registration: Registration, config: PsfConfig
) -> AlignedTemplate:
    """Return the template on the science chip's grid with its PSF there; surface brightness is conserved.

    The PSF is measured on the resampled image itself, at the science image's stars, so that what resampling
    does to it is in it. The noise model is the template's own joined to that of the resampling weights.

    Raises
    ------
    SkipChip
        When the template covers less than 5 % of the science image, or shows too few stars there.

    """
    shape = chip.image.shape
    x, y = node_grid(shape)
    nodes = template_position(registration, x.ravel(), y.ravel()).reshape(2, *x.shape)
    data, variance, raised = resample(
        template.image.data, template.image.variance, template.image.flags, nodes, shape
    )
    flags = np.zeros(shape, dtype=np.int32)
    saturated = (raised > 0) & ((raised & (PixelFlag.SATURATED | PixelFlag.BLEED)) != 0)
    flags[saturated] |= PixelFlag.TEMPLATE_SATURATED
    flags[(raised != 0) & ~saturated] |= PixelFlag.TEMPLATE_NO_DATA
    coverage = float((flags == 0).mean())
    if coverage < MIN_COVERAGE:
        raise SkipChip("the template hardly covers the image", coverage=coverage)
    noise, inflation = resampled_noise(template.noise, noise_covariance(nodes))
    image = MaskedImage(data=fill(data, flags != 0), variance=variance * np.float32(inflation), flags=flags)
    psf, _ = model_psf(image, chip.stars, config)
    return AlignedTemplate(
        image=image,
        psf=psf,
        noise=noise,
        gain=template.gain,
        coverage=coverage,
    )


def resampled_noise(noise: NoiseModel, weights: np.ndarray) -> tuple[NoiseModel, float]:
    """Return (noise after resampling, factor by which the variance that took the input as white is off)."""
    covariance = convolve2d(noise.correlation, weights)
    middle = covariance.shape[0] // 2
    variance = float(covariance[middle, middle])
    model = NoiseModel(
        sigma=noise.sigma * float(np.sqrt(variance)), correlation=covariance / variance, method=noise.method
    )
    return model, variance / float(weights[weights.shape[0] // 2, weights.shape[0] // 2])
