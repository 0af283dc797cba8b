"""Smooth an image by a Gaussian, any rectangle of it at a time."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

_WIDTH = 1024  # columns at a time: the rows that are added up then stay in the cache nearest to the processor


@jit
def _mirrored(k, n):
    """Return where pixel k of an axis of n pixels lies once reflected at its ends."""
    while k < 0 or k >= n:
        k = -k - 1 if k < 0 else 2 * n - 1 - k
    return k


@jit
def _set(out, weight, row):
    for i in range(len(out)):
        out[i] = weight * row[i]


@jit
def _add(out, weight, first, second):
    # slices that start at 0: an index with an offset could be negative, and nothing becomes vector code
    for i in range(len(out)):
        out[i] += weight * (first[i] + second[i])


@jit
def _smooth(image, weights, box, line, out):
    """Write the smoothed rectangle (y0, y1, x0, x1) into ``out``; ``line`` holds one row and its borders."""
    height, width = image.shape
    y0, y1, x0, x1 = box
    reach = len(weights) - 1
    low, high = max(x0 - reach, 0), min(x1 + reach, width)
    shift = reach - x0
    inside = line[low + shift : high + shift]
    n = x1 - x0
    for y in range(y0, y1):
        _set(inside, weights[0], image[y, low:high])
        for k in range(1, reach + 1):
            first, second = image[_mirrored(y - k, height)], image[_mirrored(y + k, height)]
            _add(inside, weights[k], first[low:high], second[low:high])
        for x in range(x0 - reach, low):
            line[x + shift] = line[_mirrored(x, width) + shift]
        for x in range(high, x1 + reach):
            line[x + shift] = line[_mirrored(x, width) + shift]
        row = out[y - y0]
        _set(row, weights[0], line[reach : reach + n])
        for k in range(1, reach + 1):
            _add(row, weights[k], line[reach - k : reach - k + n], line[reach + k : reach + k + n])


def gaussian_smooth(
    image: np.ndarray, sigma: float, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle of the image smoothed by a Gaussian of ``sigma`` px.

    Equal to that part of `scipy.ndimage.gaussian_filter`: cut at 4 sigma, reflected at the image's border.
    ``image`` float32 [y, x], C-contiguous; ``sigma`` >= 0, 0 gives a copy; slices without steps.
    """
    y0, y1, _ = rows.indices(image.shape[0])
    x0, x1, _ = columns.indices(image.shape[1])
    weights = gaussian_weights(sigma)
    out = np.empty((y1 - y0, x1 - x0), dtype=np.float32)
    line = np.zeros(min(x1 - x0, _WIDTH) + 2 * (len(weights) - 1), dtype=np.float32)
    for left in range(x0, x1, _WIDTH):
        right = min(left + _WIDTH, x1)
        _smooth(image, weights, (y0, y1, left, right), line, out[:, left - x0 : right - x0])
    return out


def gaussian_weights(sigma: float) -> np.ndarray:
    """Return float32 [n]: the kernel at 0, 1, ... px to one side; it sums to 1 over both."""
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return np.ones(1, dtype=np.float32)
    half = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return (half / (2 * half.sum() - half[0])).astype(np.float32)
