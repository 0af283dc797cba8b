"""A piece of a kept difference, as it was stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class KeptPart:
    """Integers [rows, columns] around a position, see `ks4diff.stages.keep` for their steps.

    ``x0``, ``y0`` is the chip's pixel of the first one; ``typical`` the flux error, science counts, that
    ``error`` counts from.
    """

    score: np.ndarray
    error: np.ndarray
    mask: np.ndarray
    x0: int
    y0: int
    typical: float
    fwhm_pix: float  # of the difference's PSF
