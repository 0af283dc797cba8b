"""The motion statistic of a difference, made where it is asked for."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.zogy_patch import translient
from ks4diff.products.difference import Difference


def motion(difference: Difference, rows: slice, columns: slice) -> np.ndarray:
    """Return translient Z², float32 [y, x] of a rectangle: chi² of 2 degrees of freedom where nothing moved.

    A source that moved by less than a PSF leaves a dipole, whose gradient in the middle is far beyond its
    noise; a new one leaves Z² near 0 there. Raises ValueError for a difference without ``slopes``.
    """
    if difference.slopes is None:
        raise ValueError("this difference does not know the slopes of its noise")
    (y0, y1, _), (x0, x1, _) = (
        s.indices(n) for s, n in zip((rows, columns), difference.flags.shape, strict=True)
    )
    part = slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1)
    slopes = difference.slopes.at(np.array([(x0 + x1) / 2]), np.array([(y0 + y1) / 2]))[:, 0]
    z2 = translient(difference.score_corr[part], difference.flux_err[part], tuple(float(s) for s in slopes))
    top, left = y0 - part[0].start, x0 - part[1].start
    return z2[top : top + y1 - y0, left : left + x1 - x0]
