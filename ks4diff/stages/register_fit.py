"""The smooth map through matched stars: weighted by their noise, blind to outliers, of fitting degree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics import polynomial
from ks4diff.numerics.centroid_noise import biweight, fit_noise
from ks4diff.numerics.pixel_map import PixelMap, plus


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the map through the stars is chosen."""

    max_degree: int = 5  # of terms added to the first guess; 5 leaves < 0.02 px rms of any KMTNet chip
    stars_per_term: float = 3.0  # below, a term follows the noise of single stars
    term_cost: float = 3.0  # chi² that a term must win; noise wins 1, and a missing term costs the corners
    clip_sigma: float = 5.0  # stars farther off say nothing; 5 keeps 97 % of what normal errors tell


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A map with what its error needs, all per matched star [n] or per term.

    ``sigma`` px per axis is a star's noise, ``weight`` 0 of those left out; ``own_covariance`` px² an axis of
    the terms fitted, ``covariance`` [k, k] of those of ``error_degree``, one more where the stars hold it,
    and ``difference`` [2, k] of that fit's terms from those fitted: what was left out for want of proof.
    """

    map: PixelMap
    degree: int
    residual: np.ndarray  # float64 [n, 2], template pixels
    sigma: np.ndarray
    weight: np.ndarray
    own_covariance: np.ndarray
    covariance: np.ndarray
    error_degree: int
    difference: np.ndarray


def fit_map(
    base: PixelMap,
    near: PixelMap,
    points: tuple[np.ndarray, np.ndarray],
    expected: np.ndarray,
    radius: float,
    config: FitConfig,
) -> Fit | None:
    """Return the map through matched stars, None when fewer than 4 agree.

    Parameters
    ----------
    base
        First guess; a polynomial is added to it.
    near
        The map, right to about ``radius``, by which the stars were matched.
    points
        Science and template positions, float64 [n, 2] each.
    expected
        Centroid noise of each pair per axis, px, above 0.
    radius
        Px within which the pairs were matched.
    config
        Degrees, costs and the clip.

    """
    science, template = points
    offset = (template - base.at(science)).T
    top = _highest(len(science), 2.0, config.max_degree + 1)
    columns = polynomial.design(*base.unit(science), top)
    residual, found = (template - near.at(science)).T, None
    # the noise is taken larger at first, lest a guess that is right in the middle throws the corners out
    for least in (0.4 * radius, 0.15 * radius, 0.05 * radius, 0.0, 0.0, 0.0):
        distance = np.hypot(*residual)
        floor, factor = fit_noise(distance, expected, radius)
        sigma = np.sqrt(floor**2 + (factor * expected) ** 2 + least**2)
        weight = biweight(distance / sigma, config.clip_sigma) / sigma**2
        n = int((weight > 0).sum())
        if n < 4:
            return None
        fits = polynomial.nested_fits(columns, offset, weight, range(1, _highest(n, 2.0, top) + 1))
        if not fits:
            return None
        degree = _best_degree(fits, n, config)
        coefficients = fits[degree][0]
        new = offset - coefficients @ columns[:, : coefficients.shape[1]].T
        still = found is not None and least == 0 and float(np.abs(new - residual).max()) < 1e-3
        residual, found = new, (degree, coefficients, fits)
        if still:
            break
    # residuals about a fit are smaller than errors, by the terms that it spent
    spent = n / max(n - polynomial.n_terms(degree), 1)
    error_degree = max(d for d in fits if d <= degree + 1)
    return Fit(
        map=plus(base, coefficients, degree),
        degree=degree,
        residual=residual.T,
        sigma=sigma * np.sqrt(spent),
        weight=weight / spent,
        own_covariance=fits[degree][1] * spent,
        covariance=fits[error_degree][1] * spent,
        error_degree=error_degree,
        difference=_difference(fits[error_degree][0], coefficients),
    )


def _difference(more: np.ndarray, fewer: np.ndarray) -> np.ndarray:
    difference = more.copy()
    difference[:, : fewer.shape[1]] -= fewer
    return difference


def _highest(n: int, per_term: float, limit: int) -> int:
    """Return the highest degree, at least 1, of which n stars hold every term."""
    return max((d for d in range(2, limit + 1) if n >= per_term * polynomial.n_terms(d)), default=1)


def _best_degree(fits: dict[int, tuple[np.ndarray, np.ndarray, float]], n: int, config: FitConfig) -> int:
    """Return the degree that the stars hold and that lowers chi² by more than it costs."""
    limit = _highest(n, config.stars_per_term, config.max_degree)
    cost = {
        degree: chi2 + 2 * config.term_cost * polynomial.n_terms(degree)
        for degree, (_, _, chi2) in fits.items()
        if degree <= limit
    }
    return min(cost or fits, key=lambda degree: cost.get(degree, 0.0))
