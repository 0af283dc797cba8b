"""The noise of both images at one place of a chip."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.lanczos import COORDINATE_STEP
from ks4diff.numerics.lanczos_noise import noise_variance
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.align import noise_near

SHALLOWEST, LEAST_LEFT = 0.01, 0.3  # parts of the mean variance, and of a noise once the shared is gone


def depth(image: CalibratedChip | AlignedTemplate) -> Cells:
    """Return the sky's local variance over its mean on the chip: what the noise models' sigma² leaves out.

    Of a resampled template it is that of its original pixels. Resampling by half a pixel halves a pixel's
    variance but not that of the score, which has its power at low frequencies where no weights take any;
    what they do to the others is in the correlation of the patch.
    """
    sky = image.image.sky_variance
    values = np.array(sky.values, dtype=np.float64)
    nodes = getattr(image, "nodes", None)
    if nodes is not None and image.original_noise is not None:
        left = noise_variance(nodes, image.original_noise.correlation)
        for j, i, rows, columns in sky.boxes():
            near = [slice(s.start // COORDINATE_STEP, -(-s.stop // COORDINATE_STEP)) for s in (rows, columns)]
            values[j, i] /= left[*near].mean()
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return Cells.constant(1.0, sky.shape)
    values = np.where(known, values, values[known].mean()) / values[known].mean()
    return Cells(values=np.maximum(values, SHALLOWEST).astype(np.float32), shape=sky.shape)


def science_noise(chip: CalibratedChip, unshared: NoiseModel, ratio: float) -> NoiseModel:
    """Return the science image's noise where its variance is ``ratio`` times the mean.

    ``unshared`` is its noise over the chip without what both images share.
    """
    return _without_shared(chip.noise, ratio, chip.noise, unshared)


def template_noise(
    template: AlignedTemplate, unshared: NoiseModel, ratio: float, rows: slice, columns: slice
) -> NoiseModel:
    """Return the template's noise in a rectangle, with the correlation that resampling gave it there.

    The sub-pixel phases of the resampling beat over the chip, and with them the correlation; what both images
    share (``unshared`` is the template's noise over the chip without it) lies in the sky and does not.
    """
    return _without_shared(noise_near(template, rows, columns), ratio, template.noise, unshared)


def _without_shared(here: NoiseModel, ratio: float, mean: NoiseModel, unshared: NoiseModel) -> NoiseModel:
    """Return the noise ``here``, its variance times ``ratio``, less what ``unshared`` lacks of ``mean``."""
    n = max(len(model.correlation) for model in (here, mean, unshared))
    own, full, rest = (_covariance(model, n) for model in (here, mean, unshared))
    own = ratio * own
    covariance = own + rest - full
    middle = n // 2
    if covariance[middle, middle] < LEAST_LEFT * own[middle, middle]:
        covariance = own
    variance = float(covariance[middle, middle])
    return NoiseModel(sigma=variance**0.5, correlation=covariance / variance, method=here.method)


def _covariance(model: NoiseModel, n: int) -> np.ndarray:
    """Return the covariance by lag, counts², [n, n], zero beyond what is known."""
    return np.pad(model.sigma**2 * np.asarray(model.correlation), (n - len(model.correlation)) // 2)
