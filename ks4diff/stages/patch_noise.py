"""The noise of both images at one place of a chip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.products.noise import NoiseModel


def noise_ratio(
    image: CalibratedChip | AlignedTemplate, x: np.ndarray | float, y: np.ndarray | float
) -> np.ndarray:
    """Return the sky's variance at pixels (x, y) [n] over its mean on the chip, float64 [n], above 0.01.

    The noise models hold one mean sigma: it was measured on all source-free pixels together.
    """
    variance = image.image.sky_variance
    known = variance.values[np.isfinite(variance.values) & (variance.values > 0)]
    if known.size == 0:
        return np.ones(np.size(x))
    mean = float(known.mean(dtype=np.float64))
    return np.maximum(np.nan_to_num(variance.at(np.atleast_1d(x), np.atleast_1d(y)), nan=mean) / mean, 0.01)


def local_noise(
    chip: CalibratedChip,
    template: AlignedTemplate,
    match: Match,
    x: float,
    y: float,
    *,
    reach: tuple[int, int],
) -> tuple[NoiseModel, NoiseModel]:
    """Return the noise of science and template around pixel (x, y), each in its own counts.

    ``reach`` (columns, rows) is the size of the patch that the models stand for.
    """
    del reach
    science, reference = match.science_noise, match.template_noise
    factors = (float(np.sqrt(noise_ratio(image, x, y)[0])) for image in (chip, template))
    return tuple(
        replace(model, sigma=model.sigma * factor)
        for model, factor in zip((science, reference), factors, strict=True)
    )
