"""Small reference tiles drawn from one sky, so that what two tiles show of it can be compared."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

CENTRE = (114.782608, -50.0)  # of field 2149.115-50
SCALE = 0.4  # arcsec per pixel


def tan_wcs(shape, centre=CENTRE, scale=SCALE, offset=(0.0, 0.0), rotation=0.0):
    """Return a tangent-plane WCS centred on ``centre``, moved by ``offset`` pixels; degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = centre
    wcs.wcs.crpix = [(shape[1] + 1) / 2 + offset[0], (shape[0] + 1) / 2 + offset[1]]
    turn = np.radians(rotation)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs.wcs.cd = matrix @ np.diag([-scale, scale]) / 3600
    wcs.wcs.set()
    return wcs


def star_sky(n=2500, radius_deg=0.11, seed=3, faintest=600.0, centre=CENTRE):
    """Return float64 [n, 3]: RA, Dec and flux at zero point 30 of stars with many faint ones."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-radius_deg, radius_deg, (2, n))
    flux = np.minimum(faintest * rng.random(n) ** (-1 / 0.7), 400 * faintest)
    return np.stack([centre[0] + x / np.cos(np.radians(centre[1])), centre[1] + y, flux], axis=1)


def draw(wcs, shape, stars, *, fwhm=3.2, sigma=5.0, seed=1, scale=1.0, correlated=True):
    """Return float32 [y, x]: Gaussian stars of total ``flux * scale`` and noise of one pixel ``sigma``."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal(shape)
    if correlated:
        for axis in (0, 1):
            image = ndimage.correlate1d(image, [0.3, 0.7], axis=axis, mode="wrap")
        image /= 0.58
    image *= sigma
    x, y = wcs.all_world2pix(stars[:, 0], stars[:, 1], 0)
    width = fwhm / 2.3548
    half = int(np.ceil(6 * width))
    for sx, sy, flux in zip(x, y, stars[:, 2] * scale, strict=True):
        cx, cy = round(float(sx)), round(float(sy))
        y0, y1, x0, x1 = (
            max(cy - half, 0),
            min(cy + half + 1, shape[0]),
            max(cx - half, 0),
            min(cx + half + 1, shape[1]),
        )
        if y0 < y1 and x0 < x1:
            gy = np.exp(-((np.arange(y0, y1) - sy) ** 2) / (2 * width**2))
            gx = np.exp(-((np.arange(x0, x1) - sx) ** 2) / (2 * width**2))
            image[y0:y1, x0:x1] += flux / (2 * np.pi * width**2) * np.outer(gy, gx)
    return image.astype(np.float32)


def write_tile(path, data, wcs, **cards):
    """Write a stack as KS4 does: one HDU, MAGZERO 30, FILTER, zeros for no data."""
    header = wcs.to_header()
    header["MAGZERO"] = cards.pop("zeropoint", 30.0)
    header["FILTER"] = cards.pop("band", "R")
    for name, value in cards.items():
        header[name.upper()] = value
    fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
    return path
