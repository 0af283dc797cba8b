"""Add point sources to an image from a table of finely sampled PSFs, exact in sub-pixel position."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

PHASES = 4  # table nodes per pixel: cubic interpolation errs by < 2e-4 of the peak at FWHM 2.1 px
WING = 8  # numbers per node that describe the light beyond the table; see `add_sources`


@jit
def _cubic(t):
    """Return the four Lagrange weights of the nodes -1, 0, 1, 2 at t in [0, 1)."""
    return (
        -t * (t - 1.0) * (t - 2.0) / 6.0,
        (t + 1.0) * (t - 1.0) * (t - 2.0) / 2.0,
        -(t + 1.0) * t * (t - 2.0) / 2.0,
        (t + 1.0) * t * (t - 1.0) / 6.0,
    )


@jit
def _blend(stamp, table, weight, start_y, start_x):
    """Add ``weight`` times the table [S, S, n, n], between its phases, to ``stamp`` [n - 2, n - 2]."""
    phases = table.shape[0]
    side = stamp.shape[0]
    base_y = int(np.floor(start_y))
    base_x = int(np.floor(start_x))
    wy = _cubic(start_y - base_y)
    wx = _cubic(start_x - base_x)
    for j in range(4):
        qy = base_y + j - 1
        py = qy % phases
        sy = qy // phases + 1
        for i in range(4):
            qx = base_x + i - 1
            px = qx % phases
            sx = qx // phases + 1
            w = np.float32(weight * wy[j] * wx[i])
            plane = table[py, px]
            for r in range(side):
                row = plane[r + sy, sx : sx + side]
                out = stamp[r]
                for c in range(side):
                    out[c] += w * row[c]


@jit
def _wing(wing, dx, dy):
    """Return the density per pixel at an offset: two elliptical Moffats (norm, alpha², beta), one shape."""
    r2 = wing[6] * dx * dx + 2.0 * wing[7] * dx * dy + (1.0 + wing[7] * wing[7]) / wing[6] * dy * dy
    return wing[0] * (1.0 + r2 / wing[1]) ** -wing[2] + wing[3] * (1.0 + r2 / wing[4]) ** -wing[5]


@jit
def _corner(position, origin, step, count):
    """Return (lower node, fraction to the next) of a position on a regular grid, held inside it."""
    t = (position - origin) / step
    low = min(max(int(np.floor(t)), 0), count - 2)
    return low, min(max(t - low, 0.0), 1.0)


@jit
def _draw(image, sources, table, grid, wings):
    rows, columns = image.shape
    nodes_y, nodes_x = table.shape[0], table.shape[1]
    phases = table.shape[2]
    side = table.shape[4] - 2
    core = side // 2
    stamp = np.empty((side, side), dtype=np.float32)
    wing = np.empty(wings.shape[2])
    for k in range(sources.shape[1]):
        x, y, flux, reach = sources[0, k], sources[1, k], sources[2, k], int(sources[3, k])
        ix, iy = int(np.rint(x)), int(np.rint(y))
        if ix + reach < 0 or iy + reach < 0 or ix - reach >= columns or iy - reach >= rows:
            continue
        ny, ty = _corner(y, grid[1], grid[3], nodes_y)
        nx, tx = _corner(x, grid[0], grid[2], nodes_x)
        stamp[:] = 0.0
        wing[:] = 0.0
        for b in range(2):
            for a in range(2):
                w = (ty if b else 1.0 - ty) * (tx if a else 1.0 - tx)
                if w == 0.0:
                    continue
                _blend(stamp, table[ny + b, nx + a], w * flux, (iy - y) * phases, (ix - x) * phases)
                wing += w * wings[ny + b, nx + a]
        for j in range(max(iy - reach, 0), min(iy + reach + 1, rows)):
            for i in range(max(ix - reach, 0), min(ix + reach + 1, columns)):
                dj, di = j - iy, i - ix
                if -core <= dj <= core and -core <= di <= core:
                    image[j, i] += stamp[dj + core, di + core]
                elif di * di + dj * dj <= reach * reach:
                    image[j, i] += np.float32(flux * _wing(wing, i - x, j - y))


def add_sources(
    image: np.ndarray, sources: np.ndarray, table: np.ndarray, grid: np.ndarray, wings: np.ndarray
) -> None:
    """Add point-like sources to ``image`` in place, in the order given.

    Parameters
    ----------
    image
        Float32 [y, x].
    sources
        Float64 [4, n]: x, y (0-based pixels of the image), flux, and how far in pixels light is drawn.
    table
        Float32 [nodes y, nodes x, S, S, n, n], n odd: the fraction of light in a pixel whose middle is at
        offset (c - n // 2 + px / S, r - n // 2 + py / S) from the source, stored as [py, px, r, c]. Between
        nodes bilinear, between phases cubic. The outermost pixels only serve interpolation.
    grid
        Float64 [4]: x and y of node (0, 0), and the step between nodes along x and y; at least 2x2 nodes.
    wings
        Float64 [nodes y, nodes x, 8]: beyond the table light follows (norm, alpha², beta) of two Moffats, at
        squared radius a x² + 2 b x y + (1 + b²) / a y², with a and b the last two numbers.

    """
    if table.shape[0] < 2 or table.shape[1] < 2 or table.shape[4] % 2 == 0 or wings.shape[2] != WING:
        raise ValueError(f"table {table.shape} or wings {wings.shape} have not the shape that is wanted")
    _draw(image, np.ascontiguousarray(sources, dtype=np.float64), table, grid, wings)


def phase_table(fine: np.ndarray, half: int) -> np.ndarray:
    """Return float32 [S, S, n, n], n = 2 ``half`` + 1, from samples every 1/S pixel around [M // 2, M // 2].

    ``fine`` [M, M], M odd and at least 2 S (half + 1) + 1; values are rounded to 2^-40 so that the last bits
    of another machine's FFT do not show.
    """
    middle = fine.shape[0] // 2
    n = 2 * half + 1
    start = middle - half * PHASES
    out = np.empty((PHASES, PHASES, n, n), dtype=np.float32)
    for py in range(PHASES):
        for px in range(PHASES):
            rows = slice(start + py, start + py + PHASES * n, PHASES)
            columns = slice(start + px, start + px + PHASES * n, PHASES)
            out[py, px] = np.rint(fine[rows, columns] * 2.0**40) / 2.0**40
    return out
