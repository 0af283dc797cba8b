"""Smooth maps over an image, as `ks4diff.products.cells` has them, applied to the pixels of a rectangle."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _row(image, corner, cells, y, out, at):
    """Return row y of the image and of ``out``, and of the map what lies above and below it, and between."""
    across, row, part = cells
    n = across.shape[1]
    own, to = image[corner[0] + y][corner[1] :], out[at[0] + y][at[1] : at[1] + n]
    return own[:n], to, across[row[y]], across[min(row[y] + 1, len(across) - 1)], part[y]


@jit
def _less(image, corner, steps, cells, out, at):
    boxes, values = steps
    top, left = corner
    for y in range(len(cells[1])):
        own, to, upper, lower, down = _row(image, corner, cells, y, out, at)
        for x in range(to.size):
            to[x] = own[x]
        for k in range(len(boxes)):
            x0, x1, y0, y1 = boxes[k]
            if y0 <= top + y < y1:
                level, factor = values[k]
                piece = to[max(x0 - left, 0) : max(min(x1 - left, to.size), 0)]
                for x in range(piece.size):
                    piece[x] = (piece[x] - level) / factor
        for x in range(to.size):
            to[x] -= (lower[x] - upper[x]) * down + upper[x]


@jit
def _times(image, corner, cells, out, at):
    for y in range(len(cells[1])):
        own, to, upper, lower, down = _row(image, corner, cells, y, out, at)
        for x in range(to.size):
            to[x] = ((lower[x] - upper[x]) * down + upper[x]) * own[x]


Map = tuple[np.ndarray, np.ndarray, np.ndarray]


def less_map(
    image: np.ndarray,
    corner: tuple[int, int],
    steps: tuple[np.ndarray, np.ndarray],
    cells: Map,
    out: np.ndarray,
    at: tuple[int, int],
) -> None:
    """Write (image - level) / factor - map into a rectangle of ``out``, all float32 [y, x], C-contiguous.

    The rectangle has its first pixel at ``corner`` (y, x) of ``image`` and ``at`` of ``out`` and is as large
    as ``cells`` say: the map `Cells.across` of its columns and `Cells.down` of its rows. ``steps`` are boxes
    int64 [n, 4] of x0, x1, y0, y1 in the image, and float32 [n, 2], level and factor of each; 0 and 1
    elsewhere.
    """
    _less(image, corner, steps, cells, out, at)


def times_map(
    image: np.ndarray, corner: tuple[int, int], cells: Map, out: np.ndarray, at: tuple[int, int]
) -> None:
    """Write map * image into a rectangle of ``out``; see `less_map`."""
    _times(image, corner, cells, out, at)
