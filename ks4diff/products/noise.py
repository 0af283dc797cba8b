"""The noise of an image's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Background noise of one pixel and its correlation with its neighbours.

    ``sigma`` counts; ``correlation`` float64 [n, n], n odd, by lag (dy, dx), 1 in the middle;
    ``method`` "sky" (measured on source-free pixels) or "high frequencies" (in a crowded field).
    """

    sigma: float
    correlation: np.ndarray
    method: str
