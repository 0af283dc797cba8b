"""Flag the candidates that are ghosts: a bright source of another amplifier read at the same moment."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.moments import stamps
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.image import PixelFlag
from ks4diff.stages.crosstalk import CrosstalkConfig, heard_columns
from ks4diff.stages.photometry import njy_per_count


@dataclass(frozen=True, kw_only=True)
class GhostsConfig:
    """How strong a ghost may be."""

    largest: float = 1e-3  # coefficient left after correction: twice what KMTNet shows (facts, section 7)
    share: float = 0.3  # of a candidate's flux that a ghost must be able to explain


def flag_ghosts(
    candidates: Candidates, chip: CalibratedChip, config: GhostsConfig, crosstalk: CrosstalkConfig
) -> Candidates:
    """Return the candidates with "crosstalk" raised where a ghost could make up much of their flux.

    The column "crosstalk_ratio" says how much of its flux that is. A candidate needs a source some 300 times
    brighter at the one place of each other amplifier that is read at the same moment: by chance 1 of 1,000 at
    5 sigma has it, and fewer of the brighter ones.
    """
    table = candidates.table.copy()
    table["crosstalk_ratio"] = 0.0
    amplifiers = chip.raw.amplifiers
    if len(amplifiers) < 2 or len(table) == 0:
        return replace(candidates, table=table)
    unit = 1.0 if chip.raw.zeropoint is None else njy_per_count(chip.raw.zeropoint)
    flux = np.maximum(np.abs(table["flux"]) / unit, 1e-30)
    x, y = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    level = _full_level(chip)
    for victim, target in enumerate(amplifiers):
        upper = chip.image.shape[0] if target.y1 is None else target.y1
        on = np.flatnonzero((x >= target.x0) & (x < target.x1) & (y >= target.y0) & (y < upper))
        for source in range(len(amplifiers)):
            if source == victim or (crosstalk.crosstalk_same_parity and (victim - source) % 2):
                continue
            here, there = heard_columns(amplifiers, source, victim, crosstalk)
            column = np.full(target.x1 - target.x0, -1)
            column[here] = there
            at = column[x[on] - target.x0]
            ratio = config.largest * _light(chip, at, y[on], level) / flux[on]
            table["crosstalk_ratio"][on] = np.maximum(
                table["crosstalk_ratio"][on], np.where(at >= 0, ratio, 0)
            )
    table["flags"][table["crosstalk_ratio"] > config.share] |= FLAG_BIT["crosstalk"]
    return replace(candidates, table=table)


def _full_level(chip: CalibratedChip) -> float:
    """Return the counts of a saturated pixel: what stands in such pixels is filled in."""
    if chip.raw.saturation:
        return float(chip.raw.saturation)
    full = (chip.image.flags & PixelFlag.SATURATED) != 0
    return float(chip.image.data[~full].max()) if (~full).any() else 0.0


def _light(chip: CalibratedChip, x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """Return the counts [n] within one FWHM of pixels."""
    half = max(round(chip.psf.fwhm_pix), 2)
    offset = np.arange(-half, half + 1)
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= half * half
    heard = np.nan_to_num(stamps(chip.image.data, x, y, half, 0.0))
    full = (stamps(chip.image.flags, x, y, half, 0) & PixelFlag.SATURATED) != 0
    return np.where(disc, np.where(full, level, heard), 0).sum(axis=(1, 2))
