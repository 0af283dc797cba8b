"""Flag peaks that stand out of noise but not out of what surrounds them: residuals of bright stars."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.moments import stamps
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.difference import Difference


@dataclass(frozen=True, kw_only=True)
class ResidualsConfig:
    """What is measured around a candidate, and when it belongs to it."""

    inner_fwhm: float = 1.5  # a candidate's own score ends there
    outer_fwhm: float = 4.5  # some 30 independent scores lie within
    loud: float = 1.7  # scatter of the score around: noise gives it in 1 of 100 places
    threshold: float = 5.0  # of |S_corr| in units of a loud surrounding's scatter
    misfit: float = (
        3.0  # chi² per pixel of the PSF fit over what the local noise allows: sources have < 2 ...
    )
    faint: float = 10.0  # ... below this |S_corr|, where an error of the PSF cannot be seen


def flag_residuals(candidates: Candidates, difference: Difference, config: ResidualsConfig) -> Candidates:
    """Return the candidates with "residual" raised that rise little above a loud surrounding.

    The scatter is 1.48 times the median |S_corr| in a ring, which no single neighbour changes; where it is
    that of noise nothing is flagged. A faint peak that fits no PSF is flagged too: it stands on the core of a
    star whose noise swallows the misfit. Scores stay what they are.
    """
    table = candidates.table.copy()
    good = difference.flags == 0
    usual = float(np.median(difference.flux_err[good])) if good.any() else np.nan
    at = np.rint(table["y"]).astype(int), np.rint(table["x"]).astype(int)
    allowed = config.misfit * (difference.flux_err[at] / usual) ** 2
    misfit = (table["psf_chi2"] > allowed) & (np.abs(table["scorr"]) < config.faint)
    table["flags"][misfit] |= FLAG_BIT["residual"]
    fwhm = difference.psf.fwhm_pix
    half = int(np.ceil(config.outer_fwhm * fwhm))
    offset = np.arange(-half, half + 1)
    radius = np.hypot(offset[:, None], offset[None, :])
    ring = (radius > config.inner_fwhm * fwhm) & (radius <= config.outer_fwhm * fwhm)
    for row in table:
        around = stamps(difference.score_corr, row["x"][None], row["y"][None], half)[0][ring]
        flagged = stamps(difference.flags, row["x"][None], row["y"][None], half, 1)[0][ring] != 0
        known = np.abs(around[np.isfinite(around) & ~flagged])
        if 2 * len(known) < ring.sum():
            continue  # too little is left to tell
        scatter = 1.4826 * np.median(known)
        if scatter > config.loud and abs(row["scorr"]) < config.threshold * scatter:
            row["flags"] |= FLAG_BIT["residual"]
    return replace(candidates, table=table)
