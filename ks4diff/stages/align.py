"""Resample the template onto the science grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from scipy.signal import convolve2d

from ks4diff.numerics.inpaint import fill_holes
from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.numerics.lanczos_noise import noise_covariance, noise_variance
from ks4diff.numerics.pools import pool
from ks4diff.numerics.taps import COORDINATE_STEP
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.products.registration import Registration
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.register import template_position
from ks4diff.stages.stack_frames import stack_dithers
from ks4diff.stages.template_stars import on_chip

MIN_COVERAGE = 0.05  # with less overlap there are too few stars to match anything
NOISE_CELL_PIX = 256  # the depth of a KS4 stack steps at chip and dither borders: sharper than in 1k cells
_STRIP_ROWS = 256  # 5 MB of a chip's flags


def align(
    template: CalibratedChip, chip: CalibratedChip, registration: Registration, config: PsfConfig
) -> AlignedTemplate:
    """Return the template on the science chip's grid with its PSF there; surface brightness is conserved.

    Not flux: a star of F template counts sums up to F / area on the chip's grid, ``area`` being that of a
    science pixel in template pixels there; it changes by 7 % over a KMTNet chip, and the flux scale takes it.
    The PSF is measured on the resampled image itself, so that what resampling does to it is in it, at the
    template's own stars: what is clean in an image of worse seeing may be a blend or a galaxy here (core off
    by 27 % at 2.4" on 1.3"). The noise is the template's own with what the weights do to it: ``noise``
    averaged over the chip, `noise_near` for one patch, the sky's variance in cells of about 256 px.

    Raises
    ------
    SkipChip
        When the template covers less than 5 % of the science image, or shows too few stars there.

    """
    shape = chip.image.shape
    x, y = node_grid(shape)
    nodes = template_position(registration, x.ravel(), y.ravel()).reshape(2, *x.shape)
    # what the serial steps leave of a core: 0.5 s of a full chip
    with ThreadPoolExecutor(1) as beside:
        dithers = beside.submit(stack_dithers, chip, template, registration)
        data, flags = resample(template.image.data, template.image.flags, nodes, shape)
        coverage = 1.0 - _renamed(flags) / flags.size
        if coverage < MIN_COVERAGE:
            raise SkipChip("the template hardly covers the image", coverage=coverage)
        filled = beside.submit(fill_holes, data, flags)
        noise = resampled_noise(template.noise, noise_covariance(nodes))
        gain = template.gain * (template.noise.sigma / noise.sigma) ** 2
        sky = _sky_variance(template, nodes, shape)
        image = MaskedImage(data=data, flags=flags, sky_variance=sky)
        area = _areas(nodes, shape)
        stars = on_chip(template.stars, registration, area, shape)
        # a star's wings cancel as far out as both PSFs hold them
        config = replace(config, least_half_pix=max(config.least_half_pix, chip.psf.stamp.shape[0] // 2))
        filled.result()  # a small image's PSF looks at smoothed pixels, bad ones among them
        psf, _ = model_psf(image, _within(stars, shape), gain, config, dithers.result())
    return AlignedTemplate(
        image=image,
        psf=psf,
        noise=noise,
        gain=gain,
        coverage=coverage,
        area=area,
        nodes=nodes,
        original_noise=template.noise,
        stars=stars,
    )


def _within(stars: StarList, shape: tuple[int, int]) -> StarList:
    """Return the stars on an image of ``shape``."""
    inside = (stars.x >= 0) & (stars.x <= shape[1] - 1) & (stars.y >= 0) & (stars.y <= shape[0] - 1)
    return StarList(**{name: values[inside] for name, values in vars(stars).items()})


def noise_near(template: AlignedTemplate, rows: slice, columns: slice) -> NoiseModel:
    """Return the noise model of a patch of the aligned template, by the sub-pixel phases found there.

    ``rows`` and ``columns`` have no step and lie in the image; they are widened to multiples of 16 px. The
    sigma is that of the whole template's noise resampled as here; the local depth is in the image's
    ``sky_variance``, which has this in it too. 2 ms.
    """
    if template.nodes is None or template.original_noise is None:
        return template.noise
    inside = []
    for part, n in zip((rows, columns), template.image.shape, strict=True):
        first, last, _ = part.indices(n)
        inside.append(slice(first // COORDINATE_STEP, (last - 1) // COORDINATE_STEP + 2))
    return resampled_noise(template.original_noise, noise_covariance(template.nodes[:, *inside]))


def _renamed(flags: np.ndarray) -> int:
    """Turn flags of `resample`, in place, into those of a template; return how many pixels have any."""
    name = np.full(2**16, PixelFlag.TEMPLATE_NO_DATA, dtype=np.uint16)
    name[(np.arange(2**16) & int(PixelFlag.SATURATED | PixelFlag.BLEED)) != 0] = PixelFlag.TEMPLATE_SATURATED
    name[0] = 0

    def rename(top: int) -> int:
        strip = flags[top : top + _STRIP_ROWS].ravel()
        at = np.flatnonzero(strip != 0)
        strip[at] = name[strip[at]]
        return len(at)

    with pool() as threads:
        return sum(threads.map(rename, range(0, len(flags), _STRIP_ROWS)))


def _sky_variance(template: CalibratedChip, nodes: np.ndarray, shape: tuple[int, int]) -> Cells:
    """Return the template's local sky variance on the chip, with what the weights do to it cell by cell."""
    sky = Cells(values=np.empty(cell_grid(shape, NOISE_CELL_PIX), dtype=np.float32), shape=shape)
    left = noise_variance(nodes, template.noise.correlation)
    x, y = (np.rint(v / COORDINATE_STEP).astype(int) for v in sky.middles())
    local = template.image.sky_variance.at(*nodes[:, y, x].reshape(2, -1)).reshape(x.shape)
    for j, i, rows, columns in sky.boxes():
        near = [slice(s.start // COORDINATE_STEP, -(-s.stop // COORDINATE_STEP)) for s in (rows, columns)]
        sky.values[j, i] = local[j, i] * left[*near].mean()
    return sky


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
