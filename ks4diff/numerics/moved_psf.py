"""A PSF moved by a fraction of a pixel, for many places at once."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ks4diff.numerics.jit import jit

ORDER = 5  # of the spline: at FWHM 2.1 px it errs by 0.4 % of the peak, a cubic one by 2 %
PAD = 12  # zeros around the stamp, in which the spline's filter fades


def moved_psfs(psf: np.ndarray, dx: np.ndarray, dy: np.ndarray, n: int) -> np.ndarray:
    """Return float32 [k, n, n]: the middle of a PSF moved right and up by (dx, dy) [k] px; 0 beyond it.

    ``psf`` [m, m], m and n odd, so that the middle pixel of one is that of the other; moves are below 8 px.
    Interpolation is by B-splines of fifth order.
    """
    return moved_splines(splines(psf, n), dx, dy, n)


def splines(psf: np.ndarray, n: int) -> np.ndarray:
    """Return the B-spline coefficients of a PSF amid zeros, for `moved_splines`: most of the work."""
    wide = np.pad(np.asarray(psf, dtype=np.float64), PAD + max((n - psf.shape[0]) // 2, 0))
    return ndimage.spline_filter(wide, order=ORDER, mode="mirror")


def moved_splines(coefficients: np.ndarray, dx: np.ndarray, dy: np.ndarray, n: int) -> np.ndarray:
    """Return what `moved_psfs` does, of `splines`."""
    out = np.empty((len(dx), n, n), dtype=np.float32)
    _move(coefficients, np.asarray(dx, dtype=np.float64), np.asarray(dy, dtype=np.float64), out)
    return out


@jit
def _weights(t, out):
    """Write the six weights of the quintic B-spline for nodes -2 ... 3 around a position t in [0, 1)."""
    for k in range(6):
        u = abs(t - (k - 2.0))
        if u < 1:
            out[k] = (66.0 - 60.0 * u**2 + 30.0 * u**4 - 10.0 * u**5) / 120.0
        elif u < 2:
            out[k] = (51.0 + 75.0 * u - 210.0 * u**2 + 150.0 * u**3 - 45.0 * u**4 + 5.0 * u**5) / 120.0
        elif u < 3:
            out[k] = (3.0 - u) ** 5 / 120.0
        else:
            out[k] = 0.0


@jit
def _move(coefficients, dx, dy, out):
    n = out.shape[1]
    along = np.empty((n + 5, n))
    wx, wy = np.empty(6), np.empty(6)
    for k in range(out.shape[0]):
        left, low = int(np.floor(-dx[k])), int(np.floor(-dy[k]))
        _weights(-dx[k] - left, wx)
        _weights(-dy[k] - low, wy)
        x0 = coefficients.shape[1] // 2 - n // 2 + left - 2
        y0 = coefficients.shape[0] // 2 - n // 2 + low - 2
        for j in range(n + 5):
            for i in range(n):
                total = 0.0
                for m in range(6):
                    total += wx[m] * coefficients[y0 + j, x0 + i + m]
                along[j, i] = total
        for j in range(n):
            for i in range(n):
                total = 0.0
                for m in range(6):
                    total += wy[m] * along[j + m, i]
                out[k, j, i] = total
