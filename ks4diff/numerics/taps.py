"""The weights of Lanczos interpolation, and how coordinates of a resampling are given."""

from __future__ import annotations

from functools import cache

import numpy as np

SUPPORT = 4  # 8x8 taps: a star errs by up to 1.4 % of its peak at FWHM 2.5 px, by 0.6 % at 3 px
COORDINATE_STEP = 16  # 54" of cubic distortion bend 5e-6 per px at a corner of KMTNet: 2e-4 px between nodes
STEPS = 4096  # positions are rounded to 1/4096 px: 7e-5 of the peak of a star of FWHM 2.5 px where steepest


@cache
def tap_table() -> np.ndarray:
    """Return float64 [STEPS + 1, 2 * SUPPORT]: the weights of the pixels around a sample, each row sum 1.

    Row k serves a sample k / STEPS past pixel p; its columns are the pixels p - SUPPORT + 1 .. p + SUPPORT.
    Kernels take the table as an argument: one file then holds the whole of each jitted call chain.
    """
    past = np.arange(STEPS + 1)[:, None] / STEPS
    weights = _lanczos(past - (np.arange(2 * SUPPORT) - SUPPORT + 1))
    table = weights / weights.sum(axis=1, keepdims=True)
    table.flags.writeable = False  # there is one, shared
    return table


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """Return sinc(d) sinc(d / SUPPORT) within the support, 0 beyond."""
    return np.where(np.abs(distance) < SUPPORT, np.sinc(distance) * np.sinc(distance / SUPPORT), 0.0)
