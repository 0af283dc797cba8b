"""Numbers that tell a good subtraction from a bad one; whoever judges reads them, nothing is rescaled."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ks4diff.numerics.moments import stamps
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, StarList
from ks4diff.products.difference import Difference

SAMPLE_PIXELS = 4_000_000  # of the depth's medians, whole rows of the image
BRIGHT_SIGMA = 50.0  # flux over its error in the difference: a residual of 2 % is then one sigma


class ScaleLeft(NamedTuple):
    """What static stars leave in proportion to their flux: ``fraction`` with its standard ``error``.

    0 where the flux scale was right; ``chi2`` per star of the fit, 1 where the errors are. NaN of fewer than
    three stars.
    """

    fraction: float
    error: float
    chi2: float
    n_stars: int


class StarResiduals(NamedTuple):
    """What bright stars leave in the score.

    ``rms`` of S_corr within a FWHM of them, 1 when they cancel within their errors; ``usual_rms`` without the
    twentieth of them that leave most, which may vary; ``dipoles`` the fraction with both a peak and a trough
    beyond 5 sigma there; ``n_stars``. NaN without stars.
    """

    rms: float
    usual_rms: float
    dipoles: float
    n_stars: int


def static_stars(template: AlignedTemplate, difference: Difference) -> StarList:
    """Return the template's stars with fluxes in science counts, as the other guards want them."""
    if template.stars is None:
        none = np.empty(0)
        return StarList(x=none, y=none, flux=none, fwhm=none, clean=none.astype(bool))
    stars = template.stars
    return replace(stars, flux=stars.flux * difference.scale_at(stars.x, stars.y))


def scale_left(difference: Difference, stars: StarList) -> ScaleLeft:
    """Return the error of the flux scale that the difference itself shows.

    The beta of eqs 37-39 of Zackay, Ofek & Gal-Yam (2016), after the fact: with beta wrong by a fraction e a
    static star of flux f leaves the flux e f. Least squares over the bright stars, weighted by the errors of
    the difference; variable stars lie 5 sigma off and do not count twice: they are clipped once.
    """
    j, i, bright = _bright(difference, stars)
    if bright.size < 3:
        return ScaleLeft(float("nan"), float("nan"), float("nan"), int(bright.size))
    error = difference.flux_err[j, i].astype(np.float64)
    left, flux = difference.score_corr[j, i] * error, stars.flux[bright].astype(np.float64)
    keep = np.ones(len(left), dtype=bool)
    for _ in range(2):
        weight = keep / error**2
        fraction = float((weight * left * flux).sum() / (weight * flux**2).sum())
        pull = (left - fraction * flux) / error
        spread = max(1.4826 * float(np.median(np.abs(pull))), 1.0)
        keep = np.abs(pull) < 5 * spread
    chi2 = float((pull[keep] ** 2).mean())
    return ScaleLeft(fraction, float((weight * flux**2).sum() ** -0.5), chi2, int(keep.sum()))


def star_residuals(difference: Difference, stars: StarList) -> StarResiduals:
    """Return what the bright stars leave around them in S_corr."""
    j, i, bright = _bright(difference, stars)
    if bright.size == 0:
        return StarResiduals(float("nan"), float("nan"), float("nan"), 0)
    half = max(round(difference.psf.fwhm_pix), 2)
    clean = np.where(difference.flags == 0, difference.score_corr, np.float32(np.nan))
    around = stamps(clean, i, j, half, np.nan)
    offset = np.arange(-half, half + 1)
    around = around[:, offset[:, None] ** 2 + offset**2 <= half**2]
    high, low = np.nanmax(around, axis=1), np.nanmin(around, axis=1)
    power = np.sort(np.nanmean(around**2, axis=1))
    return StarResiduals(
        rms=float(np.sqrt(np.nanmean(around**2))),
        usual_rms=float(np.sqrt(power[: max(round(0.95 * len(power)), 1)].mean())),
        dipoles=float(((high > 5) & (low < -5)).mean()),
        n_stars=len(bright),
    )


def limiting_flux_map(difference: Difference, cell_pix: float = 256.0) -> Cells:
    """Return the 5-sigma flux of a point source over the chip, science counts: medians of unflagged pixels.

    Of some rows in a large image; NaN in cells without any.
    """
    shape = difference.flags.shape
    step = max(difference.flags.size // SAMPLE_PIXELS, 1)
    out = Cells(values=np.full(cell_grid(shape, cell_pix), np.nan, dtype=np.float32), shape=shape)
    for j, i, rows, columns in out.boxes():
        some = slice(rows.start, rows.stop, step), columns
        error = difference.flux_err[some][difference.flags[some] == 0]
        if error.size:
            out.values[j, i] = 5 * np.median(error)
    return out


def _bright(difference: Difference, stars: StarList) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and indices of the stars bright enough and on unflagged pixels."""
    rows, columns = difference.flags.shape
    j, i = np.rint(stars.y).astype(np.int64), np.rint(stars.x).astype(np.int64)
    inside = np.flatnonzero((j >= 0) & (j < rows) & (i >= 0) & (i < columns))
    j, i = j[inside], i[inside]
    typical = float(np.median(difference.flux_err[::16, ::16]))
    good = (difference.flags[j, i] == 0) & np.isfinite(difference.score_corr[j, i])
    good &= stars.flux[inside] > BRIGHT_SIGMA * typical
    return j[good], i[good], inside[good]
