"""Find peaks in a score image and refine them below the pixel."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.jit import jit
from ks4diff.numerics.pools import pool

REACH = 3  # px to either side that the top is sought with: an error of 0.002 px at FWHM 3 px
MOVE = 0.75  # px that a top may lie from its pixel: an elongated source's lies up to 0.7 away
_STRIP_ROWS = 512


def find_peaks(score: np.ndarray, usable: np.ndarray, threshold: float, radius: int) -> np.ndarray:
    """Return int64 [2, n], the pixels (x, y) where |score| peaks above ``threshold``, highest first.

    A peak is the largest of its own sign within ``radius`` px, the first in reading order among equals;
    pixels that are not usable (bool [y, x]) neither count nor hide their neighbours. ``score`` float [y, x].
    """
    offset = np.arange(-radius, radius + 1)
    disc = np.argwhere(offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2) - radius

    def work(top: int) -> np.ndarray:
        bottom, room = min(top + _STRIP_ROWS, len(score)), 1024
        while True:
            out = np.empty((room, 2), dtype=np.int64)
            n = _peaks(score, usable, (top, bottom), threshold, disc, out)
            if n <= room:
                return out[:n]
            room = n

    with pool() as threads:
        found = np.concatenate(
            [np.empty((0, 2), np.int64), *threads.map(work, range(0, len(score), _STRIP_ROWS))]
        )
    found = found.T
    height = score[found[1], found[0]]
    position = np.concatenate(
        [_first_of_equals(found[:, side], radius) for side in (height > 0, height < 0)], 1
    )
    order = np.lexsort((position[0], position[1], -np.abs(score[position[1], position[0]])))
    return position[:, order]


@jit
def _peaks(score, usable, rows, threshold, disc, out):
    """Write the peaks (x, y) of some rows in reading order; return how many there are, room or not."""
    height, width = score.shape
    n = 0
    for y in range(rows[0], rows[1]):
        for x in range(width):
            value = score[y, x]
            if not (value > threshold or value < -threshold) or not usable[y, x]:
                continue
            highest = True
            for k in range(disc.shape[0]):
                j, i = y + disc[k, 0], x + disc[k, 1]
                if j < 0 or i < 0 or j >= height or i >= width or not usable[j, i]:
                    continue
                if (value > 0 and score[j, i] > value) or (value < 0 and score[j, i] < value):
                    highest = False
                    break
            if highest:
                if n < out.shape[0]:
                    out[n, 0], out[n, 1] = x, y
                n += 1
    return n


def _first_of_equals(position: np.ndarray, radius: int) -> np.ndarray:
    """Return the peaks [2, n] without those within ``radius`` px of an earlier one, their equal."""
    kept = np.ones(position.shape[1], dtype=bool)
    if len(kept) > 1:
        for i, j in sorted(cKDTree(position.T).query_pairs(radius)):
            kept[j] &= not kept[i]
    return position[:, kept]


def refine_peaks(
    image: np.ndarray, position: np.ndarray, factor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (xy float64 [2, n], peak float64 [n]): the tops of the surfaces through each peak's neighbours.

    The surface is the polynomial of sixth order in x and y through the 7x7 pixels around each ``position``
    int64 [2, n] (x, y), where these are known, else the second-order one of central differences in the 3x3;
    the pixel itself loses up to 14 % of a peak of FWHM 3 px in the corner between four. Peaks on the border,
    beside a NaN, or with no top stay where they are. A move is held to `MOVE` along each axis. ``factor``
    [y, x] multiplies the image pixel by pixel.
    """
    at = np.ascontiguousarray(position, dtype=np.int64)
    out = np.empty((3, at.shape[1]))
    _refine(image, image if factor is None else factor, factor is not None, at, _powers(), out)
    return out[:2], out[2]


def _powers() -> np.ndarray:
    """Return float64 [7, 7]: row k the coefficients, lowest power first, of node k's Lagrange polynomial."""
    nodes = np.arange(-REACH, REACH + 1.0)
    return np.ascontiguousarray(np.linalg.inv(np.vander(nodes, increasing=True)).T)


@jit
def _refine(image, factor, scaled, position, powers, out):
    side = 2 * REACH + 1
    box = np.empty((side, side))
    weights = np.empty((2, 3, side))
    height, width = image.shape
    for n in range(position.shape[1]):
        x, y = position[0, n], position[1, n]
        whole = True
        for j in range(side):
            for i in range(side):
                yy, xx = y + j - REACH, x + i - REACH
                if yy < 0 or xx < 0 or yy >= height or xx >= width:
                    box[j, i] = np.nan
                else:
                    box[j, i] = image[yy, xx]
                    if scaled:
                        box[j, i] *= factor[yy, xx]
                whole = whole and np.isfinite(box[j, i])
        found, dx, dy, top = _paraboloid(box)
        if found and whole:
            fine, fx, fy, higher = _top(box, dx, dy, powers, weights)
            if fine:
                dx, dy, top = fx, fy, higher
        out[0, n], out[1, n], out[2, n] = x + dx, y + dy, top


@jit
def _paraboloid(box):
    """Return (whether there is a top, dx, dy, its height) from the middle 3x3 of a box."""
    m = REACH
    top = box[m, m]
    left, right, below, above = box[m, m - 1], box[m, m + 1], box[m - 1, m], box[m + 1, m]
    gx, gy = 0.5 * (right - left), 0.5 * (above - below)
    xx, yy = left + right - 2 * top, below + above - 2 * top
    # without it the top of a source of axis ratio 0.7 at 45 degrees is missed by 0.23 px
    xy = 0.25 * (box[m + 1, m + 1] - box[m + 1, m - 1] - box[m - 1, m + 1] + box[m - 1, m - 1])
    det = xx * yy - xy * xy
    if not (xx * top < 0 and yy * top < 0 and det > 0):
        return False, 0.0, 0.0, top
    dx = min(max((gy * xy - gx * yy) / det, -0.5), 0.5)
    dy = min(max((gx * xy - gy * xx) / det, -0.5), 0.5)
    return True, dx, dy, top + gx * dx + gy * dy + 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy


@jit
def _top(box, dx, dy, powers, weights):
    """Return (whether it is one, dx, dy, height) of the top of the sixth-order surface, by Newton's steps."""
    side = 2 * REACH + 1
    sign = 1.0 if box[REACH, REACH] > 0 else -1.0
    value = 0.0
    for _ in range(8):
        for axis in range(2):
            t = dx if axis == 0 else dy
            for k in range(side):
                v, d, dd = 0.0, 0.0, 0.0
                for p in range(side - 1, -1, -1):
                    dd = dd * t + 2 * d
                    d = d * t + v
                    v = v * t + powers[k, p]
                weights[axis, 0, k], weights[axis, 1, k], weights[axis, 2, k] = v, d, dd
        value, gx, gy, xx, yy, xy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(side):
            a, b, c = 0.0, 0.0, 0.0
            for i in range(side):
                a += weights[0, 0, i] * box[j, i]
                b += weights[0, 1, i] * box[j, i]
                c += weights[0, 2, i] * box[j, i]
            value += weights[1, 0, j] * a
            gx += weights[1, 0, j] * b
            xx += weights[1, 0, j] * c
            gy += weights[1, 1, j] * a
            xy += weights[1, 1, j] * b
            yy += weights[1, 2, j] * a
        det = xx * yy - xy * xy
        if not (xx * sign < 0 and yy * sign < 0 and det > 0):
            return False, 0.0, 0.0, 0.0
        step_x, step_y = (gy * xy - gx * yy) / det, (gx * xy - gy * xx) / det
        dx, dy = min(max(dx + step_x, -MOVE), MOVE), min(max(dy + step_y, -MOVE), MOVE)
        if abs(step_x) < 1e-6 and abs(step_y) < 1e-6:
            break
    return value * sign > 0, dx, dy, value
