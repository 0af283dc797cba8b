"""Cut squares around places out of an image and its flags, in one pass."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


def cut(
    out: np.ndarray, data: np.ndarray, masks: tuple[np.ndarray, ...], at: np.ndarray, factor: float
) -> None:
    """Write the pixels around places, times ``factor``, into ``out`` float32 [n, side, side], side odd.

    ``data`` float32 [y, x]; ``masks`` one or two uint16 [y, x], NaN is written where any bit is raised and
    beyond the border. ``at`` [2, n]: (x, y), rounded to the nearest pixel.
    """
    place = np.ascontiguousarray(np.rint(at), dtype=np.int64)
    _cut(out, data, masks[0], masks[-1], place, np.float32(factor))


def products(first: np.ndarray, second: np.ndarray, at: np.ndarray, half: int) -> np.ndarray:
    """Return float32 [n, 2 half + 1, 2 half + 1]: one image times the other around places ``at`` [2, n].

    ``first`` and ``second`` float32 [y, x]; 0 beyond the border and where the product is not finite.
    """
    out = np.empty((at.shape[1], 2 * half + 1, 2 * half + 1), dtype=np.float32)
    _products(first, second, np.ascontiguousarray(np.rint(at), dtype=np.int64), out)
    return out


def outline(first: np.ndarray, first_bits: int, second: np.ndarray, second_bits: int) -> np.ndarray:
    """Return int64 [n, 2], (x, y): the pixels with a bit raised in either mask that border on one without.

    The masks are uint16 [y, x]; the image's border counts as one without.
    """
    room = 4096
    while True:
        out = np.empty((room, 2), dtype=np.int64)
        n = _outline(first, np.uint16(first_bits), second, np.uint16(second_bits), out)
        if n <= room:
            return out[:n]
        room = n


@jit
def _cut(out, data, first, second, place, factor):
    side = out.shape[1]
    half = side // 2
    height, width = data.shape
    for n in range(out.shape[0]):
        x, y = place[0, n] - half, place[1, n] - half
        for j in range(side):
            for i in range(side):
                yy, xx = y + j, x + i
                inside = 0 <= yy < height and 0 <= xx < width
                if inside and first[yy, xx] == 0 and second[yy, xx] == 0:
                    out[n, j, i] = data[yy, xx] * factor
                else:
                    out[n, j, i] = np.nan


@jit
def _products(first, second, place, out):
    side = out.shape[1]
    half = side // 2
    height, width = first.shape
    for n in range(out.shape[0]):
        x, y = place[0, n] - half, place[1, n] - half
        for j in range(side):
            for i in range(side):
                yy, xx = y + j, x + i
                out[n, j, i] = 0
                if 0 <= yy < height and 0 <= xx < width:
                    value = first[yy, xx] * second[yy, xx]
                    if np.isfinite(value):
                        out[n, j, i] = value


@jit
def _outline(first, first_bits, second, second_bits, out):
    height, width = first.shape
    n = 0
    for y in range(height):
        for x in range(width):
            if (first[y, x] & first_bits) == 0 and (second[y, x] & second_bits) == 0:
                continue
            inner = 0 < y < height - 1 and 0 < x < width - 1
            for k in range(4):
                if not inner:
                    break
                j, i = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
                inner = (first[j, i] & first_bits) != 0 or (second[j, i] & second_bits) != 0
            if not inner:
                if n < out.shape[0]:
                    out[n, 0], out[n, 1] = x, y
                n += 1
    return n
