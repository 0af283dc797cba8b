"""Transforms of small stamps on a large grid, at far fewer rows than the grid has.

What is confined to a few pixels has a smooth transform: the rows that a grid 2.25 times as high as the stamp
would have tell all others, by Kaiser-Bessel interpolation along the columns (Beatty, Nishimura & Pauly 2005).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from ks4diff.numerics.jit import jit

TAPS = 8  # rows that one is interpolated from
OVERSAMPLING = 2.25  # with both a transform errs by 2e-7 of its peak, as float32 does


def thin_rows(n: int) -> int:
    """Return how many rows tell the transform of a stamp of ``n`` px."""
    return fft.next_fast_len(int(np.ceil(OVERSAMPLING * n)))


def _shape_parameter(oversampling: float) -> float:
    """Return the beta of the window with the least aliasing (Beatty et al., eq. 5)."""
    return float(np.pi * np.sqrt((TAPS / oversampling * (oversampling - 0.5)) ** 2 - 0.8))


@lru_cache(maxsize=8)
def taps(rows: int, thin: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (first int64 [rows], weights float32 [rows, TAPS]): what each row of a grid is made of.

    Row k is the sum of the ``thin`` rows first[k], first[k] + 1, ... (wrapped) times weights[k]; ``n`` px is
    the height of the stamps.
    """
    at = np.arange(rows) * (thin / rows)
    first = np.floor(at).astype(np.int64) - TAPS // 2 + 1
    t = 2 * (at[:, None] - first[:, None] - np.arange(TAPS)) / TAPS
    weights = np.i0(_shape_parameter(thin / n) * np.sqrt(np.maximum(1 - t * t, 0))) / TAPS
    return first % thin, weights.astype(np.float32)


def _window(thin: int, n: int) -> np.ndarray:
    """Return float64 [n]: the transform of the interpolation's window at the rows of a stamp."""
    beta = _shape_parameter(thin / n)
    x = np.sqrt((beta**2 - (np.pi * TAPS * (np.arange(n) - n // 2) / thin) ** 2).astype(np.complex128))
    return (np.sinh(x) / x).real


def thin_transform(stamps: np.ndarray, columns: int, thin: int) -> np.ndarray:
    """Return complex64 [m, thin, columns // 2 + 1]: the thin transforms of stamps [m, n, n], n odd.

    The middle of a stamp is pixel [0, 0] of the grid, as in `psf_grid.transform`.
    """
    m, n, _ = stamps.shape
    half = n // 2
    scaled = (stamps / _window(thin, n)[:, None]).astype(np.float32)
    wide = np.zeros((m, n, columns), dtype=np.float32)
    wide[:, :, : n - half], wide[:, :, columns - half :] = scaled[:, :, half:], scaled[:, :, :half]
    along = fft.rfft(wide, axis=2)
    tall = np.zeros((m, thin, along.shape[2]), dtype=np.complex64)
    tall[:, : n - half], tall[:, thin - half :] = along[:, half:], along[:, :half]
    return fft.fft(tall, axis=1, overwrite_x=True)


@jit
def thin_row(thin, first, weights, out):
    """Write a row of a grid into ``out`` float32 [m] from ``thin`` float32 [rows, m], as `taps` says."""
    rows = thin.shape[0]
    for half in range(0, TAPS, 4):
        k = first + half
        t0, t1, t2, t3 = thin[k % rows], thin[(k + 1) % rows], thin[(k + 2) % rows], thin[(k + 3) % rows]
        w0, w1, w2, w3 = weights[half], weights[half + 1], weights[half + 2], weights[half + 3]
        if half == 0:
            for i in range(len(out)):
                out[i] = w0 * t0[i] + w1 * t1[i] + w2 * t2[i] + w3 * t3[i]
        else:
            for i in range(len(out)):
                out[i] += w0 * t0[i] + w1 * t1[i] + w2 * t2[i] + w3 * t3[i]
