"""Noise that is not white: its covariance from source-free pixels and its power spectrum."""

from __future__ import annotations

import numpy as np
from scipy import fft

from ks4diff.numerics.psf_grid import embed, extract, good_shape

# of the mean: where resampling left less noise, whitening would raise whatever stands there. Where D is all
# template (one of FWHM 3.4 px under 2.1 px, moved by half a pixel bilinearly) 0.02 leaves it a std of 0.952
# and neighbours correlated by 0.062, this 0.988 and 0.019, and beside holes, where fills are raised, 1.15.
LEAST_POWER = 0.0015


def autocovariance(image: np.ndarray, good: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the covariance of pixels (dy, dx) apart, float64 [2 L + 1, 2 L + 1], lag 0 in the middle.

    Parameters
    ----------
    image
        Float [y, x] with mean 0 over the good pixels.
    good
        Boolean [y, x]: pixels free of sources and defects; pairs with one bad pixel do not count.
    max_lag
        L, pixels.

    """
    shape = good_shape(image.shape, max_lag + 1)
    powers = np.stack([_power(_transform(image, good, shape)), _power(_transform(good, good, shape))])
    return by_lag(powers, image.shape, max_lag)[0]


def pair_powers(first: np.ndarray, second: np.ndarray, good: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the powers of what two images of mean 0 share, of their difference, and of their good pixels.

    Float64 [3, rows, columns // 2 + 1], for `by_lag`; summed over images of one shape they are those of all
    pixels together. Images and ``good`` as for `autocovariance`.
    """
    shape = good_shape(first.shape, max_lag + 1)
    one, other = (_transform(image, good, shape) for image in (first, second))
    return np.stack([(one * other.conj()).real, _power(one - other), _power(_transform(good, good, shape))])


def by_lag(powers: np.ndarray, shape: tuple[int, int], max_lag: int) -> np.ndarray:
    """Return covariances by lag, float64 [m, 2 L + 1, 2 L + 1], lag 0 in the middle.

    ``powers`` [m + 1, ...] are those of sums of products, the mean of both signs of a lag, and at last of the
    good pixels whose pairs they are divided by, in images of ``shape``.
    """
    n, padded = 2 * max_lag + 1, good_shape(shape, max_lag + 1)
    sums = np.stack([extract(fft.irfft2(power, padded), n) for power in powers])
    return sums[:-1] / np.maximum(sums[-1], 1.0)


def _transform(image: np.ndarray, good: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return fft.rfft2(np.where(good, image, 0.0).astype(np.float64), shape)


def _power(transformed: np.ndarray) -> np.ndarray:
    return transformed.real**2 + transformed.imag**2


def bilinear_covariance(mx: float, my: float) -> np.ndarray:
    """Return the covariance [3, 3] of white noise of unit variance after bilinear resampling.

    Linear interpolation by the fraction f along one axis leaves the variance 1 - 2 m and the covariance m of
    neighbours, m = f (1 - f) in [0, 0.25]; ``mx`` and ``my`` are m along each axis, averaged over the image.
    """
    return np.outer([my, 1 - 2 * my, my], [mx, 1 - 2 * mx, mx])


def power_spectrum(covariance: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the noise power [rows, columns // 2 + 1] of a covariance [n, n] by lag, n odd.

    A sampled covariance can transform to powers below 0.
    """
    symmetric = 0.5 * (covariance + covariance[::-1, ::-1])
    return fft.rfft2(embed(symmetric, shape)).real


def half_plane_mean(spectrum: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the mean over the whole frequency plane of a real-FFT half plane for images of ``shape``."""
    doubled = slice(1, spectrum.shape[1] - (1 if shape[1] % 2 == 0 else 0))
    total = 2.0 * spectrum[:, doubled].sum(dtype=np.float64) + spectrum[:, 0].sum(dtype=np.float64)
    if shape[1] % 2 == 0:
        total += spectrum[:, -1].sum(dtype=np.float64)
    return float(total) / (shape[0] * shape[1])
