"""The point-spread function of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Psf:
    """A PSF sampled at pixels: float32 [n, n], n odd, sum 1, centred on the middle pixel."""

    stamp: np.ndarray
    fwhm_pix: float
    n_stars: int
