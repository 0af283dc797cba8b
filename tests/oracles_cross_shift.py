"""The slow twin of `ks4diff.numerics.cross_shift`: whole images by FFT, splines and scipy's least squares."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, optimize, signal


def matching_place(images, psfs, place, turn, core, noise):
    """Return the pixel (x, y) of the second image that shows what the first does at a pixel."""
    first, second = (
        signal.fftconvolve(image.astype(np.float64), psf, mode="same")
        for image, psf in zip(images, psfs[::-1], strict=True)
    )
    second = ndimage.spline_filter(second, order=5)
    v, u = np.mgrid[-core : core + 1, -core : core + 1]
    disc = u**2 + v**2 <= core**2
    offsets = np.stack([u[disc], v[disc]]).astype(float)
    x, y = (int(p) for p in place[:2])
    target = first[y + v[disc], x + u[disc]]
    root = 1 / np.sqrt(noise[0] + noise[1] * np.maximum(target, 0))

    def left(move):
        at = np.asarray(place[2:])[:, None] + turn @ offsets + move[:, None]
        shown = ndimage.map_coordinates(second, at[::-1], order=5, prefilter=False)
        columns = np.stack([shown, np.ones_like(shown)], axis=1) * root[:, None]
        fitted, *_ = np.linalg.lstsq(columns, target * root, rcond=None)
        return (target * root - columns @ fitted) / np.abs(target * root).max()

    return np.asarray(place[2:]) + optimize.least_squares(left, np.zeros(2), xtol=1e-10).x
