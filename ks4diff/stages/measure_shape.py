"""Columns that compare each candidate's stamp of the difference with the difference's PSF."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics import moments
from ks4diff.numerics.candidate_shapes import measure_shapes
from ks4diff.numerics.moved_psf import moved_psfs
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.difference import Difference
from ks4diff.stages.measure_context import MeasureConfig
from ks4diff.stages.measure_flux import disc
from ks4diff.stages.place import Place, noise_at

REACH_FWHM = 2.0
CONTRAST_NOISE = 1.06  # sqrt(1 + 1 / 8): a pixel less the mean of eight


def add_shapes(
    rows: np.ndarray, place: Place, chip: CalibratedChip, difference: Difference, config: MeasureConfig
) -> None:
    """Fill width, moments, sharpness, misfit and the opposite lobe of the rows of a place; in place."""
    fwhm = place.fwhm
    half = int(np.ceil(REACH_FWHM * fwhm))
    x, y = rows["x"], rows["y"]
    sign = np.where(rows["is_positive"], np.float32(1), np.float32(-1))[:, None, None]
    clear = moments.stamps(difference.flags, x, y, half, 1) == 0
    data = np.where(clear, sign * moments.stamps(difference.difference, x, y, half), np.float32(np.nan))
    psf = moved_psfs(place.psf, x - np.rint(x), y - np.rint(y), 2 * half + 1)
    noise = noise_at(difference, x, y)
    shapes = measure_shapes(data, psf, noise, fwhm=fwhm, gain=chip.gain, model_error=config.model_error)
    own = moved_psfs(place.psf, np.zeros(1), np.zeros(1), 2 * half + 1)
    own_width, _ = moments.gaussian_shape(own[0], fwhm)
    rows["psf_chi2"], rows["psf_corr"] = shapes.chi2, shapes.correlation
    rows["fwhm"], rows["elongation"] = shapes.width / own_width * fwhm, shapes.elongation
    rows["ixx"], rows["iyy"], rows["ixy"] = shapes.xx, shapes.yy, shapes.xy
    rows["sharpness"] = shapes.contrast / shapes.psf_contrast
    rows["sharpness_err"] = CONTRAST_NOISE * noise / shapes.psf_contrast
    score = sign * moments.stamps(difference.score_corr, x, y, half, 0.0)
    lowest = np.where(clear & disc(half, REACH_FWHM * fwhm), score, 0).min(axis=(1, 2))
    rows["opposite"] = np.maximum(-lowest, 0) / np.maximum(np.abs(rows["scorr"]), 1e-6)
