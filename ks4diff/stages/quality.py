"""Judge a subtraction by what it left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.products.candidates import FLAG_BIT, REJECTING_BITS, Candidates
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference, Quality
from ks4diff.products.registration import Registration


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Limits of a good and of a usable subtraction; beyond a fail limit no alert leaves the chip."""

    warn_scorr_std: float = 1.2  # of all unmasked pixels, sources included
    fail_scorr_std: float = 8.0
    warn_rms_pix: float = 0.15
    fail_rms_pix: float = 0.5  # half a pixel makes a dipole of every star
    warn_residuals: float = 0.15  # unflagged candidates on template sources, per registered star
    fail_residuals: float = 1.0  # a photographic plate under a CCD image gives 1.7, the worst MOA frame 0.7
    warn_coverage: float = 0.5
    warn_psf_stars: int = 10


def judge(
    chip: CalibratedChip,
    template: AlignedTemplate,
    registration: Registration,
    difference: Difference,
    candidates: Candidates,
    config: QualityConfig,
) -> Quality:
    """Return the verdict on one subtraction with a clause for everything out of the ordinary."""
    std = scorr_std(difference)
    left = residuals(candidates) / registration.n_matched
    reasons, failed = [], False
    for name, value, warn, fail in (
        ("scorr_std", std, config.warn_scorr_std, config.fail_scorr_std),
        ("astrometric_rms_pix", registration.rms_pix, config.warn_rms_pix, config.fail_rms_pix),
        ("residuals per star", left, config.warn_residuals, config.fail_residuals),
    ):
        if not value <= warn:
            reasons.append(f"{name} {value:.2f} above {fail if not value <= fail else warn:g}")
            failed = failed or not value <= fail
    if template.coverage < config.warn_coverage:
        reasons.append(f"template covers {template.coverage:.2f}")
    n_stars = min(chip.psf.n_stars, template.psf.n_stars)
    if n_stars < config.warn_psf_stars:
        reasons.append(f"PSF from {n_stars} stars")
    if chip.gain_source != "given":
        reasons.append(f"gain {chip.gain:.2f} {chip.gain_source}")
    return Quality(verdict="fail" if failed else "warn" if reasons else "pass", reasons=tuple(reasons))


def residuals(candidates: Candidates) -> int:
    """Return how many unflagged candidates lie on template sources: variables, hosts, and stars left over."""
    flags = candidates.table["flags"]
    return int((((flags & REJECTING_BITS) == 0) & ((flags & FLAG_BIT["on_source"]) != 0)).sum())


def scorr_std(difference: Difference, among: np.ndarray | None = None) -> float:
    """Return the standard deviation of S_corr over all unmasked pixels, sources included.

    ``among`` (bool [y, x]) restricts it, for instance to the sky. NaN when no pixel is left.
    """
    good = difference.flags == 0
    if among is not None:
        good &= among
    return float(np.std(difference.score_corr[good], dtype=np.float64)) if good.any() else float("nan")
