"""Compare the stamps of candidates with the PSF: misfit, correlation, moments, sharpness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit

FWHM = 2.3548  # of a Gaussian of sigma 1


class Shapes(NamedTuple):
    """Per stamp, float64 [n], NaN where half the disc or more is unknown.

    ``chi2`` per pixel of the PSF fit; ``correlation`` Pearson's with the PSF; ``width`` FWHM and
    ``elongation`` of the moments ``xx``, ``yy``, ``xy`` (px², freed from the weight); ``contrast`` the
    brightest of the middle nine pixels less the mean of its neighbours, ``psf_contrast`` the same of the
    fitted PSF.
    """

    chi2: np.ndarray
    correlation: np.ndarray
    width: np.ndarray
    elongation: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    contrast: np.ndarray
    psf_contrast: np.ndarray


def measure_shapes(
    data: np.ndarray, psf: np.ndarray, noise: np.ndarray, *, fwhm: float, gain: float, model_error: float
) -> Shapes:
    """Return the `Shapes` of stamps within two FWHM of their middle.

    Parameters
    ----------
    data
        Float32 [n, side, side], side odd and at least 4 FWHM + 1: stamps of positive sources, NaN unknown.
    psf
        Float32, alike: the PSF at each one's sub-pixel place.
    noise
        Float [n]: std of one pixel.
    fwhm
        Pixels; of the moments' weight too. They are those of `moments.gaussian_shape`.
    gain
        Electrons per unit of the data: the source's own noise.
    model_error
        Of the fitted PSF, a fraction, per pixel.

    """
    out = np.full((9, len(data)), np.nan)
    _shapes(data, psf, np.asarray(noise, dtype=np.float64), fwhm, gain, model_error, out)
    return Shapes(*out)


@jit
def _shapes(data, psf, noise, fwhm, gain, model_error, out):
    half = data.shape[1] // 2
    reach2 = (2 * fwhm) ** 2
    for n in range(data.shape[0]):
        d, p = data[n], psf[n]
        total, used, dp, pp, sum_d, sum_p, dd = 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(d.shape[0]):
            for i in range(d.shape[1]):
                if (j - half) ** 2 + (i - half) ** 2 > reach2:
                    continue
                total += 1
                if np.isfinite(d[j, i]):
                    used += 1
                    dp += d[j, i] * p[j, i]
                    pp += p[j, i] * p[j, i]
                    dd += d[j, i] * d[j, i]
                    sum_d += d[j, i]
                    sum_p += p[j, i]
        if used < 0.5 * total or used == 0 or not pp > 0:
            continue
        flux = dp / pp
        out[0, n] = _misfit(d, p, flux, noise[n] ** 2, reach2, gain, model_error) / used
        norm = (dd - sum_d * sum_d / used) * (pp - sum_p * sum_p / used)
        out[1, n] = (dp - sum_d * sum_p / used) / np.sqrt(norm) if norm > 0 else 0.0
        out[2, n], out[3, n], out[4, n], out[5, n], out[6, n] = _moments(d, (fwhm / FWHM) ** 2)
        out[7, n] = _contrast(d)
        out[8, n] = max(flux, 1e-30) * _contrast(p)


@jit
def _misfit(d, p, flux, variance, reach2, gain, model_error):
    half = d.shape[0] // 2
    chi2 = 0.0
    for j in range(d.shape[0]):
        for i in range(d.shape[1]):
            if (j - half) ** 2 + (i - half) ** 2 <= reach2 and np.isfinite(d[j, i]):
                model = flux * p[j, i]
                of_source = max(model, 0.0) / gain + (model_error * model) ** 2
                chi2 += (d[j, i] - model) ** 2 / (variance + of_source)
    return chi2


@jit
def _moments(d, weight2):
    """Return (FWHM, axis ratio, xx, yy, xy): Gaussian-weighted, the weight taken out as of a Gaussian."""
    half = d.shape[0] // 2
    total, mx, my, xx, yy, xy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(d.shape[0]):
        for i in range(d.shape[1]):
            if d[j, i] > 0:
                y, x = j - half, i - half
                w = d[j, i] * np.exp(-0.5 * (x * x + y * y) / weight2)
                total += w
                mx += w * x
                my += w * y
                xx += w * x * x
                yy += w * y * y
                xy += w * x * y
    if not total > 0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    mx, my = mx / total, my / total
    xx, yy, xy = xx / total - mx * mx, yy / total - my * my, xy / total - mx * my
    middle, spread = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    # a source as wide as the weight allows is reported at ten times the weight's width
    major = 1 / max(1 / max(middle + spread, 1e-3) - 1 / weight2, 0.01 / weight2)
    minor = 1 / max(1 / max(middle - spread, 1e-3) - 1 / weight2, 0.01 / weight2)
    c, s = (0.5 * (xx - yy) / spread, xy / spread) if spread > 0 else (1.0, 0.0)
    mean, half_range = 0.5 * (major + minor), 0.5 * (major - minor)
    width = FWHM * (major * minor) ** 0.25
    return width, np.sqrt(major / minor), mean + half_range * c, mean - half_range * c, half_range * s


@jit
def _contrast(d):
    """Return the brightest of the middle nine pixels less the mean of its known neighbours."""
    half = d.shape[0] // 2
    y, x, best = half, half, -np.inf
    for j in range(half - 1, half + 2):
        for i in range(half - 1, half + 2):
            if d[j, i] > best:
                y, x, best = j, i, d[j, i]
    total, known = 0.0, 0
    for j in range(y - 1, y + 2):
        for i in range(x - 1, x + 2):
            if (j != y or i != x) and np.isfinite(d[j, i]):
                total += d[j, i]
                known += 1
    return d[y, x] - total / max(known, 1)
