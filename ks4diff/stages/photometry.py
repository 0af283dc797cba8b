"""Fluxes, magnitudes and depth."""

from __future__ import annotations

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.difference import Difference

NJY_ZEROPOINT = 31.4  # AB magnitude of 1 nJy
SAMPLE_PIXELS = 4_000_000  # give the median of errors that differ by a tenth to 1e-4


def njy_per_count(zeropoint: float) -> float:
    """Return the nJy of one count, given the AB magnitude of one count."""
    return float(10 ** (0.4 * (NJY_ZEROPOINT - zeropoint)))


def star_scale(scale: Cells, area: Cells) -> float:
    """Return a star's science counts per template count, the median over a chip.

    ``scale`` is that of surface brightness, which resampling conserves, ``area`` that of science pixels in
    template pixels. Both change by 7 % from the chip's middle to its corners, their ratio does not: the
    median of one over the middle of the other is 6 mmag off.
    """
    x, y = (at.ravel() for at in scale.middles())
    return float(np.median(scale.values.ravel() / area.at(x, y)))


def magnitude(counts: float, zeropoint: float | None) -> float | None:
    """Return the AB magnitude of a positive flux in counts, None without a zero point."""
    return None if zeropoint is None or not counts > 0 else float(zeropoint - 2.5 * np.log10(counts))


def limiting_flux(difference: Difference) -> float:
    """Return the median 5-sigma point-source flux over the unmasked pixels, science counts.

    Of a sample of whole rows in a large image; NaN without such pixels.
    """
    rows = slice(None, None, max(difference.flags.size // SAMPLE_PIXELS, 1))
    error = difference.flux_err[rows][difference.flags[rows] == 0]
    return 5.0 * float(np.median(error)) if error.size else float("nan")
