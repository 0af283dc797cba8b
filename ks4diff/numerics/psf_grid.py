"""Put a PSF on an FFT grid: the only place that knows where its centre goes."""

from __future__ import annotations

import numpy as np
from scipy import fft

from ks4diff.numerics.taps import SUPPORT, tap_table


def embed(stamp: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return ``stamp`` [n, n], n odd, on a grid of ``shape`` with its middle pixel at [0, 0], wrapped.

    So that convolving with it moves nothing: the transform of a symmetric stamp is real.
    """
    n = stamp.shape[0]
    if stamp.shape != (n, n) or n % 2 == 0:
        raise ValueError(f"a PSF stamp is square and odd, got {stamp.shape}")
    if n > min(shape):
        raise ValueError(f"stamp of {n} px does not fit on a grid of {shape}")
    half = n // 2
    grid = np.zeros(shape, dtype=stamp.dtype)
    grid[: half + 1, : half + 1] = stamp[half:, half:]
    if half:
        grid[: half + 1, -half:] = stamp[half:, :half]
        grid[-half:, : half + 1] = stamp[:half, half:]
        grid[-half:, -half:] = stamp[:half, :half]
    return grid


def extract(grid: np.ndarray, n: int) -> np.ndarray:
    """Return the [n, n] stamp, n odd, around [0, 0] of a wrapped grid: the inverse of `embed`."""
    offset = np.arange(n) - n // 2
    return grid[offset[:, None], offset]


def widened(stamp: np.ndarray, n: int) -> np.ndarray:
    """Return ``stamp`` [m, m] amid zeros, [n, n]; n - m is even and not below 0."""
    out = np.zeros((n, n), dtype=stamp.dtype)
    low = (n - len(stamp)) // 2
    out[low : n - low, low : n - low] = stamp
    return out


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


def freed_of_shifts(stamp: np.ndarray, fwhm: float) -> np.ndarray:
    """Return a stamp [..., n, n] that was fitted through Lanczos shifts as it is without them.

    A shift multiplies each frequency by other than its phase, so a stamp whose shifted copies fit stars of
    all phases best is not the PSF at a pixel's middle: its peak is 0.3 % too high at ``fwhm`` 3 to 4 px.
    Along each axis it is <S* d> / <|S|²>, of the shifts' response S and the light at phases s,
    d = P(k) exp(iks) + P(2 pi - k) exp(i (k - 2 pi) s), the second part being what pixels alias. P, which
    only has to tell one part from the other, is that of a Moffat of beta 3.5 seen by pixels.
    """
    n = stamp.shape[-1]
    padded = fft.next_fast_len(n + 16, real=True)
    gain = _gain(np.arange(padded // 2 + 1) / padded, float(fwhm))
    out = stamp.astype(np.float64)
    for axis, by in ((-1, gain), (-2, gain[:, None])):
        light = fft.irfft(fft.rfft(out, padded, axis=axis) * by, padded, axis=axis)
        out = np.take(light, np.arange(n), axis=axis)
    return out


def centred(stamps: np.ndarray, fwhm: float) -> np.ndarray:
    """Return stamps [k, n, n] moved alike, so that the first one's light is centred on the middle pixel.

    The centre is that of the light under a Gaussian as wide as the PSF, which sees a move of it by half.
    """
    n = stamps.shape[-1]
    offset = np.arange(n) - n // 2
    window = np.exp(-4 * np.log(2) * (offset[:, None] ** 2 + offset**2) / fwhm**2) * stamps[0]
    by = [2 * float((window * at).sum() / window.sum()) for at in (offset, offset[:, None])]
    padded = fft.next_fast_len(n + 16, real=True)
    k = 2j * np.pi * np.arange(padded // 2 + 1) / padded
    out = stamps
    for axis, move in ((-1, np.exp(k * by[0])), (-2, np.exp(k * by[1])[:, None])):
        light = fft.irfft(fft.rfft(out, padded, axis=axis) * move, padded, axis=axis)
        out = np.take(light, np.arange(n), axis=axis)
    return out


def _gain(frequency: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the PSF over what a fit through shifts makes of it, at frequencies in cycles a pixel."""
    taps = tap_table()[:-1:16]
    past = (np.arange(len(taps)) / len(taps))[:, None]
    k = 2 * np.pi * frequency
    response = taps @ np.exp(1j * np.outer(np.arange(taps.shape[1]) - SUPPORT + 1, k))
    own, alias = _moffat_light(k, fwhm), _moffat_light(2 * np.pi - k, fwhm)
    light = own * np.exp(1j * k * past) + alias * np.exp(1j * (k - 2 * np.pi) * past)
    fitted = (response.conj() * light).mean(axis=0).real / (np.abs(response) ** 2).mean(axis=0)
    return (own + alias) / fitted


def _moffat_light(k: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the transform of a Moffat of beta 3.5 seen by pixels, radians a pixel."""
    z = k * fwhm / (2 * np.sqrt(2 ** (1 / 3.5) - 1))
    return np.exp(-z) * (1 + z + z * z / 3) * np.sinc(k / (2 * np.pi))
