"""Levels of amplifiers from the steps at their common borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Measure = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class AmplifierLevelConfig:
    """How steps are measured."""

    strip_pix: int = 64  # beside a border, two on either side
    block_pix: int = 128  # along the border; their scatter is the error
    level_sigma: float = 4.0  # a step less significant is none


def amplifier_levels(
    measure: Measure, boxes: Sequence[tuple[int, int, int, int]], config: AmplifierLevelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return (level, error) of each amplifier, their mean 0, from the steps at the borders that they share.

    A step is that of strips beside the border, what they say of the slope across it taken out; one that is
    not significant is none. ``measure`` takes boxes [k, 5] of x0, x1, y0, y1, amplifier to their levels and
    errors [k], NaN where nothing can be measured; ``boxes`` are x0, x1, y0, y1. Errors are NaN where no
    border could be measured.
    """
    count = len(boxes)
    equations, steps, errors = [], [], []
    for a in range(count):
        for b in range(count):
            border = _border(boxes[a], boxes[b])
            if border is None:
                continue
            step, error = _step(measure, (a, b), border, config)
            if not np.isfinite(step):
                continue
            equations.append(np.eye(count)[b] - np.eye(count)[a])
            steps.append(step if abs(step) > config.level_sigma * error else 0.0)
            errors.append(error)
    if not equations:
        return np.zeros(count), np.full(count, np.nan)
    inverse = np.linalg.pinv(np.array(equations) / np.array(errors)[:, None])
    level = inverse @ (np.array(steps) / np.array(errors))
    return np.where(np.abs(level) > 1e-6, level, 0.0), np.sqrt((inverse**2).sum(axis=1))


def _border(first, second) -> tuple[bool, int, int, int] | None:
    """Return (whether it is a column, where, from, to) of the border that leads from one box to another."""
    x0, x1, y0, y1 = first
    u0, u1, v0, v1 = second
    if x1 == u0 and min(y1, v1) > max(y0, v0):
        return True, x1, max(y0, v0), min(y1, v1)
    if y1 == v0 and min(x1, u1) > max(x0, u0):
        return False, y1, max(x0, u0), min(x1, u1)
    return None


def _step(measure, pair, border, config) -> tuple[float, float]:
    """Return the step across a border, second amplifier less first, and its error from block to block."""
    column, at, start, stop = border
    width = config.strip_pix
    blocks = np.linspace(start, stop, max((stop - start) // config.block_pix, 4) + 1).astype(int)
    rows = []
    for low, high in zip(blocks[:-1].tolist(), blocks[1:].tolist(), strict=True):
        # far and near on the first, near and far on the second
        for k, offset in ((0, -2), (0, -1), (1, 0), (1, 1)):
            across = (at + offset * width, at + (offset + 1) * width)
            box = (*across, low, high) if column else (low, high, *across)
            rows.append((*box, pair[k]))
    level, error = measure(np.array(rows, dtype=np.int64))
    far, near, beyond, farther = level.reshape(-1, 4).T
    step = 1.5 * (beyond - near) - 0.5 * (farther - far)
    known = np.isfinite(step)
    if known.sum() < 3:
        return np.nan, np.nan
    noise = np.sqrt(2.25 + 0.25) * np.sqrt(2) * float(np.median(error[np.isfinite(error)]))
    middle = float(np.median(step[known]))
    spread = max(1.4826 * float(np.median(np.abs(step[known] - middle))), noise)
    return middle, 1.2533 * spread / float(np.sqrt(known.sum()))
