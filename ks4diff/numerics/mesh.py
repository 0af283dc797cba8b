"""Levels and scatters of a sky with stars in it, cell by cell."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

_BINS = 1024  # over +-5 sigma: 0.01 sigma each, the median interpolated in its bin


@jit
def _clipped(values, n, histogram):
    """Return (mean, median, sigma) of values[:n] after clipping at 3 sigma about the median."""
    mean, sigma = _guess(values, n)
    if not sigma > 0:
        return mean, mean, 0.0
    bins = len(histogram)
    origin = mean - 5.0 * sigma
    step = 10.0 * sigma / bins
    histogram[:] = 0
    for i in range(n):
        place = (values[i] - origin) / step
        if 0 <= place < bins:
            histogram[int(place)] += 1
    first, last = 0, bins
    mean, median, spread = 0.5 * bins, 0.5 * bins, 0.0
    for _ in range(50):
        mean, median, spread = _between(histogram, first, last)
        lower = max(int(median - 3 * spread), 0)
        upper = min(int(median + 3 * spread) + 1, bins)
        if lower == first and upper == last:
            break
        first, last = lower, upper
    return origin + mean * step, origin + median * step, spread * step


@jit
def _guess(values, n):
    """Return (mean, sigma) of values[:n] after one clipping at 2 sigma about the mean."""
    low, high = -np.inf, np.inf
    mean, sigma = 0.0, 0.0
    for _ in range(2):
        total, square, count = 0.0, 0.0, 0
        for i in range(n):
            v = np.float64(values[i])
            if low <= v <= high:
                total += v - values[0]
                square += (v - values[0]) ** 2
                count += 1
        mean = total / count
        sigma = np.sqrt(max(square / count - mean**2, 0.0))
        mean += values[0]
        low, high = mean - 2 * sigma, mean + 2 * sigma
    return mean, sigma


@jit
def _between(histogram, first, last):
    """Return (mean, median, sigma) of bins [first, last), in bins."""
    total, square, count = 0.0, 0.0, 0
    for b in range(first, last):
        c = histogram[b]
        count += c
        total += c * (b + 0.5)
        square += c * (b + 0.5) ** 2
    middle = 0.5 * (first + last)
    if count == 0:
        return middle, middle, 0.0
    mean = total / count
    median = mean
    below = 0
    for b in range(first, last):
        if 2 * (below + histogram[b]) >= count:
            median = b + (0.5 * count - below) / histogram[b]
            break
        below += histogram[b]
    return mean, median, np.sqrt(max(square / count - mean**2, 1.0 / 12))


@jit
def _cell_row(image, used, rows, edges, values, histogram, found):
    """Write mean, median, scatter and number of used pixels of the cells of one row of cells."""
    for i in range(len(edges) - 1):
        n = 0
        for y in range(rows[0], rows[1]):
            for x in range(edges[i], edges[i + 1]):
                if used[y, x]:
                    values[n] = image[y, x]
                    n += 1
        found[3, i] = n
        if n > 0:
            found[0, i], found[1, i], found[2, i] = _clipped(values, n, histogram)


def mesh_levels(image: np.ndarray, used: np.ndarray, rows: tuple[int, int], edges: np.ndarray) -> np.ndarray:
    """Return float64 [4, n]: mean, median, sigma and number of the used pixels in a row of n cells.

    After clipping at 3 sigma about the median; sigma is that of the clipped values, 1.5 % below that of a
    Gaussian. A cell with no used pixel has 0 of everything.

    ``image`` float32 [y, x]; ``used`` bool [y, x]; ``rows`` (y0, y1) of the cells, ``edges`` int64 [n + 1]
    their borders along x.
    """
    found = np.zeros((4, len(edges) - 1))
    values = np.empty((rows[1] - rows[0]) * int(np.diff(edges).max()), dtype=np.float32)
    histogram = np.empty(_BINS, dtype=np.int64)
    _cell_row(image, used, rows, edges, values, histogram, found)
    return found


@jit
def _second_differences(above, here, below, out):
    """Write the second differences along both axes, scaled to the noise of a pixel, of all but the ends."""
    for i in range(len(out)):
        corners = above[i] + above[i + 2] + below[i] + below[i + 2]
        sides = above[i + 1] + below[i + 1] + here[i] + here[i + 2]
        out[i] = (corners - 2 * sides + 4 * here[i + 1]) / 6


@jit
def _all_used(above, here, below, three, out):
    """Write whether all nine pixels about each but the ends are used; ``three`` is room to work in."""
    for i in range(len(three)):
        three[i] = above[i] & here[i] & below[i]
    for i in range(len(out)):
        out[i] = three[i] & three[i + 1] & three[i + 2]


@jit
def _roughness(image, used, y0, y1, x0, x1, values):
    """Write the second differences along both axes of all 3x3 used pixels; return how many."""
    n = 0
    left, right = max(x0, 1) - 1, min(x1, image.shape[1] - 1) + 1
    wide = max(right - left - 2, 0)
    found = np.empty(wide, dtype=np.float32)
    three, whole = np.empty(wide + 2, dtype=np.bool_), np.empty(wide, dtype=np.bool_)
    for y in range(max(y0, 1), min(y1, image.shape[0] - 1) if wide > 0 else 0):
        part = slice(left, right)
        _second_differences(image[y - 1, part], image[y, part], image[y + 1, part], found)
        _all_used(used[y - 1, part], used[y, part], used[y + 1, part], three, whole)
        for i in range(wide):
            if whole[i]:
                values[n] = found[i]
                n += 1
    histogram = np.empty(1024, dtype=np.int64)
    return n, _clipped(values, n, histogram)[2] if n > 0 else 0.0


def pixel_noise(image: np.ndarray, used: np.ndarray, rows: slice, columns: slice) -> tuple[float, int]:
    """Return (sigma, number of places): the noise from pixel to pixel in a rectangle.

    The scatter of second differences along both axes, scaled to that of white noise (Immerkaer 1996, CVIU 64,
    300): a smooth level passes nothing, of starlight of FWHM 3 px less than 3 % of its variance. Noise
    correlated between neighbours comes out lower, by the same factor everywhere. ``image`` float32, ``used``
    bool [y, x].
    """
    values = np.empty((rows.stop - rows.start) * (columns.stop - columns.start), dtype=np.float32)
    n, sigma = _roughness(image, used, rows.start, rows.stop, columns.start, columns.stop, values)
    return float(sigma), int(n)


@jit
def _subtract(data, used, lines, before, part, rows):
    for y in range(rows[0], rows[1]):
        low, high = lines[before[y]], lines[min(before[y] + 1, len(lines) - 1)]
        p, to, by = part[y], data[y], used[y]
        for x in range(len(to)):
            to[x] = (to[x] - (low[x] + (high[x] - low[x]) * p)) * by[x]


def subtract_lines(
    data: np.ndarray,
    used: np.ndarray,
    lines: np.ndarray,
    place: tuple[np.ndarray, np.ndarray],
    rows: tuple[int, int],
) -> None:
    """Subtract from rows [y0, y1), in place, a map that is linear between ``lines``; 0 where not ``used``.

    ``data`` float32 [y, x]; ``used`` bool [y, x]; ``lines`` float32 [n, x]; ``place`` int64 [y], the line at
    or before each row, and float32 [y], the fraction of the way to the next one.
    """
    _subtract(data, used, lines, *place, rows)


@jit
def _classify(smooth, lines, before, part, limits, out):
    for y in range(len(smooth)):
        low, high = lines[before[y]], lines[min(before[y] + 1, len(lines) - 1)]
        p, by, to = part[y], smooth[y], out[y]
        for x in range(len(to)):
            v = by[x] / (low[x] + (high[x] - low[x]) * p)
            to[x] = np.uint8(v > limits[0]) + np.uint8(v > limits[1])


def classify(
    smooth: np.ndarray,
    lines: np.ndarray,
    place: tuple[np.ndarray, np.ndarray],
    limits: tuple[float, float],
    out: np.ndarray,
) -> None:
    """Write uint8 [y, x]: above how many of two limits the image lies, in units of a map between ``lines``.

    ``smooth`` float32 [y, x]; ``lines`` and ``place`` as of `subtract_lines`, of these rows.
    """
    _classify(smooth, lines, *place, np.array(limits, dtype=np.float32), out)
