"""Compare the exposures of one visit: what only one of them shows is a cosmic ray, or moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.candidates import FLAG_BIT, Candidates


@dataclass(frozen=True, kw_only=True)
class VisitConfig:
    """Which exposures belong together, and when one of them misses a source."""

    compare: bool = True  # exposures of one visit before alerts are decided
    longest_gap_minutes: float = 30.0  # between starts; four dithers of one band take 12 minutes
    shown_sigma: float = 8.0  # a source that the other exposure would show at this significance ...
    missing_sigma: float = 5.0  # ... and whose flux there is lower by this many of its errors ...
    missing_fraction: float = 0.4  # ... and below this fraction, is not in it
    sharp_excess: float = 0.15  # over a star's sharpness of 1, beyond two errors: a cosmic ray


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """What another exposure shows on one chip: PSF flux at every pixel, its error and the flags.

    ``flux`` and ``flux_err`` float32 [y, x] counts, ``unit`` the candidates' flux unit per count.
    """

    flux: np.ndarray
    flux_err: np.ndarray
    flags: np.ndarray
    wcs: WCS
    unit: float


def flag_absent(candidates: Candidates, glimpses: Sequence[Glimpse], config: VisitConfig) -> Candidates:
    """Return the candidates with those flagged that another exposure of the visit should show and does not.

    "alone" in any case, and "cosmic_ray", which rejects, when it is sharper than a star too: a moving object
    is alone as well. Where no other exposure has good pixels nothing is said.
    """
    table = candidates.table.copy()
    flux, error = np.abs(table["flux"].astype(np.float64)), table["flux_err"].astype(np.float64)
    sign = np.where(table["is_positive"], 1.0, -1.0)
    alone = np.zeros(len(table), dtype=bool)
    for glimpse in glimpses:
        seen, there, there_error = _look(table["ra"], table["dec"], glimpse)
        there = sign * there
        missing = (flux - there) > config.missing_sigma * np.hypot(error, there_error)
        weak = there < config.missing_fraction * flux
        alone |= seen & (flux > config.shown_sigma * there_error) & missing & weak
    excess = table["sharpness"] - 1 - config.sharp_excess
    table["flags"][alone] |= FLAG_BIT["alone"]
    table["flags"][alone & (excess > 2 * table["sharpness_err"])] |= FLAG_BIT["cosmic_ray"]
    return replace(candidates, table=table)


def _look(ra: np.ndarray, dec: np.ndarray, glimpse: Glimpse) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (seen, flux, error) at sky positions; not seen are those off the chip and on flagged pixels."""
    known = np.isfinite(ra) & np.isfinite(dec)
    x, y = np.full(len(ra), -1.0), np.full(len(ra), -1.0)
    if known.any():
        x[known], y[known] = glimpse.wcs.all_world2pix(ra[known], dec[known], 0, quiet=True)
    rows, columns = glimpse.flux.shape
    xi, yi = (np.rint(np.nan_to_num(axis, nan=-1.0)).astype(np.int64) for axis in (x, y))
    inside = (xi >= 0) & (yi >= 0) & (xi < columns) & (yi < rows)
    xi, yi = np.where(inside, xi, 0), np.where(inside, yi, 0)
    seen = inside & (glimpse.flags[yi, xi] == 0)
    return seen, glimpse.flux[yi, xi] * glimpse.unit, glimpse.flux_err[yi, xi] * glimpse.unit
