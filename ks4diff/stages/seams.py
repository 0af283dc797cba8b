"""The step of the sky where two amplifiers meet, measured between the sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, kw_only=True)
class SeamConfig:
    """Which pixels beside a seam tell its step."""

    strip_pix: int = 64  # to each side; the sky is a parabola over both together
    gap_strip_pix: int = 256  # the same where a dead amplifier lies between: more lever for the slope
    edge_skip_pix: int = 4  # columns at the seam have levels of their own (M chip: up to 70 counts)
    block_rows: int = 64  # one step is measured per block; short enough for the sky's gradient
    source_sigma: float = 1.5  # smoothed pixels above this are no sky, grown by two, ...
    source_peak_sigma: float = 3.5  # ... where their patch rises above this somewhere
    clip_sigma: float = 3.0  # of what remains, equally on both sides
    odd_spreads: float = 5.0  # a column farther off than this many times their spread is none of the sky's
    least_fraction: float = 0.25  # of a side's pixels of a block, or the block tells nothing

    def __post_init__(self) -> None:
        """Refuse strips that the skipped columns leave empty."""
        if not 0 <= self.edge_skip_pix < self.strip_pix or self.block_rows < 8:
            raise ValueError("edge_skip_pix must be in [0, strip_pix) and block_rows at least 8")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps at one seam, block by block from the bottom; arrays [blocks], counts.

    ``step`` is right minus left at the seam, ``level`` the mean of both there, ``error`` the step's standard
    error, NaN all three where too little sky was left; ``row`` the block's middle. ``columns`` [m] are the
    chip's columns in the strips, ``excess`` [m] how far each lies from the sky found beside it (median over
    blocks), ``excess_error`` likewise. ``sigma`` is the noise of one pixel.
    """

    row: np.ndarray
    step: np.ndarray
    level: np.ndarray
    error: np.ndarray
    columns: np.ndarray
    excess: np.ndarray
    excess_error: float
    sigma: float

    def mean(self) -> tuple[float, float]:
        """Return (step, its standard error): the median over blocks, its error from their scatter."""
        known = self.step[np.isfinite(self.step)]
        if not len(known):
            return float("nan"), float("inf")
        middle = float(np.median(known))
        scatter = 1.4826 * float(np.median(np.abs(known - middle)))
        error = max(scatter, float(np.nanmedian(self.error)))
        return middle, 1.2533 * error / np.sqrt(len(known))


def measure_steps(left: np.ndarray, right: np.ndarray, x: tuple[int, int], config: SeamConfig, good) -> Steps:
    """Return the steps between two strips float [rows, w], the sky modelled as a parabola across both.

    In each block of rows z = c0 + c1 u + c2 u² + step * (side ± 1/2) is fitted by least squares, u = 0 in the
    middle of the seam and ±1 at the strips' far ends; both sides share slope and curvature, so a gradient is
    no step. The step's variance is 16 sigma²/N of N pixels, against 4 sigma²/N without a slope.

    ``x`` = (first column of ``left``, first column of ``right``) in the chip; ``good`` bool [rows, 2 w].
    """
    z = np.concatenate([left, right], axis=1, dtype=np.float32)
    columns = np.concatenate([x[0] + np.arange(left.shape[1]), x[1] + np.arange(right.shape[1])])
    side = np.repeat([-0.5, 0.5], [left.shape[1], right.shape[1]])
    rows = min(config.block_rows, len(z))
    n = len(z) // rows
    z, good = z[: n * rows], good[: n * rows] & np.isfinite(z[: n * rows])
    z = np.where(good, z, 0)
    sky, sigma = _sky(z.reshape(n, rows, -1), good.reshape(n, rows, -1), side, config)
    seam = 0.5 * (x[0] + left.shape[1] + x[1]) - 0.5
    u = (columns - seam) / max(np.abs(columns - seam).max(), 1)
    skip = config.edge_skip_pix
    inner = (columns < x[0] + left.shape[1] - skip) | (columns >= x[1] + skip)
    basis = np.stack([np.ones_like(u), u, u**2, side], axis=1)
    fit, covariance, used = _fit(z.reshape(n, rows, -1), sky & inner, basis, sigma, config)
    odd = _odd_columns(z.reshape(n, rows, -1), sky, fit @ basis.T, sigma, config)
    if odd.any():
        fit, covariance, used = _fit(z.reshape(n, rows, -1), sky & inner & ~odd, basis, sigma, config)
    enough = np.minimum(
        used[:, side < 0].sum(1) / (side < 0).sum(), used[:, side > 0].sum(1) / (side > 0).sum()
    )
    known = np.where(enough >= config.least_fraction * rows, 1.0, np.nan)
    excess, error = _column_excess(z.reshape(n, rows, -1), sky, fit @ basis.T, known, sigma)
    return Steps(
        row=(np.arange(n) + 0.5) * rows,
        step=fit[:, 3] * known,
        level=fit[:, 0] * known,
        error=sigma * np.sqrt(covariance) * known,
        columns=columns,
        excess=excess,
        excess_error=error,
        sigma=sigma,
    )


def _sky(z: np.ndarray, good: np.ndarray, side: np.ndarray, config: SeamConfig) -> tuple[np.ndarray, float]:
    """Return (bool like z: no source, noise of one pixel); each side of a block has its own level."""
    flat = np.zeros_like(z)
    for half in (side < 0, side > 0):
        with np.errstate(all="ignore"):
            part = np.where(good[:, :, half], z[:, :, half], np.nan)
            middle = _nan_percentile(part[:, ::3].reshape(len(z), -1), 0.5)  # a third of the rows is plenty
        flat[:, :, half] = np.where(good[:, :, half], part - middle[:, None, None], 0)
    whole, usable = flat.reshape(-1, z.shape[2]), good.reshape(-1, z.shape[2])
    # a gradient or a column with a level of its own is no source
    column = np.nan_to_num(_nan_percentile(np.where(usable, whole, np.nan)[::4].T, 0.5)).astype(np.float32)
    whole = np.where(usable, whole - column, 0)
    sigma = _spread(whole[usable])
    smooth = ndimage.gaussian_filter(whole, 1.5)
    spread = _spread(smooth[usable])
    above = smooth > config.source_sigma * spread
    seeds = smooth > config.source_peak_sigma * spread
    sources = ndimage.binary_dilation(ndimage.binary_propagation(seeds, mask=above), iterations=2)
    return (usable & ~sources).reshape(z.shape), max(sigma, 1e-6)


def _fit(z, use, basis, sigma, config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (coefficients [n, 4], step variance / sigma² [n], pixels used [n, m]) after two clippings."""
    use = use.copy()
    for turn in range(3):
        count = use.sum(axis=1).astype(np.float64)
        total = np.where(use, z, 0).sum(axis=1, dtype=np.float64)
        normal = np.einsum("bm,mp,mq->bpq", count, basis, basis)
        normal += 1e-6 * np.eye(4) * max(count.sum() / len(count), 1)  # solvable where a side is empty
        fit = np.linalg.solve(normal, (total @ basis)[:, :, None])[:, :, 0]
        if turn < 2:
            model = (fit @ basis.T).astype(np.float32)
            use &= np.abs(z - model[:, None, :]) < config.clip_sigma * sigma
    return fit, np.linalg.inv(normal)[:, 3, 3], count


def _odd_columns(z, sky, model, sigma, config) -> np.ndarray:
    """Return bool [m]: columns that stand off the sky all along; one of 10 counts moves the step by 0.6."""
    excess, error = _column_excess(z, sky, model, np.ones(len(z)), sigma)
    off = excess - np.median(excess)
    return np.abs(off) > np.maximum(5 * error, config.odd_spreads * 1.4826 * np.median(np.abs(off)))


def _column_excess(z, sky, model, known, sigma) -> tuple[np.ndarray, float]:
    """Return ([m] median over blocks of each column's mean above the model, its standard error)."""
    usable = np.isfinite(known)
    if not usable.any():
        return np.zeros(z.shape[2]), float("inf")
    z, sky, model = z[usable], sky[usable], model[usable]
    count = sky.sum(axis=1)
    mean = np.where(sky, z - model[:, None, :], 0).sum(axis=1) / np.maximum(count, 1)
    mean = np.where(count >= 0.25 * z.shape[1], mean, np.nan)
    excess = np.nan_to_num(_nan_percentile(mean.T, 0.5))
    return excess, 1.2533 * sigma / np.sqrt(max(0.7 * z.shape[1] * len(z), 1))


def _nan_percentile(values: np.ndarray, part: float) -> np.ndarray:
    """Return the ``part`` quantile of each row's finite values; NaN where it has none."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    place = np.clip((part * (count - 1)).astype(int), 0, None)
    return np.where(count > 0, ordered[np.arange(len(values)), place], np.nan)


def _spread(values: np.ndarray) -> float:
    if not values.size:
        return 0.0
    low, high = np.percentile(values[:: max(1, values.size // 200_000)], [15.87, 84.13])
    return float(0.5 * (high - low))
