"""Interference of the night sky's lines in the silicon: one pattern, its strength different each time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from scipy import ndimage


@dataclass(frozen=True, kw_only=True)
class FringeConfig:
    """On which scales fringes live."""

    fringe_mesh_pix: int = 256  # sky on this scale is no fringe; fringes are some 20 to 100 px wide
    fringe_cell_pix: int = 8  # pattern and sky are compared in cells of this size
    fringe_smooth_pix: float = 2.0  # Gaussian sigma on the master: noise falls 7-fold, 40 px fringes by 5 %
    fringe_least_sigma: float = 3.0  # a pattern weaker than this many errors is left alone


def fringe_frame(data: np.ndarray, flags: np.ndarray, config: FringeConfig) -> np.ndarray:
    """Return float32 [y, x]: the chip's small-scale structure in parts of its sky, NaN on sources.

    ``data`` float32 counts with the sky in it; the amplifiers are matched. A sky that is not positive gives
    NaN everywhere.
    """
    bad = flags != 0
    clean = np.where(bad, 0, data).astype(np.float32)
    mesh = min(config.fringe_mesh_pix, max(min(data.shape) // 4, 16))
    background = sep.Background(clean, mask=bad, bw=mesh, bh=mesh)
    sky = background.globalback
    if not sky > 0:
        return np.full(data.shape, np.nan, np.float32)
    clean -= background.back()
    bad |= _sources(clean, bad)
    clean -= sep.Background(clean, mask=bad, bw=mesh, bh=mesh).back()  # what the sources had lifted
    clean /= np.float32(sky)
    clean[bad] = np.nan
    return clean


def fringe_scale(
    data: np.ndarray, flags: np.ndarray, fringe: np.ndarray, config: FringeConfig
) -> tuple[float, float]:
    """Return (scale, its error): counts per unit of ``fringe``, by least squares on source-free sky.

    Both are averaged in cells and freed of what is larger than the fringe mesh by the same linear filter, so
    that neither gradients nor haloes count; cells beyond 4 sigma are clipped twice.
    """
    cell = config.fringe_cell_pix
    bad = (flags != 0) | ~np.isfinite(data) | ~np.isfinite(fringe)
    clean = np.where(bad, 0, data).astype(np.float32)
    mesh = min(config.fringe_mesh_pix, max(min(data.shape) // 4, 16))
    background = sep.Background(clean, mask=bad, bw=mesh, bh=mesh)
    clean -= background.back()
    bad |= _sources(clean, bad)
    weight = _binned((~bad).astype(np.float32), cell)
    use = weight > 0.5 * cell * cell
    if use.sum() < 50:
        return 0.0, float("inf")
    safe = np.maximum(weight, 1)
    size = max(3, mesh // cell)
    d = _high_pass(_binned(np.where(bad, 0, clean), cell) / safe, use, size)
    f = _high_pass(_binned(np.where(bad, 0, fringe), cell) / safe, use, size)
    for _ in range(3):
        norm = float((f[use] ** 2).sum())
        if norm <= 0:
            return 0.0, float("inf")
        scale = float((d[use] * f[use]).sum()) / norm
        residual = d - scale * f
        sigma = 1.4826 * float(np.median(np.abs(residual[use])))
        error = sigma / np.sqrt(norm)
        use &= np.abs(residual) < 4 * max(sigma, 1e-9)
    return scale, error


def _sources(residual: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Return bool: patches of the smoothed image above 1.5 sigma that rise above 3.5, grown by two."""
    smooth = ndimage.gaussian_filter(np.where(bad, 0, residual), 1.5)
    sample = smooth[~bad]
    low, high = np.percentile(sample[:: max(1, sample.size // 500_000)], [15.87, 50])
    spread = max(float(high - low), 1e-9)
    above = smooth > 1.5 * spread
    seeds = smooth > 3.5 * spread
    return ndimage.binary_dilation(ndimage.binary_propagation(seeds, mask=above), iterations=2)


def _binned(image: np.ndarray, cell: int) -> np.ndarray:
    """Return the sum over cells, float64; rows and columns that fill no cell are left out."""
    height, width = image.shape[0] // cell * cell, image.shape[1] // cell * cell
    blocks = image[:height, :width].reshape(height // cell, cell, width // cell, cell)
    return blocks.sum(axis=(1, 3), dtype=np.float64)


def _high_pass(image: np.ndarray, use: np.ndarray, size: int) -> np.ndarray:
    weight = ndimage.uniform_filter(use.astype(np.float64), size)
    mean = ndimage.uniform_filter(np.where(use, image, 0.0), size) / np.maximum(weight, 1e-6)
    return image - mean
