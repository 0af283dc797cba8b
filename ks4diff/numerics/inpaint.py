"""Fill holes smoothly, so that their edges ring nowhere."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

OVER_RELAXATION = 1.6  # converges for any value in (0, 2); the doc of `fill` says how far this one gets


@jit
def _relax(image, rows, columns, sweeps, over):
    """Move each listed pixel towards the mean of its neighbours in place, in order, ``sweeps`` times."""
    height, width = image.shape
    for _ in range(sweeps):
        for k in range(len(rows)):
            y, x = rows[k], columns[k]
            total = 0.0
            n = 0
            if y > 0:
                total += image[y - 1, x]
                n += 1
            if y < height - 1:
                total += image[y + 1, x]
                n += 1
            if x > 0:
                total += image[y, x - 1]
                n += 1
            if x < width - 1:
                total += image[y, x + 1]
                n += 1
            if n > 0:
                image[y, x] += over * (total / n - image[y, x])


def fill(image: np.ndarray, bad: np.ndarray, *, sweeps: int = 60) -> np.ndarray:
    """Return a float32 copy of ``image`` with its bad pixels relaxed towards the mean of their neighbours.

    Solves Laplace's equation in each hole by over-relaxation, starting from 0 (the sky): a star's core is
    filled from its rim. After 60 sweeps the middle of a round hole of 20 px has reached 99.9 % of its rim's
    value, of 30 px 92 %, of 60 px 26 %: in a wider hole the middle stays at sky and only the rim is smooth.

    ``image`` float [y, x]; ``bad`` bool [y, x]; what bad pixels hold, NaN included, does not matter.
    """
    filled = np.where(bad, np.float32(0), image).astype(np.float32)
    rows, columns = np.nonzero(bad)
    _relax(filled, rows, columns, sweeps, OVER_RELAXATION)
    return filled
