"""The bias level under each row, from the overscan that was read out behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.products.chip import Amplifier


@dataclass(frozen=True, kw_only=True)
class OverscanConfig:
    """How an overscan strip becomes a level per row."""

    overscan_skip_pix: int = 4  # first columns: hold the charge and the undershoot of the row's last pixels
    overscan_clip_sigma: float = 4.0  # cosmic rays and trails of deferred charge within the strip
    overscan_median_rows: int = 151  # much taller than a star, whose rows undershoot by up to 200 counts
    overscan_mean_rows: int = 51  # takes the steps out of the running median

    def __post_init__(self) -> None:
        """Refuse windows of no rows."""
        if min(self.overscan_median_rows, self.overscan_mean_rows) < 1 or self.overscan_skip_pix < 0:
            raise ValueError("overscan windows must be at least 1 row and overscan_skip_pix not negative")


def overscan_level(strip: np.ndarray, config: OverscanConfig) -> np.ndarray:
    """Return float64 [rows], counts: the bias level of each row, without the noise of its few pixels.

    A row's level is the clipped mean of its overscan; over the rows runs a median, then a mean. Rows under a
    bright star undershoot (shared facts: kmtnet.md section 6: -10 to -200 counts at 15 to 45 kilocounts): the
    bias under their pixels does not, so the median ignores them while they are fewer than half its window.
    What all rows undershoot in proportion to the sky stays in the image as a part of the sky, which the
    matching of the amplifiers' gains removes.

    ``strip`` is float32 [rows, n], the pixels read out after the row's last; rows without a finite pixel take
    the level of the rows around them. All of it NaN gives NaN.
    """
    skip = min(config.overscan_skip_pix, strip.shape[1] - 1)
    use = np.where(np.isfinite(strip[:, skip:]), strip[:, skip:], np.nan).astype(np.float64)
    known = np.isfinite(use).any(axis=1)
    if not known.any():
        return np.full(len(strip), np.nan)
    middle = np.full(len(use), np.nan)
    middle[known] = np.nanmedian(use[known], axis=1)
    residual = use - middle[:, None]
    spread = 1.4826 * float(np.nanmedian(np.abs(residual)))
    use[np.abs(residual) > config.overscan_clip_sigma * max(spread, 0.5)] = np.nan  # 0.5: integers repeat
    level = middle.copy()
    level[known] = np.nanmean(use[known], axis=1, where=np.isfinite(use[known]))
    rows = np.arange(len(level))
    level = np.interp(rows, rows[known], level[known])
    window = min(config.overscan_median_rows, len(level))
    level = ndimage.median_filter(level, size=window, mode="reflect")
    return ndimage.uniform_filter1d(level, size=min(config.overscan_mean_rows, len(level)), mode="reflect")


def overscan_levels(amplifiers: tuple[Amplifier, ...], config: OverscanConfig) -> list[np.ndarray | None]:
    """Return the level per row of each amplifier, None where the file was trimmed or the strip is empty."""
    levels: list[np.ndarray | None] = []
    for amplifier in amplifiers:
        strip = amplifier.overscan
        level = None if strip is None or strip.size == 0 else overscan_level(strip, config)
        levels.append(level if level is not None and np.isfinite(level).all() else None)
    return levels
