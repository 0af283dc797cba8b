"""Put a PSF on an FFT grid: the only place that knows where its centre goes."""

from __future__ import annotations

import numpy as np
from scipy import fft


def embed(stamp: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return ``stamp`` [n, n], n odd, on a grid of ``shape`` with its middle pixel at [0, 0], wrapped.

    So that convolving with it moves nothing: the transform of a symmetric stamp is real.
    """
    n = stamp.shape[0]
    if stamp.shape != (n, n) or n % 2 == 0:
        raise ValueError(f"a PSF stamp is square and odd, got {stamp.shape}")
    if n > min(shape):
        raise ValueError(f"stamp of {n} px does not fit on a grid of {shape}")
    grid = np.zeros(shape, dtype=stamp.dtype)
    grid[:n, :n] = stamp
    return np.roll(grid, (-(n // 2), -(n // 2)), axis=(0, 1))


def extract(grid: np.ndarray, n: int) -> np.ndarray:
    """Return the [n, n] stamp, n odd, around [0, 0] of a wrapped grid: the inverse of `embed`."""
    half = n // 2
    return np.roll(grid, (half, half), axis=(0, 1))[:n, :n].copy()


def transform(stamp: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the real FFT, complex [rows, columns // 2 + 1], of an embedded stamp."""
    return fft.rfft2(embed(stamp, shape))


def good_shape(shape: tuple[int, int], margin: int) -> tuple[int, int]:
    """Return the smallest fast FFT (rows, columns) that holds ``shape`` plus ``margin`` more pixels."""
    return fft.next_fast_len(shape[0] + margin, real=True), fft.next_fast_len(shape[1] + margin, real=True)


def taper(n: int, inner: float, outer: float) -> np.ndarray:
    """Return float64 [n, n]: 1 within ``inner`` px of the centre, 0 beyond ``outer``, cosine between."""
    half = n // 2
    offset = np.arange(n) - half
    radius = np.hypot(offset[:, None], offset[None, :])
    phase = np.clip((radius - inner) / max(outer - inner, 1e-9), 0.0, 1.0)
    return 0.5 * (1 + np.cos(np.pi * phase))
