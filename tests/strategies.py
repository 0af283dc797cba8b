"""Hypothesis strategies and seeded makers of PSFs, skies and noise."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ks4diff.numerics.lanczos import node_grid, resample

SHAPES = [(96, 96), (97, 131), (128, 90), (111, 111)]  # even, odd, mixed, none the other's transpose

seeds = st.integers(0, 2**32 - 1)
fractions = st.floats(-0.5, 0.5, allow_nan=False)
widths = st.floats(2.5, 6.0)


def gaussian(n, fwhm, *, axis_ratio=1.0, angle=0.0, dx=0.0, dy=0.0):
    """Return a Gaussian sampled at pixel centres, [n, n], sum about 1, its centre moved by (dx, dy)."""
    offset = np.arange(n) - n // 2
    v, u = np.meshgrid(offset - dy, offset - dx, indexing="ij")
    sigma = fwhm / 2.3548
    along = np.cos(angle) * u + np.sin(angle) * v
    across = -np.sin(angle) * u + np.cos(angle) * v
    a, b = sigma / np.sqrt(axis_ratio), sigma * np.sqrt(axis_ratio)
    return np.exp(-0.5 * ((along / a) ** 2 + (across / b) ** 2)) / (2 * np.pi * sigma**2)


def moffat(n, fwhm, beta=3.5):
    """Return a Moffat profile [n, n] brought smoothly to 0 at the border, sum 1."""
    offset = np.arange(n) - n // 2
    radius = np.hypot(offset[:, None], offset[None, :])
    stamp = (1 + (2 ** (1 / beta) - 1) * (2 * radius / fwhm) ** 2) ** -beta
    stamp *= 0.5 * (1 + np.cos(np.pi * np.clip(radius / (n // 2 + 0.5), 0, 1)))
    return stamp / stamp.sum()


def lopsided(stamp, at=(1, 1)):
    """Return a PSF with a companion of a quarter of its light ``at`` px (y, x): not its own mirror image.

    A conjugate forgotten in a filter shows with it, and with no round or elliptical PSF.
    """
    return 0.8 * stamp + 0.2 * np.roll(stamp, at, (0, 1))


def turned_nodes(shape, *, scale=1.007, angle_deg=0.6, start=(9.3, 12.7)):
    """Return resampling nodes of a grid turned and scaled against its input, all inside a padded input."""
    x, y = node_grid(shape)
    c, s = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    return np.stack([c * x - s * y + start[0] + s * shape[0], s * x + c * y + start[1]])


def resampled_noise(rng, shape, nodes, sigma=1.0):
    """Return (white noise of ``sigma`` resampled to ``shape``, its flags); all is inside the input."""
    size = tuple(int(n) + 20 for n in nodes.max(axis=(1, 2))[::-1])
    white = rng.normal(0, sigma, size).astype(np.float32)
    data, flags = resample(white, np.zeros(size, dtype=np.uint16), nodes, shape)
    if (flags != 0).any():
        raise ValueError("nodes leave the input")
    return data, flags


def field(rng, n, width, height):
    """Return n star positions, float64 [n, 2], strewn evenly."""
    return rng.uniform(0, 1, (n, 2)) * [width, height]
