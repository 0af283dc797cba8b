"""Master frames from many by clipped combination, and the bad pixels that stand out in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.products.chip import Amplifier


@dataclass(frozen=True, kw_only=True)
class MastersConfig:
    """Which frames make a master, how they are combined and which pixels are bad in it."""

    bias_longest_s: float = 1.0  # a "bias" exposed for longer is none
    bias_least_frames: int = 3  # below, a cosmic ray cannot be outvoted
    flat_least_frames: int = 3
    flat_faintest: float = 2000.0  # counts over the overscan; fainter, its noise is the science frames'
    flat_brightest: float = 45000.0  # ramps are linear up to 41 kilocounts above bias (kmtnet.md section 6)
    fringe_bands: str = "I"  # letters; 0.7 % of the sky in I, none known in B, V and R (kmtnet.md section 7)
    fringe_least_frames: int = 10  # of sky 400 they leave 0.2 % noise; a pixel must be source-free in three
    fringe_shortest_s: float = 60.0  # focus frames are shorter, and their sky is read noise
    clip_sigma: float = 4.0  # from the median of the frames: cosmic rays, and stars in twilight flats
    bad_sigma: float = 8.0  # a pixel's distance from its cell's median, in the frame's own scatter, ...
    bad_response: float = 0.15  # ... and of the flat at least this part: 16 times the 0.9 % of good pixels
    bad_ratio: float = 0.05  # ... and of the ratio of bright to faint flats this part: non-linear
    bad_bias_counts: float = 10.0  # ... and of the bias these counts: hot or trapped
    bad_column_sigma: float = 6.0  # the same for the median of 512 pixels of a column, ...
    bad_column_response: float = 0.02  # ... with these least parts and counts
    bad_column_counts: float = 1.5
    cell_pix: int = 16  # of good pixels around, within the same amplifier


_COLUMN_ROWS = 512


def combine_mean(stack: np.ndarray, clip_sigma: float) -> np.ndarray:
    """Return float32 [rows, columns]: the mean of frames [n, rows, columns] near their median."""
    kept = _clipped(stack, clip_sigma)
    count = np.isfinite(kept).sum(axis=0)
    total = np.where(np.isfinite(kept), kept, 0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def combine_median(stack: np.ndarray, clip_sigma: float, *, least: int = 1) -> np.ndarray:
    """Return float32 [rows, columns]: the median of what the clip leaves; NaN with fewer than ``least``."""
    return _median(_clipped(stack, clip_sigma), least)


def flat_level(data: np.ndarray, amplifiers: Sequence[Amplifier], dead: np.ndarray) -> float:
    """Return the chip's median without its dead amplifiers; counts of ``data`` [y, x] above bias."""
    if not len(amplifiers):
        return float(np.nanmedian(data[::8, ::8]))
    live = [a for a, gone in zip(amplifiers, dead, strict=True) if not gone]
    parts = [data[a.y0 : a.y1 : 8, a.x0 : a.x1 : 8].ravel() for a in live]
    return float(np.nanmedian(np.concatenate(parts))) if parts else float("nan")


def smooth_fringe(fringe: np.ndarray, sigma_pix: float) -> np.ndarray:
    """Return float32 [y, x]: the pattern smoothed by a Gaussian, holes filled from around or 0."""
    known = np.isfinite(fringe)
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma_pix)
    smooth = ndimage.gaussian_filter(np.where(known, fringe, 0).astype(np.float32), sigma_pix)
    return np.where(weight > 0.2, smooth / np.maximum(weight, 0.2), 0).astype(np.float32)


def bad_pixels(
    bias: np.ndarray | None,
    flat: np.ndarray | None,
    ratio: np.ndarray | None,
    amplifiers: Sequence[Amplifier],
    config: MastersConfig,
) -> np.ndarray:
    """Return bool [y, x]: pixels and parts of columns that stand out of their amplifier in any master.

    ``ratio`` is the master of the brightest flats over that of the faintest: 1 where a pixel is linear.
    """
    masters = [
        (bias, config.bad_bias_counts, config.bad_column_counts, False),
        (flat, config.bad_response, config.bad_column_response, True),
        (ratio, config.bad_ratio, config.bad_column_response, True),
    ]
    shape = next(m.shape for m, *_ in masters if m is not None)
    bad = np.zeros(shape, dtype=bool)
    for master, least, least_column, relative in masters:
        if master is None:
            continue
        for a in amplifiers or (Amplifier(name="", x0=0, x1=shape[1]),):
            part = (slice(a.y0, a.y1), slice(a.x0, a.x1))
            bad[part] |= _outliers(master[part], least, least_column, relative=relative, config=config)
    return bad


def _outliers(master, least, least_column, *, relative, config) -> np.ndarray:
    """Return bool [y, x]: where one amplifier's master leaves its surroundings; not finite counts as well."""
    if not np.isfinite(master).any():
        return np.ones(master.shape, dtype=bool)
    around = _cell_median(master, config.cell_pix)
    excess = master / np.where(around > 0, around, np.nan) - 1 if relative else master - around
    excess = excess.astype(np.float32)
    bad = ~np.isfinite(excess)
    excess[bad] = 0
    spread = 1.4826 * float(np.median(np.abs(excess[::4, ::4])))
    bad |= np.abs(excess) > max(config.bad_sigma * spread, least)
    # a faint column hides in its pixels' noise
    for start in range(0, len(excess), _COLUMN_ROWS):
        rows = slice(start, start + _COLUMN_ROWS)
        column = _stands_out(_median(master[rows], 1), relative)
        error = 1.2533 * spread / np.sqrt(len(excess[rows]))
        bad[rows, np.abs(column) > max(config.bad_column_sigma * error, least_column)] = True
    return bad


def _stands_out(profile: np.ndarray, relative: bool) -> np.ndarray:
    """Return [columns]: how far each lies from the running median of 15, a slope taken for what it is."""
    half = min(7, len(profile) - 1)
    known = np.nan_to_num(profile)
    around = np.pad(known, half, mode="reflect", reflect_type="odd")
    around = ndimage.median_filter(around, size=2 * half + 1)[half : half + len(known)]
    return known / np.where(around > 0, around, np.inf) - 1 if relative else known - around


def _cell_median(image: np.ndarray, cell: int) -> np.ndarray:
    """Return float32 [y, x]: the median of each cell, its pixels all alike."""
    height, width = image.shape
    ny, nx = -(-height // cell), -(-width // cell)
    full = np.pad(image, ((0, ny * cell - height), (0, nx * cell - width)), mode="reflect")
    cells = full.reshape(ny, cell, nx, cell).transpose(0, 2, 1, 3).reshape(ny * nx, cell * cell)
    middle = _median(cells.T, 1).reshape(ny, nx)
    return np.repeat(np.repeat(middle, cell, axis=0), cell, axis=1)[:height, :width]


def _clipped(stack: np.ndarray, clip_sigma: float) -> np.ndarray:
    """Return float32 like ``stack``, NaN where a frame is farther from the frames' median than the clip.

    The noise is each column's own: amplifiers differ in read noise. Two frames cannot outvote each other.
    """
    stack = np.array(stack, dtype=np.float32)
    if len(stack) < 3:
        return stack
    residual = np.abs(stack - _median(stack, 1))
    sample = residual[:, :: max(1, residual.shape[1] // 32)].reshape(-1, stack.shape[2])
    flat = np.where(np.isfinite(sample), sample, 0)
    # the median follows its own frames: of n normal ones it takes away some 1/n of the variance
    spread = 1.4826 * np.median(flat, axis=0) * np.sqrt(len(stack) / (len(stack) - 1))
    stack[residual > clip_sigma * np.maximum(spread, 1e-9)] = np.nan
    return stack


def _median(stack: np.ndarray, least: int) -> np.ndarray:
    """Return float32: the median along the first axis of the finite values, NaN with fewer than ``least``."""
    ordered = np.sort(stack, axis=0)  # NaN last
    count = np.isfinite(ordered).sum(axis=0)
    if count.size and count.min() == len(stack):
        n = len(stack)
        return (0.5 * (ordered[(n - 1) // 2] + ordered[n // 2])).astype(np.float32)
    low, high = np.maximum((count - 1) // 2, 0), count // 2
    middle = 0.5 * (
        np.take_along_axis(ordered, low[None], axis=0)[0]
        + np.take_along_axis(ordered, np.minimum(high, len(stack) - 1)[None], axis=0)[0]
    )
    return np.where(count >= max(least, 1), middle, np.nan).astype(np.float32)
