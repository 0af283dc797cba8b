"""How science pixels map to template pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.products.cells import Cells


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Map from science pixel (x, y) to template pixel, both 0-based at pixel centres.

    A polynomial plus, where the stars held more, the ``correction`` (Cells of [2, rows, columns], template
    pixels). ``coefficients`` is float64 [2, n_terms] over the monomials u^i v^j, i + j <= degree, in the
    order of `ks4diff.numerics.polynomial.exponents`, with u = (x - centre[0]) / scale, v likewise.

    ``rms_pix`` is the residuals' of stars that tell of the map and not of themselves: S/N above 50 in both
    images, expected noise of both positions below 0.03 px, compared by the pixels of both, and not beyond
    three times the spread (median distance / 1.1774). With fewer than 10 such stars it is
    ``rms_weighted_pix``.

    ``scatter_pix`` is how far these stars lie off the map per axis beyond their noise: by what PSFs lack, by
    neighbours, by motions of their own; 0 with fewer than 10.

    Per cell of about 1024 px: ``n_stars`` that hold the map there, their ``residual_rms`` per axis (NaN with
    fewer than 3), the standard ``error`` of the map itself per axis, pixels, and ``bad``: do not trust it.
    """

    coefficients: np.ndarray
    degree: int
    centre: tuple[float, float]
    scale: float
    n_matched: int
    rms_pix: float  # per axis, template pixels; see above
    method: str  # "pattern", "wcs", "identity" or "ahead": where the first guess came from
    pairs: np.ndarray  # int64 [2, n_matched]: rows of the science and of the template star list
    n_stars: Cells
    residual_rms: Cells
    error: Cells
    bad: Cells
    correction: Cells | None = None
    rms_weighted_pix: float = float("nan")  # of all stars kept, by their inverse variance
    scatter_pix: float = 0.0  # template pixels; see above
