"""Find the peaks of both signs in the score image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics.peaks import find_peaks, refine_peaks
from ks4diff.numerics.pools import pool
from ks4diff.products.candidates import Detections
from ks4diff.products.difference import Difference
from ks4diff.products.image import PixelFlag

STRIP_ROWS = 512
BENT = 0.97  # noise bends a peak: what its pixel shows beside what a source's would
VOID = PixelFlag.NO_DATA | PixelFlag.NON_FINITE | PixelFlag.TEMPLATE_NO_DATA | PixelFlag.DEAD_AMPLIFIER


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """What counts as a detection."""

    threshold: float = 5.0  # of |S_corr|
    separation_fwhm: float = 1.0  # weaker peaks of one sign closer than this belong to the stronger

    def __post_init__(self) -> None:
        """Refuse a threshold that noise passes everywhere."""
        if not self.threshold >= 2:
            raise ValueError(f"threshold must be at least 2, got {self.threshold}")


def detect(difference: Difference, config: DetectConfig) -> Detections:
    """Return the peaks of |S_corr| above threshold, strongest first, with sub-pixel positions.

    It is the top between the pixels that passes the threshold or not: by their pixels half of the sources
    are above 5 at S/N 5.17 with PSFs of FWHM 2.1 px, at 5.09 with 4 px. Flagged pixels count, and their
    candidates carry the flags; only where either image has no data at all is there nothing to detect.
    """
    fwhm = difference.psf.fwhm_pix
    radius = max(round(config.separation_fwhm * fwhm), 2)
    lowest = config.threshold * BENT * _least_seen(fwhm)
    position = find_peaks(difference.score_corr, _usable(difference.flags), lowest, radius)
    _, score = refine_peaks(difference.score_corr, position)
    position, score = (part[..., np.abs(score) > config.threshold] for part in (position, score))
    refined, _ = refine_peaks(difference.score_corr, position, difference.flux_err)
    order = np.argsort(-np.abs(score), kind="stable")  # a peak between pixels gains most by refining
    return Detections(x=refined[0, order], y=refined[1, order], score=score[order])


def _least_seen(fwhm: float) -> float:
    """Return what the highest pixel shows of a peak in the corner of four; P_D of ``fwhm`` px, S its square.

    0.84 at 2 px, 0.96 at 4 px.
    """
    return 0.5 ** (1 / fwhm**2)


def _usable(flags: np.ndarray) -> np.ndarray:
    """Return bool [y, x]: neither image lacks data."""
    out = np.empty(flags.shape, dtype=bool)

    def work(top: int) -> None:
        rows = slice(top, top + STRIP_ROWS)
        np.equal(flags[rows] & flags.dtype.type(VOID), 0, out=out[rows])

    with pool() as threads:
        list(threads.map(work, range(0, len(flags), STRIP_ROWS)))
    return out
