"""What a CCD does to charge: bleeding columns, cosmic-ray tracks."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _bleed(charge, full, step):
    rows, columns = charge.shape
    for c in range(columns):
        carried = 0.0
        for k in range(rows):
            r = k if step > 0 else rows - 1 - k
            held = charge[r, c] + carried
            if held > full[c]:
                carried = held - full[c]
                charge[r, c] = full[c]
            else:
                if carried > 0.0:
                    charge[r, c] = held
                carried = 0.0


def bleed(charge: np.ndarray, full: np.ndarray, upwards: bool) -> None:
    """Spill what exceeds the full well along the column, in place, to higher rows or to lower ones.

    ``charge`` float32 [y, x] and ``full`` float64 [x], electrons. Charge is conserved but for what leaves the
    chip.
    """
    _bleed(charge, full, 1 if upwards else -1)


@jit
def _tracks(image, tracks, mark):
    rows, columns = image.shape
    for k in range(tracks.shape[1]):
        x, y = tracks[0, k], tracks[1, k]
        dx, dy = tracks[2, k], tracks[3, k]
        length = max(np.hypot(dx, dy), 1e-9)
        steps = int(np.ceil(4.0 * length)) + 1
        share = tracks[4, k] * max(length, 1.0) / steps
        for s in range(steps):
            t = (s + 0.5) / steps
            # multiple scattering bends slow electrons' tracks
            bow = tracks[5, k] * t * (1.0 - t)
            px = x + t * dx - bow * dy / length
            py = y + t * dy + bow * dx / length
            i0, j0 = int(np.floor(px)), int(np.floor(py))
            fx, fy = px - i0, py - j0
            # charge diffuses little: most stays in the pixel it was freed in
            fx = min(max((fx - 0.5) * 4.0 + 0.5, 0.0), 1.0)
            fy = min(max((fy - 0.5) * 4.0 + 0.5, 0.0), 1.0)
            for b in range(2):
                for a in range(2):
                    i, j = i0 + a, j0 + b
                    w = (fx if a else 1.0 - fx) * (fy if b else 1.0 - fy)
                    if w > 0.0 and 0 <= i < columns and 0 <= j < rows:
                        image[j, i] += np.float32(w * share)
                        mark[j, i] = True


def add_tracks(image: np.ndarray, tracks: np.ndarray, mark: np.ndarray) -> None:
    """Add the charge of particle tracks to ``image`` in place, and set ``mark`` where it falls.

    Parameters
    ----------
    image
        Float32 [y, x], electrons.
    tracks
        Float64 [6, n]: start x and y, extent along x and y, electrons per pixel of length, and bow: four
        times the pixels by which the middle lies off the straight line.
    mark
        Bool [y, x].

    """
    _tracks(image, np.ascontiguousarray(tracks, dtype=np.float64), mark)


@jit
def _bilinear(image, bad, nodes, step, out):
    height, width = image.shape
    rows, columns = out.shape
    for r in range(rows):
        jy = r // step
        ty = (r - jy * step) / step
        for c in range(columns):
            jx = c // step
            tx = (c - jx * step) / step
            x = (1 - ty) * ((1 - tx) * nodes[0, jy, jx] + tx * nodes[0, jy, jx + 1]) + ty * (
                (1 - tx) * nodes[0, jy + 1, jx] + tx * nodes[0, jy + 1, jx + 1]
            )
            y = (1 - ty) * ((1 - tx) * nodes[1, jy, jx] + tx * nodes[1, jy, jx + 1]) + ty * (
                (1 - tx) * nodes[1, jy + 1, jx] + tx * nodes[1, jy + 1, jx + 1]
            )
            if not (0 <= x < width - 1 and 0 <= y < height - 1):
                out[r, c] = np.nan
                continue
            i, j = int(x), int(y)
            if bad[j, i] or bad[j, i + 1] or bad[j + 1, i] or bad[j + 1, i + 1]:
                out[r, c] = np.nan
                continue
            fx, fy = x - i, y - j
            out[r, c] = (1 - fy) * ((1 - fx) * image[j, i] + fx * image[j, i + 1]) + fy * (
                (1 - fx) * image[j + 1, i] + fx * image[j + 1, i + 1]
            )


def resample_bilinear(
    image: np.ndarray, bad: np.ndarray, nodes: np.ndarray, step: int, shape: tuple[int, int]
) -> np.ndarray:
    """Return float32 [y, x] of ``shape``: the image where another grid's pixels fall, bilinear.

    ``image`` float32, ``bad`` bool [y, x]; ``nodes`` float64 [2, rows, columns] the input (x, y) at output
    pixels (``step`` * column, ``step`` * row). NaN outside the input and where one of the four pixels is
    bad. Surface brightness is conserved.
    """
    out = np.empty(shape, dtype=np.float32)
    _bilinear(image, bad, nodes, step, out)
    return out
