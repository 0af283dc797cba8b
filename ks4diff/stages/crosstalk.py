"""Ghosts that amplifiers read out at the same moment leave in each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ks4diff.products.chip import Amplifier


@dataclass(frozen=True, kw_only=True)
class CrosstalkConfig:
    """Which pixels hear which."""

    crosstalk_mirrored: bool = True  # left and right half are read out towards opposite sides (KMTNet)
    crosstalk_same_parity: bool = (
        True  # without a table: amplifiers 1, 3, 5, 7 hear each other, and 2, 4, 6, 8
    )
    crosstalk_shift_pix: int = 0  # the victim is read this many pixels later than its source; 1 seen by some
    crosstalk_mask: bool = True  # flag the victims of saturated pixels, whose signal is not known


def ghosts(
    signal: np.ndarray,
    amplifiers: Sequence[Amplifier],
    victim: int,
    matrix: np.ndarray,
    config: CrosstalkConfig,
) -> np.ndarray:
    """Return float32 [rows, width of the victim]: what the other amplifiers leave in one, counts.

    ``signal`` float32 [rows, columns of the chip] is free of bias; non-finite pixels leave nothing.
    ``matrix`` float [n, n] holds the coefficient of victim i and source j. The signal seen already holds
    ghosts itself: an error of the coefficient squared, some 1e-6.
    """
    target = amplifiers[victim]
    total = np.zeros((len(signal), target.x1 - target.x0), dtype=np.float32)
    for source in np.flatnonzero(matrix[victim]):
        if source == victim:
            continue
        here, there = heard_columns(amplifiers, int(source), victim, config)
        heard = signal[:, there]
        total[:, here] += np.float32(matrix[victim, source]) * np.where(np.isfinite(heard), heard, 0)
    return total


def heard_columns(
    amplifiers: Sequence[Amplifier], source: int, victim: int, config: CrosstalkConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return (columns within the victim, columns of the chip in the source) read out at the same moment.

    Amplifiers of the left half are read from their left end, those of the right half from their right end
    (shared facts: kmtnet.md section 7: same y, same parity, mirrored between amplifiers 1-4 and 5-8).
    """
    read = [_readout_order(amplifiers, k, config) for k in (source, victim)]
    shift = config.crosstalk_shift_pix
    step = np.arange(max(0, -shift), min(len(read[0]), len(read[1]) - shift))
    return read[1][step + shift] - amplifiers[victim].x0, read[0][step]


def saturated_victims(
    saturated: np.ndarray, amplifiers: Sequence[Amplifier], matrix: np.ndarray | None, config: CrosstalkConfig
) -> np.ndarray:
    """Return bool [y, x]: pixels that hear a saturated one; by the matrix, else all of the same parity."""
    victims = np.zeros_like(saturated)
    for source, amplifier in enumerate(amplifiers):
        part = saturated[:, amplifier.x0 : amplifier.x1]
        rows = np.flatnonzero(part.any(axis=1))
        if not len(rows):
            continue
        for victim, target in enumerate(amplifiers):
            if victim == source or not _hears(victim, source, matrix, config):
                continue
            here, there = heard_columns(amplifiers, source, victim, config)
            victims[rows[:, None], here + target.x0] |= saturated[rows[:, None], there]
    return victims


def _hears(victim: int, source: int, matrix: np.ndarray | None, config: CrosstalkConfig) -> bool:
    if matrix is not None:
        return bool(matrix[victim, source])
    return not config.crosstalk_same_parity or (victim - source) % 2 == 0


def _readout_order(amplifiers: Sequence[Amplifier], index: int, config: CrosstalkConfig) -> np.ndarray:
    """Return the amplifier's columns of the chip in the order in which they are read."""
    amplifier = amplifiers[index]
    columns = np.arange(amplifier.x0, amplifier.x1)
    right_half = index >= (len(amplifiers) + 1) // 2
    return columns[::-1] if config.crosstalk_mirrored and right_half else columns
