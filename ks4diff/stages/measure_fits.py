"""What a candidate could be instead of a point: two points of opposite sign, or a streak; and its motion."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.cutouts import products
from ks4diff.numerics.point_pair import MARGIN, autocorrelation, fit_pairs
from ks4diff.numerics.streak_fit import REACH, fit_streaks
from ks4diff.products.difference import Difference
from ks4diff.stages.place import Place

PAIR_FWHM = 2.5  # between the two points: farther apart they are two candidates
AT_A_TIME = 256  # rows: 5 MB of boxes


def add_fits(rows: np.ndarray, place: Place, difference: Difference) -> None:
    """Fill the columns of the dipole and of the trail, fluxes in science counts; in place."""
    alike = autocorrelation(place.psf)
    half = int(np.ceil(PAIR_FWHM * place.fwhm)) + MARGIN
    for start in range(0, len(rows), AT_A_TIME):
        part = rows[start : start + AT_A_TIME]
        x, y = part["x"], part["y"]
        at = np.stack([x - np.rint(x), y - np.rint(y)])
        error = np.maximum(part["flux_err"].astype(np.float64), 1e-30)
        wide = REACH + MARGIN
        boxes = products(difference.score_corr, difference.flux_err, np.stack([x, y]), max(half, wide))
        low = (boxes.shape[1] - 2 * half - 1) // 2
        near = np.ascontiguousarray(boxes[:, low : low + 2 * half + 1, low : low + 2 * half + 1])
        pair = fit_pairs(near, error, at, alike)
        part["dipole_pos_flux"], part["dipole_neg_flux"] = pair.positive, pair.negative
        part["dipole_sep"], part["dipole_angle"] = pair.separation, np.degrees(pair.angle)
        part["dipole_dchi2"] = pair.gain
        low = (boxes.shape[1] - 2 * wide - 1) // 2
        streak = fit_streaks(boxes[:, low : low + 2 * wide + 1, low : low + 2 * wide + 1], error, at, alike)
        part["trail_length"], part["trail_angle"] = streak.length, np.degrees(streak.angle)
        part["trail_dchi2"] = streak.gain
