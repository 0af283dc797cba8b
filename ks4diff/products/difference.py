"""What the subtraction hands to detection and measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf


@dataclass(frozen=True, kw_only=True)
class AmplifierStep:
    """How one amplifier's light stands to the chip's: columns [x0, x1), rows [y0, y1).

    ``factor`` multiplies light (1 is none), with standard error ``error``; ``level`` counts were left of its
    sky, with standard error ``level_error``.
    """

    x0: int
    x1: int
    y0: int
    y1: int
    factor: float
    error: float
    level: float
    level_error: float


@dataclass(frozen=True, kw_only=True)
class Match:
    """Science = amplifier factor * (scale * template + background), once both have one PSF.

    ``scale`` science counts per template count of surface brightness, ``scale_error`` its standard error as a
    fraction, both over the chip; ``flux_scale`` and ``flux_scale_error`` (fraction) are the median ones.
    ``stamp_error`` is the part of that error which comes of light that the PSFs' stamps lack: it moves
    fluxes, but the same stamps take it back when static light is subtracted: nothing of it is left there.
    ``star_scatter`` is how far the ratio of one star's fluxes scatters beyond its noise, a fraction: pixels'
    response, colours, what a median of dithers makes of a star that no pixel grid shows alike.
    """

    flux_scale: float
    flux_scale_error: float
    scale: Cells
    scale_error: Cells
    amplifiers: tuple[AmplifierStep, ...]  # empty where no steps were found
    background: Cells  # science counts
    science_noise: NoiseModel  # science counts, without what both images share
    template_noise: NoiseModel  # template counts, likewise
    stamp_error: float = 0.0
    star_scatter: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Proper difference and scores on the science grid, float32 [y, x] unless said.

    ``difference`` D / F_D: science counts, noise white with std 1 / F_D; ``psf`` is P_D, its PSF.
    ``score_corr`` S_corr: unit normal where nothing changed. ``flux_err`` is the error of the best PSF flux
    of a source centred on each pixel, science counts. ``flags`` are PixelFlag bits. ``flux_scale`` is science
    counts per template count, the median of ``scale`` over the chip. ``noise_map`` is ``noise`` over the
    chip; ``slopes`` [3] per cell the variances (xx, yy, xy) of central differences of S over that of S, which
    the translient statistic needs.
    """

    difference: np.ndarray
    score_corr: np.ndarray
    flux_err: np.ndarray
    flags: np.ndarray
    psf: Psf
    flux_scale: float
    noise: float  # median std of one pixel of ``difference``, science counts
    noise_map: Cells | None = None
    slopes: Cells | None = None
    scale: Cells | None = None

    def scale_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [n] science counts per template count at pixels: it changes by 8 % over a chip."""
        if self.scale is None:
            return np.full(len(x), self.flux_scale)
        return self.scale.at(x, y).astype(np.float64)

    @property
    def flux(self) -> np.ndarray:
        """S / F_S: the best PSF flux of a source centred on each pixel, science counts; made when asked."""
        return self.score_corr * self.flux_err


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A verdict on one subtraction: "pass", "warn" or "fail", with the clauses behind it."""

    verdict: str
    reasons: tuple[str, ...]
