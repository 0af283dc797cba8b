"""Flag peaks that stand out of noise but not out of what surrounds them: residuals of bright stars."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.numerics.scatter import ring_scatter
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.chip import AlignedTemplate
from ks4diff.products.difference import Difference
from ks4diff.stages.photometry import limiting_flux
from ks4diff.stages.star_images import StarImagesConfig, star_images
from ks4diff.stages.star_residuals import StarResidualsConfig, leftovers


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
    stars: StarResidualsConfig = field(default_factory=StarResidualsConfig)
    images: StarImagesConfig = field(default_factory=StarImagesConfig)
    image_share: float = 0.3  # of a candidate's flux that second images of stars must be able to explain


def flag_residuals(
    candidates: Candidates, difference: Difference, template: AlignedTemplate, config: ResidualsConfig
) -> Candidates:
    """Return the candidates with "residual" raised that rise little above a loud surrounding.

    The scatter is 1.48 times the median |S_corr| in a ring, which no single neighbour changes; where it is
    that of noise nothing is flagged. A faint peak that fits no PSF is flagged too: it stands on the core of a
    star whose noise swallows the misfit. So is what does not exceed what bright stars are measured to leave
    at its place, or what their second images show there. Scores stay what they are.
    """
    table = candidates.table.copy()
    usual = limiting_flux(difference) / 5
    at = np.rint(table["y"]).astype(np.int64), np.rint(table["x"]).astype(np.int64)
    allowed = config.misfit * (difference.flux_err[at] / usual) ** 2
    misfit = (table["psf_chi2"] > allowed) & (np.abs(table["scorr"]) < config.faint)
    table["flags"][misfit] |= FLAG_BIT["residual"]
    fwhm = difference.psf.fwhm_pix
    scatter = ring_scatter(
        difference.score_corr,
        difference.flags,
        np.stack(at[::-1]),
        inner=config.inner_fwhm * fwhm,
        outer=config.outer_fwhm * fwhm,
    )
    loud = (scatter > config.loud) & (np.abs(table["scorr"]) < config.threshold * scatter)
    table["flags"][loud] |= FLAG_BIT["residual"]
    left = leftovers(difference, template, config.stars).at(table["x"], table["y"])
    by_star = (left > 0) & (np.abs(table["scorr"]) < config.threshold * np.sqrt(1 + left**2))
    table["flags"][by_star] |= FLAG_BIT["residual"]
    shown = star_images(difference, template, config.images).at(table["x"], table["y"])
    score = np.sign(table["scorr"]) * shown / difference.flux_err[at]
    again = score > config.image_share * np.abs(table["scorr"])
    table["flags"][again] |= FLAG_BIT["residual"]
    return replace(candidates, table=table)
