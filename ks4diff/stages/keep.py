"""The kept difference: what forced photometry of later days needs of a chip, in few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from ks4diff.products.difference import Difference
from ks4diff.products.image import PixelFlag
from ks4diff.products.kept import KeptPart

SCORE_STEP = 1 / 16  # of sigma: adds 0.03 % of noise variance
ERROR_STEP = 1 / 256  # of ln(error): 0.4 %, so 0.1 % rms of scatter, and none on average
REACH_PIX = 12  # of the spline that reads between pixels: farther ones weigh less than 1e-6
_NO_ERROR = -32768
_STRIP = 512  # rows at a time: a plane in float64 would be half a gigabyte


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """How long differences are kept for forced photometry, and how much disk they may take."""

    days: float = 30.0  # since they were made, so that an archive's old nights are kept as long; 0 keeps none
    gigabytes: float = 200.0  # of 10^9 bytes under one OUT, some five nights of one site; the oldest go first

    def __post_init__(self) -> None:
        """Refuse negative limits."""
        if self.days < 0 or self.gigabytes < 0:
            raise ValueError("days and gigabytes must not be negative")


def typical_error(difference: Difference) -> float:
    """Return about the median error of a point source's flux, science counts; 1 where there is none.

    Of every eighth pixel of every eighth row: it is only what ERROR counts from.
    """
    some, flags = difference.flux_err[::8, ::8], difference.flags[::8, ::8]
    good = (flags == 0) & (some > 0)
    return float(np.median(some[good])) if good.any() else 1.0


def kept_planes(difference: Difference, typical: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield SCORE, ERROR and MASK as integers, one at a time: together they would be half a gigabyte.

    Flux is S_corr times its error: the flux of the best PSF fit at each pixel, made with the PSF and noise of
    its own patch. So nothing of the PSF's change over the chip is lost, as it would be with one PSF a chip.
    """
    rows = difference.flags.shape[0]
    score = np.empty(difference.flags.shape, dtype=np.int32)
    for start in range(0, rows, _STRIP):
        part = slice(start, start + _STRIP)
        finite = np.nan_to_num(difference.score_corr[part], nan=0.0, posinf=0.0, neginf=0.0)
        score[part] = np.rint(np.clip(finite, -1e7, 1e7) / SCORE_STEP)
    yield "SCORE", score
    del score
    error = np.full(difference.flags.shape, _NO_ERROR, dtype=np.int16)
    for start in range(0, rows, _STRIP):
        part = slice(start, start + _STRIP)
        values = difference.flux_err[part]
        known = np.isfinite(values) & (values > 0)
        steps = np.rint(np.log(np.where(known, values, typical) / typical) / ERROR_STEP)
        error[part] = np.where(known, np.clip(steps, -32000, 32000), _NO_ERROR)
    yield "ERROR", error
    del error
    yield "MASK", difference.flags.astype(np.int16)


def flux_at(part: KeptPart, x: float, y: float) -> tuple[float, float, int]:
    """Return (flux, error, PixelFlag bits within one FWHM) of a point source at pixel (x, y) of the chip.

    Science counts; NaN where the pixel itself has no data. The flux is the PSF fit's, read between pixels by
    a spline of fifth order: S_corr times error is as smooth as the PSF convolved with itself.
    """
    at = [[y - part.y0], [x - part.x0]]
    row, column = round(y - part.y0), round(x - part.x0)
    dy, dx = np.mgrid[: part.mask.shape[0], : part.mask.shape[1]]
    near = np.hypot(dy - at[0][0], dx - at[1][0]) <= max(part.fwhm_pix, 1.0)
    bits = int(np.bitwise_or.reduce(part.mask[near].astype(np.int64), initial=0))
    known = part.error != _NO_ERROR
    void = PixelFlag.NO_DATA | PixelFlag.NON_FINITE | PixelFlag.TEMPLATE_NO_DATA | PixelFlag.DEAD_AMPLIFIER
    if not known[row, column] or part.mask[row, column] & void:
        return float("nan"), float("nan"), bits
    error = part.typical * np.exp(np.where(known, part.error, part.error[row, column]) * ERROR_STEP)
    filtered = spline_filter(part.score * SCORE_STEP * error, order=5, mode="mirror")
    flux = map_coordinates(filtered, at, order=5, mode="mirror", prefilter=False)[0]
    return float(flux), float(map_coordinates(error, at, order=1, mode="nearest")[0]), bits
