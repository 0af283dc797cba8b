"""Saturated pixels and the charge that ran from them along the column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True, kw_only=True)
class BleedConfig:
    """Where a pixel is full, and how far its charge is followed."""

    saturation_adu: float = (
        60000.0  # as the file counts, bias included, where the header tells nothing better
    )
    bleed_least_pix: int = 3  # saturated pixels on top of each other: fewer are cosmic rays and hot pixels
    bleed_sigma: float = 4.0  # excess over the surroundings that still is bleed, of the smoothed column
    bleed_smooth_rows: int = 5  # the excess is averaged over these
    bleed_patience_rows: int = 10  # so many rows without excess end the trail
    bleed_halo_rows: int = 200  # so far the halo on the other side is compared; beyond stand other stars
    bleed_side_pix: tuple[int, ...] = (4, 14)  # the surroundings lie this far to the left and right

    def __post_init__(self) -> None:
        """Refuse surroundings that do not lie aside."""
        if len(self.bleed_side_pix) != 2 or not 0 < self.bleed_side_pix[0] < self.bleed_side_pix[1]:
            raise ValueError(f"bleed_side_pix must be two growing distances, got {self.bleed_side_pix}")


# Shared facts: kmtnet.md section 7: downwards on K and N, upwards on M and T; other chips: both ways.
DIRECTIONS = {"K": (-1,), "N": (-1,), "M": (1,), "T": (1,)}


def bleed_trails(data: np.ndarray, saturated: np.ndarray, chip: str, config: BleedConfig) -> np.ndarray:
    """Return bool [y, x]: the trails, from each saturated patch along its columns until they return to sky.

    A column still bleeds where it exceeds its surroundings, which are the columns to the left and right and,
    where the direction is known, the mirror image beyond the star: a halo is symmetric, a trail is not.

    ``data`` float [y, x] counts, the sky still in it or not; ``saturated`` bool [y, x].
    """
    trails = np.zeros(data.shape, dtype=bool)
    directions = DIRECTIONS.get(chip, (1, -1))
    for box, patch in patches(*np.nonzero(saturated)):
        if patch.sum(axis=0).max() < config.bleed_least_pix:
            continue
        for direction in directions:
            _follow(trails, data, (box, patch), direction, mirror=len(directions) == 1, config=config)
    rows, columns = np.nonzero(trails)
    # the neighbours of a full column hold some of its charge
    trails[rows, np.maximum(columns - 1, 0)] = True
    trails[rows, np.minimum(columns + 1, trails.shape[1] - 1)] = True
    return trails


def patches(y: np.ndarray, x: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yield (box, bool image of the box) of each patch of pixels joined along sides or corners.

    ``y``, ``x`` int [n]: the pixels, row by row. Few are full: `scipy.ndimage.label` looks at all of an
    image, for 2 s of a chip.
    """
    wide = int(x.max(initial=0)) + 3  # a margin, lest a row's last pixel touch the next row's first
    place = y * wide + x
    steps = np.array([1, wide - 1, wide, wide + 1])
    at = np.searchsorted(place, place[:, None] + steps)
    met = np.append(place, -1)[at] == place[:, None] + steps
    one, step = np.nonzero(met)
    joined = coo_array((np.ones(len(one), dtype=bool), (one, at[one, step])), shape=(len(place), len(place)))
    n, label = connected_components(joined, directed=False)
    order = np.argsort(label, kind="stable")
    for rows in np.split(order, np.searchsorted(label[order], np.arange(1, n))) if n else ():
        low, high = (y[rows].min(), x[rows].min()), (y[rows].max() + 1, x[rows].max() + 1)
        patch = np.zeros((high[0] - low[0], high[1] - low[1]), dtype=bool)
        patch[y[rows] - low[0], x[rows] - low[1]] = True
        yield (slice(low[0], high[0]), slice(low[1], high[1])), patch


def _follow(trails, data, component, direction, *, mirror, config) -> None:
    """Mark the trail of one saturated patch (its box and bool image) in ``trails``, in place."""
    (rows, columns), patch = component
    height, width = data.shape
    centre = rows.start + int(np.argmax(patch.sum(axis=1)))  # the widest row; a trail is narrow
    near, far = config.bleed_side_pix
    x0, x1 = columns.start, columns.stop
    sides = np.concatenate([np.arange(x0 - far, x0 - near + 1), np.arange(x1 - 1 + near, x1 + far)])
    sides = sides[(sides >= 0) & (sides < width)]
    start = rows.stop if direction > 0 else rows.start - 1
    active = patch.any(axis=0)
    chunk = 64  # most stars do not bleed; a long trail doubles it
    while active.any() and 0 <= start < height and len(sides):
        y = start + direction * np.arange(chunk)
        y = y[(y >= 0) & (y < height)]
        excess, spread = _excess(data, y, (x0, x1, sides), centre if mirror else None, config)
        above = excess > config.bleed_sigma * spread / np.sqrt(config.bleed_smooth_rows)
        for k in np.flatnonzero(active):
            end = _end_of_run(above[:, k], config.bleed_patience_rows)
            trails[y[:end], x0 + k] = True
            active[k] = end == len(y)
        start += direction * chunk
        chunk = min(chunk * 2, 4096)


def _excess(data, y, place, centre, config) -> tuple[np.ndarray, float]:
    """Return ([rows, columns] smoothed excess over the surroundings, noise of one pixel)."""
    x0, x1, sides = place
    around = data[y[:, None], sides]
    reference = np.median(around, axis=1)[:, None]
    smooth = config.bleed_smooth_rows
    if centre is not None:
        opposite = np.clip(2 * centre - y, 0, len(data) - 1)
        mirrored = ndimage.uniform_filter1d(data[opposite, x0:x1], smooth, axis=0, mode="nearest")
        inside = (opposite == 2 * centre - y) & (np.abs(y - centre) <= config.bleed_halo_rows)
        reference = np.where(inside[:, None], np.maximum(reference, mirrored), reference)
    spread = 1.4826 * float(np.median(np.abs(around - np.median(around, axis=1)[:, None])))
    excess = ndimage.uniform_filter1d(data[y, x0:x1] - reference, smooth, axis=0, mode="nearest")
    return excess, max(spread, 1e-6)


def _end_of_run(above: np.ndarray, patience: int) -> int:
    """Return how many rows belong to the trail: up to the last before ``patience`` rows without excess."""
    gap = 0
    last = 0
    for row, value in enumerate(above):
        if value:
            last, gap = row + 1, 0
        else:
            gap += 1
            if gap >= patience:
                return last
    return len(above)
