"""How science pixels map to template pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Polynomial map from science pixel (x, y) to template pixel, both 0-based at pixel centres.

    ``coefficients`` is float64 [2, n_terms] over the monomials u^i v^j, i + j <= degree, in the order
    of `ks4diff.numerics.polynomial.exponents`, with u = (x - centre[0]) / scale, v likewise.
    """

    coefficients: np.ndarray
    degree: int
    centre: tuple[float, float]
    scale: float
    n_matched: int
    rms_pix: float  # per axis, of the matched stars after clipping, template pixels
    method: str  # "pattern", "wcs" or "identity": where the first guess came from
