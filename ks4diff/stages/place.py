"""What holds for all candidates of one place of a chip: the difference's PSF and its noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.products.difference import Difference


class Place(NamedTuple):
    """Row numbers of candidates near each other and P_D [n, n] there, sum 1, of this FWHM in pixels.

    (x, y) is the middle of them all, ``noise`` [rows] the std of a pixel of the difference at each.
    """

    rows: np.ndarray
    x: float
    y: float
    psf: np.ndarray
    fwhm: float

    @property
    def square(self) -> float:
        """The sum of the PSF's squares."""
        return float((self.psf.astype(np.float64) ** 2).sum())


def psf_of_place(difference: Difference, rows: np.ndarray, x: float, y: float) -> Place:
    """Return the `Place` of candidates around pixel (x, y)."""
    return Place(rows=rows, x=x, y=y, psf=difference.psf.stamp, fwhm=difference.psf.fwhm_pix)


def noise_at(difference: Difference, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return float64 [n]: the std of one pixel of the difference without its sources, science counts."""
    if difference.noise_map is None:
        return np.full(len(x), float(difference.noise))
    return difference.noise_map.at(x, y).astype(np.float64)
