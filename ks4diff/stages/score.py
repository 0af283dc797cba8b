"""A first real/bogus score by plain rules, until the forest is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.products.candidates import REJECTING_BITS, Candidates

RULES_VERSION = "rules-0"
RULES_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How fast each rule's factor falls."""

    width_tolerance: float = 0.35  # of ln(FWHM over the PSF's) at high S/N
    opposite_scale: float = 0.45  # opposite lobe over peak at which the factor is 1/e
    strong_score: float = 7.0  # |S_corr| at which noise and residuals no longer outnumber real sources
    max_masked_fraction: float = 0.3  # with more pixels masked the score is withheld


def score(candidates: Candidates, fwhm_pix: float, config: ScoreConfig) -> Candidates:
    """Return the candidates with ``rb`` in [0, 1]: how much each looks like a point source that came or went.

    The product of four factors: the correlation with the PSF over that which its noise allows, the width's
    and the sharpness's agreement with the PSF, the lack of a lobe of the other sign, and the significance
    itself. NaN where too many pixels are masked to tell.
    """
    table = candidates.table.copy()
    snr = np.maximum(np.abs(table["scorr"].astype(np.float64)), 1.0)
    # a PSF of S/N s on n noisy pixels correlates to about s / sqrt(s² + n)
    pixels = np.pi * (2 * fwhm_pix) ** 2
    expected = snr / np.sqrt(snr**2 + pixels)
    alike = np.clip(table["psf_corr"] / expected, 0.0, 1.0) ** 2
    tolerance = np.hypot(config.width_tolerance, 2.0 / snr)
    narrow = (table["sharpness"] - 1) / np.hypot(0.4, 2 * table["sharpness_err"])
    width = np.log(np.maximum(table["fwhm"], 1e-3) / fwhm_pix) / tolerance
    agree = np.exp(-0.5 * (np.maximum(narrow, 0.0) ** 2 + width**2))
    noise_lobe = 3.0 / snr  # the deepest of some 50 independent noise values
    lobes = np.exp(-np.maximum(table["opposite"] - noise_lobe, 0.0) / config.opposite_scale)
    strong = 1 - np.exp(-((snr / config.strong_score) ** 2))
    rb = alike * agree * lobes * strong
    withheld = ~np.isfinite(rb) | (table["masked_fraction"] > config.max_masked_fraction)
    table["rb"] = np.where(withheld, np.nan, rb)
    return replace(candidates, table=table)


def rank(candidates: Candidates) -> np.ndarray:
    """Return row numbers, most convincing first: unrejected before rejected, then by rb times |scorr|."""
    table = candidates.table
    rejected = (table["flags"] & REJECTING_BITS) != 0
    worth = np.nan_to_num(table["rb"]) * np.abs(table["scorr"])
    return np.lexsort((-worth, rejected))
