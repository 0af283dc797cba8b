"""Proper image subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27) of one registered pair.

Equation numbers are theirs; the noise may be coloured: where they write a variance s², a power spectrum s²(k)
stands here, so that D stays white after a template has been resampled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from ks4diff.numerics.noise import half_plane_mean
from ks4diff.numerics.psf_grid import extract, good_shape, transform
from ks4diff.numerics.score_variance import astrometric

PSF_LIFT = 3e-4  # of the transform's peak; a PSF measured worse than that wants more: see `lifted`


class Side(NamedTuple):
    """One of the two images, background subtracted, on the common grid.

    ``data`` float32 [y, x], masked pixels filled; ``variance`` float32 [y, x] of one pixel, 0 where the fill
    carries no noise; ``psf`` [n, n] odd, sum 1; ``flux`` F, counts per unit of true flux; ``sigma2`` the
    background variance of one pixel; ``correlation`` relative noise power [rows, columns // 2 + 1] on the
    grid of `grid_shape`, mean 1, or None for white noise.
    """

    data: np.ndarray
    variance: np.ndarray
    psf: np.ndarray
    flux: float
    sigma2: float
    correlation: np.ndarray | None = None


class Subtraction(NamedTuple):
    """Outputs of `subtract`, cut to the input's shape.

    ``difference`` D, white with unit variance; ``psf`` P_D [n, n] and its ``flux`` F_D; ``score`` S with
    ``score_flux`` F_S; ``variance`` of S at each pixel, source noise included.
    """

    difference: np.ndarray
    psf: np.ndarray
    flux: float
    score: np.ndarray
    score_flux: float
    variance: np.ndarray


def grid_shape(shape: tuple[int, int], stamp: int) -> tuple[int, int]:
    """Return the FFT grid for images of ``shape`` and PSF stamps of ``stamp`` px, wide enough not to wrap.

    The filters of D and S reach about two stamps; zeros around the image are noise-free, so the scores of
    pixels near the border stay unit normal.
    """
    return good_shape(shape, 2 * stamp)


def subtract(
    science: Side, template: Side, *, sigma_x: float = 0.0, sigma_y: float = 0.0, lift: float = PSF_LIFT
) -> Subtraction:
    """Return the proper difference, score and score variance of a registered pair.

    The plain form, for any map of variance: each is convolved with its kernel squared. `zogy_patch` has the
    fast one.

    Parameters
    ----------
    science, template
        N and R with everything known about them; equal shapes.
    sigma_x, sigma_y
        Rms of the relative registration error, pixels; adds astrometric noise, see `astrometric`.
    lift
        How small a PSF transform means nothing: see `lifted`.

    """
    rows, columns = science.data.shape
    shape = grid_shape(science.data.shape, max(science.psf.shape[0], template.psf.shape[0]))
    f_n, f_r = np.float32(science.flux), np.float32(template.flux)
    a, b = lifted(
        transform(science.psf.astype(np.float32), shape),
        transform(template.psf.astype(np.float32), shape),
        lift,
    )
    n_hat = fft.rfft2(science.data, shape)
    r_hat = fft.rfft2(template.data, shape)
    a2, b2 = np.abs(a) ** 2, np.abs(b) ** 2
    den = _power(science) * f_r**2 * b2 + _power(template) * f_n**2 * a2
    root = np.sqrt(den)
    d_hat = (f_r * b * n_hat - f_n * a * r_hat) / root  # eq 13
    flux_d = float(f_r * f_n / root[0, 0])  # eq 15 at k = 0, so that P_D sums to 1 exactly
    p_hat = f_r * f_n * a * b / (flux_d * root)  # eq 14
    k_n = f_n * f_r**2 * np.conj(a) * b2 / den  # eq 29
    k_r = f_r * f_n**2 * np.conj(b) * a2 / den  # eq 28
    s_n, s_r = fft.irfft2(k_n * n_hat, shape), fft.irfft2(k_r * r_hat, shape)
    score_flux = half_plane_mean(f_n**2 * f_r**2 * a2 * b2 / den, shape)  # eq 42

    variance = _filtered_variance(science, k_n, shape) + _filtered_variance(template, k_r, shape)  # eqs 26-27
    if sigma_x > 0 or sigma_y > 0:
        variance = variance + astrometric(s_n, s_r, sigma_x, sigma_y)
    stamp = 2 * max(science.psf.shape[0], template.psf.shape[0]) - 1
    return Subtraction(
        difference=fft.irfft2(d_hat, shape)[:rows, :columns],
        psf=extract(fft.irfft2(p_hat, shape), stamp),
        flux=flux_d,
        score=(s_n - s_r)[:rows, :columns],
        score_flux=score_flux,
        variance=variance[:rows, :columns],
    )


def lifted(a: np.ndarray, b: np.ndarray, lift: float) -> tuple[np.ndarray, np.ndarray]:
    """Return both PSF transforms, given the real part ``lift`` where both vanish.

    Far below ``lift``, which should be the noise of the PSFs' transforms, the ratio of two transforms is that
    of their noises, and decides what D takes from either image: any sharp edge then rings over the whole
    frame (the remedy of LSST DMTN-179: limit the filters). The lifted filters join the images in the ratio of
    their fluxes. Where either transform is above, D takes them as they are, so static stars cancel: the lift
    falls with the fourth power of |a|² + |b|². What is left of a star is in the tests.
    """
    least = np.float32(lift)
    ratio = (a.real**2 + a.imag**2 + b.real**2 + b.imag**2) / (2 * least * least)
    added = least / (1 + np.square(np.square(ratio)))
    return a + added, b + added


def transform_noise(stamp: np.ndarray, error: float) -> float:
    """Return the noise of a PSF's transform; ``stamp`` [n, n], ``error`` of a core pixel over the peak.

    Noise of that size in every pixel would give error * peak * n. Less shows where only noise is left, beyond
    0.4 cycles per pixel: wings are smoother than the core. A PSF of FWHM 2.2 px still has light there,
    2e-3 of its transform's peak, so the lesser of the two is taken.
    """
    n = stamp.shape[0]
    hat = fft.rfft2(stamp.astype(np.float64))
    beyond = fft.fftfreq(n)[:, None] ** 2 + fft.rfftfreq(n)[None, :] ** 2 > 0.4**2
    seen = float(np.sqrt(np.mean(np.abs(hat[beyond]) ** 2)))
    return min(error * float(stamp.max()) * n, seen)


def _power(side: Side) -> np.ndarray | np.float32:
    """Return s²(k), float32: the background's noise power."""
    sigma2 = np.float32(side.sigma2)
    return sigma2 if side.correlation is None else sigma2 * side.correlation


def _filtered_variance(side: Side, kernel_hat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the variance map of the image filtered with a kernel: V convolved with the kernel squared.

    With correlated noise the kernel is first joined to the filter that made the correlation, taken with zero
    phase: its magnitude is the square root of the relative power.
    """
    if side.correlation is not None:
        kernel_hat = kernel_hat * np.sqrt(side.correlation)
    kernel = fft.irfft2(kernel_hat, shape)
    squared = fft.rfft2(kernel * kernel)
    # rounding of the transform leaves +-1e-7 of the peak where nothing contributes
    return np.maximum(fft.irfft2(squared * fft.rfft2(side.variance, shape), shape), 0.0)
