"""What light through the PSF and charge along a track look like in pixels, at all places that are tried."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from ks4diff.numerics.jit import jit

PHASES = 4  # a parabola through gains a quarter of a pixel apart finds the top to 1 % of them
LENGTHS = (0.0, 0.5, 1.0, 2.0)  # of a moving source's streak in FWHM
ANGLES = 8
TRACK_LENGTHS = (0.7, 1.5, 2.5, 4.0, 6.5, 9.0)  # pixels; the mean path through 30 um of silicon is 4
TRACK_ANGLES = 12
SAMPLES_PIX = 0.05  # along a track


def light_table(psf: np.ndarray, fwhm: float, side: int) -> np.ndarray:
    """Return float32 [shapes, 4, 4, side + 4, side + 4]: sources in all positions modulo a pixel.

    ``psf`` [n, n], n odd. Shape 0 is the point, the others streaks of `LENGTHS` at `ANGLES` angles; phase
    (j, i) has its centre (i, j) / 4 px right of and above the middle pixel.
    """
    half = side // 2 + 2
    low = psf.shape[0] // 2 - half - 4
    wide = np.pad(psf, -low) if low < 0 else psf[low : psf.shape[0] - low, low : psf.shape[0] - low]
    n = wide.shape[0]
    steps = np.arange((n - 1) * PHASES + 1) / PHASES
    fine = ndimage.map_coordinates(wide.astype(np.float64), np.meshgrid(steps, steps, indexing="ij"), order=3)
    middle = (n // 2) * PHASES
    shifts = [np.zeros((1, 2), dtype=int)]
    for length in LENGTHS[1:]:
        for angle in np.arange(ANGLES) * np.pi / ANGLES:
            along = np.linspace(-0.5, 0.5, 9) * min(length * fwhm, 6.0)  # the fine grid reaches 4 px beyond
            line = np.stack([along * np.sin(angle), along * np.cos(angle)], axis=1)
            shifts.append(np.rint(line * PHASES).astype(int))
    out = np.zeros((len(shifts), PHASES, PHASES, 2 * half + 1, 2 * half + 1), dtype=np.float32)
    for k, shift in enumerate(shifts):
        _add_shifted(fine, np.ascontiguousarray(shift, dtype=np.int64), middle, out[k])
        out[k] /= len(shift)
    return out


@jit
def _add_shifted(fine, shift, middle, out):
    """Add samples of a finely sampled PSF, moved by whole samples, in all phases (j, i) of ``out``."""
    half = out.shape[2] // 2
    for j in range(PHASES):
        for i in range(PHASES):
            for m in range(shift.shape[0]):
                for y in range(out.shape[2]):
                    row = (y - half) * PHASES + middle - j - shift[m, 0]
                    for x in range(out.shape[3]):
                        out[j, i, y, x] += fine[row, (x - half) * PHASES + middle - i - shift[m, 1]]


@cache
def track_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dy, dx int64 [n, m], charge float64 [n, m]) of straight tracks: m pixels each, 0 charge unused.

    All lengths, angles and half-pixel phases; a pixel's charge is the length of the track in it.
    """
    rows = []
    for length in TRACK_LENGTHS:
        along = np.arange(-length / 2 + SAMPLES_PIX / 2, length / 2, SAMPLES_PIX)
        for angle in np.arange(TRACK_ANGLES) * np.pi / TRACK_ANGLES:
            for y in (0.0, 0.5):
                for x in (0.0, 0.5):
                    cells = np.rint(np.stack([y + along * np.sin(angle), x + along * np.cos(angle)]))
                    rows.append(np.unique(cells.astype(np.int64), axis=1, return_counts=True))
    most = max(len(count) for _, count in rows)
    place, charge = np.zeros((2, len(rows), most), dtype=np.int64), np.zeros((len(rows), most))
    for k, (cells, count) in enumerate(rows):
        place[:, k, : len(count)], charge[k, : len(count)] = cells, count * SAMPLES_PIX
    return place[0], place[1], charge
