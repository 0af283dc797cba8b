"""Mean differences of two images over boxes, sources masked and outliers clipped."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

SAMPLE = 600  # values whose median starts the clipping: good to 5 % of their spread


@jit
def paint_discs(mask, x, y, radius):
    """Raise ``mask`` (bool [y, x]), in place, within ``radius`` pixels of each (x, y); pixels of its own."""
    height, width = mask.shape
    for s in range(len(x)):
        r2 = radius[s] * radius[s]
        low = max(int(np.ceil(y[s] - radius[s])), 0)
        high = min(int(np.floor(y[s] + radius[s])), height - 1)
        for j in range(low, high + 1):
            across = np.sqrt(max(r2 - (j - y[s]) ** 2, 0.0))
            left = max(int(np.ceil(x[s] - across)), 0)
            right = min(int(np.floor(x[s] + across)), width - 1)
            for i in range(left, right + 1):
                mask[j, i] = True


@jit
def _free(science, template, masked, box, scale, values):
    """Fill ``values`` with the differences on free pixels of a box; return how many there are."""
    x0, x1, y0, y1, every = box
    n = 0
    for j in range(y0, y1, every):
        for i in range(x0, x1):
            if not masked[j, i]:
                values[n] = science[j, i] - scale * template[j, i]
                n += 1
    return n


@jit
def _clipped(values, middle, limit):
    """Return (mean, spread, count) of the values within ``limit`` of ``middle``."""
    total, square, kept = 0.0, 0.0, 0
    for k in range(len(values)):
        d = values[k] - middle
        if abs(d) <= limit:
            total += d
            square += d * d
            kept += 1
    if kept == 0:
        return middle, 0.0, 0
    mean = total / kept
    return middle + mean, np.sqrt(max(square / kept - mean * mean, 0.0)), kept


@jit
def _levels(science, template, masked, boxes, scale, clip, out):
    """Fill out [3, boxes] with the clipped mean of science - scale * template, its spread and its pixels."""
    most = 1
    for k in range(boxes.shape[0]):
        most = max(most, (boxes[k, 1] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 2]))
    room = np.empty(most)
    for k in range(boxes.shape[0]):
        box = (boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3], boxes[k, 4])
        n = _free(science, template, masked, box, scale[k], room)
        out[0, k], out[1, k], out[2, k] = np.nan, np.nan, n
        if n < 16:
            continue
        values = room[:n]
        picked = values[:: max(n // SAMPLE, 1)][:SAMPLE].copy()
        middle = np.median(picked)
        spread = 1.4826 * np.median(np.abs(picked - middle))
        kept = n
        for _ in range(3):
            middle, spread, kept = _clipped(values, middle, clip * spread)
        out[0, k], out[1, k], out[2, k] = middle, spread, kept


def levels(
    science: np.ndarray,
    template: np.ndarray,
    masked: np.ndarray,
    boxes: np.ndarray,
    scale: np.ndarray,
    *,
    every: int,
    clip: float = 3.5,
) -> np.ndarray:
    """Return float64 [3, k]: mean of science - scale * template over k boxes, spread of a pixel, pixels used.

    Pixels farther than ``clip`` spreads from the mean are left out in three turns, both signs alike. NaN
    where fewer than 16 pixels are free.

    Parameters
    ----------
    science, template
        Float32 [y, x].
    masked
        Bool [y, x]: pixels not to use.
    boxes
        int64 [k, 4] of x0, x1, y0, y1, within the images.
    scale
        Float64 [k].
    every
        Only each so manyth row is looked at.
    clip
        In spreads, above 2; at 3.5 a normal's spread comes out 0.3 % low.

    """
    out = np.empty((3, len(boxes)))
    stepped = np.concatenate([boxes, np.full((len(boxes), 1), every, dtype=boxes.dtype)], axis=1)
    _levels(science, template, masked, stepped, scale, clip, out)
    return out
