"""Flux scale and differential background between two images brought to a common PSF."""

from __future__ import annotations

import numpy as np
from scipy import fft

from ks4diff.numerics import polynomial
from ks4diff.numerics.psf_grid import good_shape, transform


def convolve(image: np.ndarray, stamp: np.ndarray) -> np.ndarray:
    """Return ``image`` [y, x] convolved with a stamp [n, n], n odd, zeros beyond the border."""
    shape = good_shape(image.shape, stamp.shape[0])
    product = fft.rfft2(image, shape) * transform(stamp.astype(image.dtype), shape)
    return fft.irfft2(product, shape)[: image.shape[0], : image.shape[1]]


def fit_scale(
    science: np.ndarray, template: np.ndarray, weight: np.ndarray, *, degree: int, clip: float = 4.0
) -> tuple[float, float, np.ndarray]:
    """Return (scale, its error, background) with science = scale * template + background.

    Both images must share one PSF (each convolved with the other's). Pixels that disagree by more than
    ``clip`` robust sigma (variables, transients) are left out in turns.

    Parameters
    ----------
    science, template
        Float [y, x], equal shapes.
    weight
        Inverse variance of science - scale * template, 0 where masked.
    degree
        Of the background polynomial over the image.
    clip
        Sigma of the pulls themselves, so that a wrong ``weight`` level does no harm.

    Returns
    -------
    scale, error
        The error counts neighbouring pixels as independent: a lower limit.
    background
        Float32 [y, x].

    Raises
    ------
    numpy.linalg.LinAlgError
        When the template is empty or proportional to a polynomial of that degree.

    """
    rows, columns = science.shape
    y, x = np.nonzero(weight > 0)
    u, v = 2 * x / columns - 1, 2 * y / rows - 1
    design = np.concatenate([template[y, x][:, None], polynomial.design(u, v, degree)], axis=1)
    target, root = science[y, x].astype(np.float64), np.sqrt(weight[y, x].astype(np.float64))
    keep = np.ones(len(target), dtype=bool)
    for _ in range(6):
        a = design[keep] * root[keep, None]
        normal = a.T @ a
        solution = np.linalg.solve(normal, a.T @ (target[keep] * root[keep]))
        pull = (target - design @ solution) * root
        spread = max(1.4826 * float(np.median(np.abs(pull[keep]))), 1e-12)
        new = np.abs(pull) < clip * spread
        if (new == keep).all():
            break
        keep = new
    error = float(spread * np.sqrt(np.linalg.inv(normal)[0, 0]))
    full_y, full_x = np.mgrid[0:rows, 0:columns]
    grid = polynomial.design(2 * full_x / columns - 1, 2 * full_y / rows - 1, degree)
    background = (grid @ solution[1:]).reshape(rows, columns).astype(np.float32)
    return float(solution[0]), error, background
