"""The difference flux at a position that is known beforehand."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from ks4diff.products.registration import Registration
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.register import template_position

REACH_PIX = 12  # of the spline that reads between pixels: farther ones weigh less than 1e-6


def forced_flux(subtracted: SubtractedChip, x: float, y: float) -> tuple[float, float]:
    """Return (flux, error) in science counts of a point source at template pixel (x, y), detected or not.

    NaN outside the science image and where it is flagged.
    """
    column, row = science_position(subtracted.registration, x, y)
    difference = subtracted.difference
    rows, columns = difference.flags.shape
    if not (0 <= column <= columns - 1 and 0 <= row <= rows - 1):
        return float("nan"), float("nan")
    if difference.flags[round(row), round(column)] != 0:
        return float("nan"), float("nan")
    top, left = max(round(row) - REACH_PIX, 0), max(round(column) - REACH_PIX, 0)
    part = slice(top, round(row) + REACH_PIX + 1), slice(left, round(column) + REACH_PIX + 1)
    at, err = [[row - top], [column - left]], difference.flux_err[part]
    flux = map_coordinates(difference.score_corr[part] * err, at, order=3, mode="nearest")[0]
    error = map_coordinates(err, at, order=1, mode="nearest")[0]
    return float(flux), float(error)


def science_position(registration: Registration, x: float, y: float) -> tuple[float, float]:
    """Return the science pixel (x, y) that lies on a template pixel: the registration inverted.

    By fixed-point steps of the near-identity map; each shrinks the error by the scale and rotation, some 50
    times.
    """
    guess = np.array([x, y], dtype=np.float64)
    for _ in range(10):
        guess += np.array([x, y]) - template_position(registration, guess[:1], guess[1:])[:, 0]
    return float(guess[0]), float(guess[1])
