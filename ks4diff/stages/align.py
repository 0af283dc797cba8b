"""Resample the template onto the science grid."""

from __future__ import annotations

import numpy as np
from scipy.signal import convolve2d

from ks4diff.numerics.inpaint import fill
from ks4diff.numerics.lanczos import COORDINATE_STEP, node_grid, noise_covariance, resample
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
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
    data, raised = resample(template.image.data, template.image.flags, nodes, shape)
    flags = np.zeros(shape, dtype=np.uint16)
    saturated = (raised & int(PixelFlag.SATURATED | PixelFlag.BLEED)) != 0
    flags[saturated] |= np.uint16(PixelFlag.TEMPLATE_SATURATED)
    flags[(raised != 0) & ~saturated] |= np.uint16(PixelFlag.TEMPLATE_NO_DATA)
    coverage = float((flags == 0).mean())
    if coverage < MIN_COVERAGE:
        raise SkipChip("the template hardly covers the image", coverage=coverage)
    weights = noise_covariance(nodes)
    noise = resampled_noise(template.noise, weights)
    sky = _carried(template.image.sky_variance, nodes, shape, (noise.sigma / template.noise.sigma) ** 2)
    gain = template.gain / float(weights[weights.shape[0] // 2, weights.shape[0] // 2])
    image = MaskedImage(data=fill(data, flags != 0), flags=flags, sky_variance=sky)
    psf, _ = model_psf(image, chip.stars, gain, config)
    return AlignedTemplate(
        image=image,
        psf=psf,
        noise=noise,
        gain=gain,
        coverage=coverage,
        area=_areas(nodes, shape),
    )


def _carried(cells: Cells, nodes: np.ndarray, shape: tuple[int, int], factor: float) -> Cells:
    """Return a map of the template as a map of the science chip, times ``factor``."""
    rows, columns = cell_grid(shape, min(cells.size))
    there = Cells(values=np.empty((rows, columns), dtype=np.float32), shape=shape)
    x, y = there.middles()
    j, i = np.rint(y / COORDINATE_STEP).astype(int), np.rint(x / COORDINATE_STEP).astype(int)
    values = cells.at(*nodes[:, j.ravel(), i.ravel()]).reshape(rows, columns) * factor
    return Cells(values=values.astype(np.float32), shape=shape)


def _areas(nodes: np.ndarray, shape: tuple[int, int]) -> Cells:
    """Return the area of science pixels in template pixels, in cells of about 1024 px."""
    along = np.gradient(nodes, COORDINATE_STEP, axis=2)
    down = np.gradient(nodes, COORDINATE_STEP, axis=1)
    area = np.abs(along[0] * down[1] - along[1] * down[0])
    rows, columns = cell_grid(shape, CELL_PIX)
    there = Cells(values=np.empty((rows, columns), dtype=np.float32), shape=shape)
    x, y = there.middles()
    j, i = np.rint(y / COORDINATE_STEP).astype(int), np.rint(x / COORDINATE_STEP).astype(int)
    return Cells(values=area[j, i].astype(np.float32), shape=shape)


def resampled_noise(noise: NoiseModel, weights: np.ndarray) -> NoiseModel:
    """Return the noise after resampling with weights of a covariance [n, n]; see `noise_covariance`."""
    covariance = convolve2d(noise.correlation, weights)
    middle = covariance.shape[0] // 2
    variance = float(covariance[middle, middle])
    return NoiseModel(
        sigma=noise.sigma * float(np.sqrt(variance)), correlation=covariance / variance, method=noise.method
    )
