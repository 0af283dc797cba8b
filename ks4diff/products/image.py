"""Pixels with their variance and the named reasons not to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np

from ks4diff.products.cells import Cells


class PixelFlag(IntFlag):
    """Why a pixel is masked; the bit values are written to the MASK image. Below 2**14: see `lanczos`."""

    NO_DATA = 1
    NON_FINITE = 2
    SATURATED = 4
    BLEED = 8
    TEMPLATE_NO_DATA = 16
    TEMPLATE_SATURATED = 32
    EDGE = 64
    DEAD_AMPLIFIER = 128
    BAD_PIXEL = 256
    SEAM = 512
    CROSSTALK = 1024
    COSMIC_RAY = 2048


PIXEL_FLAG_DESCRIPTION = {
    PixelFlag.NO_DATA: "no data: a border or block of exact zeros",
    PixelFlag.NON_FINITE: "NaN or infinite in the file",
    PixelFlag.SATURATED: "science pixel at or above the saturation level, or touching one",
    PixelFlag.BLEED: "charge bled along the column or row from a saturated star",
    PixelFlag.TEMPLATE_NO_DATA: "template has no data here, or the science image lies outside it",
    PixelFlag.TEMPLATE_SATURATED: "template is saturated here",
    PixelFlag.EDGE: "closer to the border than one PSF width",
    PixelFlag.DEAD_AMPLIFIER: "of an amplifier that gives no signal",
    PixelFlag.BAD_PIXEL: "hot, dark or otherwise bad: from a bad-pixel map, or a column that stands out",
    PixelFlag.SEAM: "on the border of two amplifiers where their levels do not join",
    PixelFlag.CROSSTALK: "receives crosstalk from a saturated pixel of another amplifier",
    PixelFlag.COSMIC_RAY: "hit by a cosmic ray, as the file says or full-frame cleaning found",
}


@dataclass(frozen=True, kw_only=True)
class MaskedImage:
    """An image on one pixel grid, arrays [y, x].

    ``data`` float32, background subtracted, counts; ``flags`` uint16 of PixelFlag bits; ``sky_variance``
    counts² of one pixel free of sources, without the neighbour covariance that resampling brings. What the
    sources add is in `ks4diff.stages.variance`.
    """

    data: np.ndarray
    flags: np.ndarray
    sky_variance: Cells

    @property
    def good(self) -> np.ndarray:
        """Boolean [y, x]: no flag raised."""
        return self.flags == 0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.data.shape
