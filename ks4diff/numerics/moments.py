"""Shapes of PSFs and of difference sources, on square odd stamps."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage


def stamps(image: np.ndarray, x: np.ndarray, y: np.ndarray, half: int, fill: float = np.nan) -> np.ndarray:
    """Return [n, 2 half + 1, 2 half + 1]: the pixels around the nearest pixel to each (x, y).

    Of ``image``'s type; pixels beyond its border are ``fill``, for an image of floats.
    """
    rows, columns = image.shape
    side = 2 * half + 1
    low, left = (np.rint(at).astype(np.int64) - half for at in (y, x))
    whole = (low >= 0) & (low + side <= rows) & (left >= 0) & (left + side <= columns)
    out = np.empty((len(low), side, side), dtype=image.dtype)
    if whole.any():
        out[whole] = sliding_window_view(image, (side, side))[low[whole], left[whole]]
    for k in np.flatnonzero(~whole):
        y0, y1 = (min(max(at, 0), rows) for at in (low[k], low[k] + side))
        x0, x1 = (min(max(at, 0), columns) for at in (left[k], left[k] + side))
        out[k] = fill
        out[k, y0 - low[k] : y1 - low[k], x0 - left[k] : x1 - left[k]] = image[y0:y1, x0:x1]
    return out


def half_max_width(stamp: np.ndarray) -> float:
    """Return the FWHM in pixels: the diameter of a disc as large as the area above half the peak.

    ``stamp`` float [n, n]; the area is counted on a grid four times as fine, by cubic spline.
    """
    fine, room = 4, 8
    # the spline forgets its border within 8 px: only the peak's surroundings are zoomed
    high = np.nonzero(stamp > 0.25 * stamp.max())
    near = tuple(slice(max(int(at.min()) - room, 0), int(at.max()) + room + 1) for at in high)
    above = ndimage.zoom(stamp[near], fine, order=3, grid_mode=True, mode="grid-constant")
    return float(2 * np.sqrt(np.count_nonzero(above > 0.5 * above.max()) / np.pi) / fine)


def moved(stamp: np.ndarray, dx: float, dy: float, n: int) -> np.ndarray:
    """Return the middle [n, n] of a stamp moved right and up by (dx, dy) px, by cubic spline; 0 beyond it.

    Both sizes are odd, so that the middle pixel of one is that of the other.
    """
    low = (stamp.shape[0] - n) // 2
    if low < 0:
        stamp, low = np.pad(stamp, -low), 0
    return ndimage.shift(stamp, (dy, dx), order=3, mode="grid-constant")[low : low + n, low : low + n]


def gaussian_shape(stamp: np.ndarray, fwhm: float) -> tuple[float, float]:
    """Return (FWHM in pixels, major over minor axis) of a source in the middle of a stamp.

    From second moments weighted by a Gaussian of ``fwhm`` and freed from that weight as for a Gaussian source
    (1 / s² = 1 / m² - 1 / w²); pixels below 0 and NaN do not count. NaN when nothing is left.
    """
    offset = np.arange(stamp.shape[0]) - stamp.shape[0] // 2
    dy, dx = np.meshgrid(offset, offset, indexing="ij")
    width2 = (fwhm / 2.3548) ** 2
    weight = np.exp(-0.5 * (dx**2 + dy**2) / width2) * np.nan_to_num(np.maximum(stamp, 0.0))
    total = weight.sum()
    if not total > 0:
        return np.nan, np.nan
    mx, my = (weight * dx).sum() / total, (weight * dy).sum() / total
    xx = (weight * (dx - mx) ** 2).sum() / total
    yy = (weight * (dy - my) ** 2).sum() / total
    xy = (weight * (dx - mx) * (dy - my)).sum() / total
    middle, spread = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    # a source as wide as the weight allows is reported at ten times the weight's width
    major, minor = (
        1 / max(1 / max(m, 1e-3) - 1 / width2, 0.01 / width2) for m in (middle + spread, middle - spread)
    )
    return float(2.3548 * (major * minor) ** 0.25), float(np.sqrt(major / minor))


def correlation(a: np.ndarray, b: np.ndarray, used: np.ndarray) -> float:
    """Return Pearson's correlation of two stamps over the used pixels (bool), 0 where either is constant.

    Also 0 with no pixel to use.
    """
    if not used.any():
        return 0.0
    da, db = a[used] - a[used].mean(), b[used] - b[used].mean()
    norm = np.sqrt((da**2).sum() * (db**2).sum())
    return float((da * db).sum() / norm) if norm > 0 else 0.0
