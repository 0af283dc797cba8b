"""How the shape of a stack's stars changes with their S/N."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.scatter import excess_scatter
from ks4diff.stages.psf_clean import widths
from ks4diff.stages.psf_stars import Sample

REFERENCE_SNR = 300.0  # of the stars that a PSF is that of
LEAST_SNR = 125.0  # of fainter stars a median shows no more than their mean
SIGMA = 3.0  # of a change of width: less is none, as in a mean or of two exposures
STARS = 24  # of a region, that show it
CLIP = 3.0  # sigma: galaxies and blends


def faintness(sample: Sample, model: np.ndarray, amplitudes: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return float64 [r, k]: by how much the stars' 1 / (S/N) is above that of `REFERENCE_SNR`, over it.

    A row for each region of `STARS` whose widths about the model change with it by `SIGMA`, 0 elsewhere. A
    median of unlike exposures has another shape at every S/N, as noise mixes their order: of dithers of 0.9,
    1.7 and 1.6" the share of light within half a FWHM is 0.6 % smaller at S/N 1000 than at 300, and 1.7 %
    larger at 100.

    Parameters
    ----------
    sample
        Stars, stamps [k, n, n].
    model, amplitudes
        Float64 [1 + m, n, n] and [m, k]: the PSF is ``model[0]`` and modes of these strengths.
    core
        Bool [n, n]: the pixels that tell a width.

    """
    snr = np.sqrt((model[0] ** 2 / sample.variance(model[0])).sum(axis=(1, 2)))
    faint = REFERENCE_SNR / np.maximum(snr, LEAST_SNR) - 1
    value, error = widths(sample.without(amplitudes, model[1:]), model[0], core)
    rows = []
    for region, many in zip(*np.unique(sample.region, return_counts=True), strict=True):
        own = sample.region == region
        if many >= STARS and _slope(faint[own], value[own], error[own]) > SIGMA:
            rows.append(faint * own)
    return np.reshape(rows, (-1, len(faint)))


def _slope(faint: np.ndarray, value: np.ndarray, error: np.ndarray) -> float:
    """Return by how many sigma values [k] change with ``faint``; 0 where that is the same for all."""
    rest = value - np.median(value)
    sigma = np.hypot(error, excess_scatter(rest, error))
    weight = sigma**-2
    rest = np.clip(rest, -CLIP * sigma, CLIP * sigma)
    apart = faint - np.average(faint, weights=weight)
    if np.ptp(apart) == 0:
        return 0.0
    return float(abs((weight * apart) @ rest) / np.sqrt(weight @ apart**2))
