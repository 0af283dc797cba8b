"""What bright stars leave around themselves, measured on the difference as a fraction of their flux."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.scatter import ring_scatter
from ks4diff.products.chip import AlignedTemplate
from ks4diff.products.difference import Difference
from ks4diff.stages.measure_flux import masked_psf_flux
from ks4diff.stages.photometry import limiting_flux

RING_FWHM = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
QUANTILE = 0.75  # of |S| in a ring: hits and neighbours fill less than a quarter of it
TYPICAL = 0.84  # of the stars leave less: one standard deviation above the median


@dataclass(frozen=True, kw_only=True)
class StarResidualsConfig:
    """Which stars count, and which of them tell what all leave."""

    least_snr: float = 100.0  # flux over the difference's error: what fainter ones leave is noise
    telling_snr: float = 1000.0  # these show 0.1 % of their flux in one ring
    fewest: int = 5  # of them, or nothing is predicted
    most: int = 500  # of them: more tell no better


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """Bright stars and the scatter of S_corr that each leaves in the rings around it, noise taken off.

    ``x``, ``y`` [n] pixels, ``score`` [n, rings] for the rings of `RING_FWHM` times ``fwhm`` px.
    """

    x: np.ndarray
    y: np.ndarray
    score: np.ndarray
    fwhm: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the scatter of S_corr that the stars leave at pixels (x, y) [n], as independent ones."""
        total = np.zeros(len(x))
        if not len(self.x) or not len(x):
            return total
        edges = np.array(RING_FWHM) * self.fwhm
        pairs = cKDTree(np.stack([x, y], axis=1)).sparse_distance_matrix(
            cKDTree(np.stack([self.x, self.y], axis=1)), edges[-1], output_type="ndarray"
        )
        middles = 0.5 * (edges[1:] + edges[:-1])
        spot = np.clip(np.searchsorted(middles, pairs["v"]) - 1, 0, len(middles) - 2)
        part = np.clip((pairs["v"] - middles[spot]) / (middles[spot + 1] - middles[spot]), 0, 1)
        left = self.score[pairs["j"], spot] * (1 - part) + self.score[pairs["j"], spot + 1] * part
        np.add.at(total, pairs["i"], np.where(pairs["v"] > edges[0], left, 0) ** 2)
        return np.sqrt(total)


def leftovers(difference: Difference, template: AlignedTemplate, config: StarResidualsConfig) -> Leftovers:
    """Return what the bright stars of the template's list leave in the difference.

    In each ring the brightest stars, saturated ones too where nothing is flagged, show a fraction of their
    flux; five in six leave less than what all are then held to leave. No star speaks for itself: a new source
    beside it would be taken for what it leaves. The core, within one FWHM, is left to the errors that S_corr
    holds itself.
    """
    fwhm, stars = difference.psf.fwhm_pix, template.stars
    none = Leftovers(x=np.empty(0), y=np.empty(0), score=np.empty((0, len(RING_FWHM) - 1)), fwhm=fwhm)
    if stars is None:
        return none
    error = limiting_flux(difference) / 5
    chosen = stars.flux * difference.flux_scale > config.least_snr * error
    at = np.stack([stars.x[chosen], stars.y[chosen]])
    if not at.shape[1]:
        return none
    flux, _ = masked_psf_flux(template, at, stars.flux[chosen])
    strength = flux * difference.flux_scale / error
    telling = np.flatnonzero(strength > config.telling_snr)[: config.most]
    if len(telling) < config.fewest:
        return none
    places = np.rint(at[:, telling]).astype(np.int64)
    rings = [
        ring_scatter(
            difference.score_corr, difference.flags, places, inner=a * fwhm, outer=b * fwhm, quantile=QUANTILE
        )
        for a, b in pairwise(RING_FWHM)
    ]
    level = np.stack(rings, axis=1)
    fractions = np.sqrt(np.maximum(level**2 - 1, 0)) / strength[telling, None]
    usual = [_quantile(fraction, strength[telling] ** 2, config.fewest) for fraction in fractions.T]
    score = np.array(usual) * strength[:, None]
    return Leftovers(x=at[0], y=at[1], score=score, fwhm=fwhm)


def _quantile(values: np.ndarray, weight: np.ndarray, fewest: int) -> float:
    """Return the weighted `TYPICAL` quantile of the known values, 0 of too few.

    Weighted, because far from a star of S/N 1000 there is more noise and neighbours than what it leaves.
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < fewest:
        return 0.0
    order = known[np.argsort(values[known])]
    below = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(below, TYPICAL * below[-1])]])
