"""Two points of opposite sign that a candidate could be: what a star leaves that has moved.

The difference is white, so that the score alone holds all likelihoods: a model that is the PSF at places x_k
with weights w_k explains the chi² (sum w_k F(x_k))² / (sum w_j w_k r(x_j - x_k)) / e², where F is the flux
image S / F_S, e its error, and r the autocorrelation of the PSF, 1 in the middle. Nothing is convolved.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from ks4diff.numerics.jit import jit

MARGIN = 6  # px beyond the reach that reading between pixels needs
CLOSEST = 0.5  # px between two points: nearer ones are told apart by no noise
STRAY = 3.0  # px that the first point may move from the middle


class PointPair(NamedTuple):
    """Two points of opposite sign [n]: their fluxes, places in pixels, and chi² explained beyond one point.

    All 0 where no second point of the other sign helps.
    """

    positive: np.ndarray
    negative: np.ndarray
    separation: np.ndarray
    angle: np.ndarray  # radians, from the negative to the positive one
    gain: np.ndarray


def autocorrelation(psf: np.ndarray) -> np.ndarray:
    """Return float64 [2 m - 1, 2 m - 1]: the autocorrelation of a stamp [m, m], 1 in the middle."""
    n = 2 * psf.shape[0] - 1
    hat = fft.rfft2(np.asarray(psf, dtype=np.float64), (n + 1, n + 1))
    square = fft.irfft2(np.abs(hat) ** 2, (n + 1, n + 1))
    square = np.roll(square, (n // 2, n // 2), axis=(0, 1))[:n, :n]
    return np.ascontiguousarray(square / square[n // 2, n // 2])


def fit_pairs(flux: np.ndarray, error: np.ndarray, at: np.ndarray, alike: np.ndarray) -> PointPair:
    """Return the best two points of opposite sign, one of them near the middle of each box.

    Parameters
    ----------
    flux
        Float [n, side, side], side odd: the flux image S / F_S around each candidate, 0 where unknown.
    error
        Float [n]: the standard error of the flux there, > 0.
    at
        Float [2, n]: where (x, y) the candidate peaks, from the middle pixel.
    alike
        Of `autocorrelation`. The second point lies within ``side // 2 - MARGIN`` px of the first; places are
        free, to a sixteenth of a pixel.

    """
    out = np.zeros((5, len(flux)))
    half = flux.shape[1] // 2
    _pairs(flux, _f8(error), _f8(at), fitted(alike, 2 * half + 1), _moves(), out)
    return PointPair(*out)


def _moves() -> np.ndarray:
    """Return float64 [16, 4]: steps of the first point, of the second, of both alike and of both apart."""
    steps = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    none = np.zeros_like(steps)
    kinds = [(steps, none), (none, steps), (steps, steps), (steps, -steps)]
    return np.concatenate([np.concatenate(kind, axis=1) for kind in kinds])


def _f8(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float64)


def fitted(alike: np.ndarray, side: int) -> np.ndarray:
    """Return the middle [side, side] of an autocorrelation, 0 beyond it."""
    more = (side - alike.shape[0]) // 2
    if more > 0:
        return np.pad(alike, more)
    return np.ascontiguousarray(alike[-more : alike.shape[0] + more, -more : alike.shape[0] + more])


@jit
def _lagrange(t):
    """Return the weights of the nodes -2 ... 3 of Lagrange's polynomial at t in [0, 1)."""
    return (
        -(t + 1) * t * (t - 1) * (t - 2) * (t - 3) / 120.0,
        (t + 2) * t * (t - 1) * (t - 2) * (t - 3) / 24.0,
        -(t + 2) * (t + 1) * (t - 1) * (t - 2) * (t - 3) / 12.0,
        (t + 2) * (t + 1) * t * (t - 2) * (t - 3) / 12.0,
        -(t + 2) * (t + 1) * t * (t - 1) * (t - 3) / 24.0,
        (t + 2) * (t + 1) * t * (t - 1) * (t - 2) / 120.0,
    )


@jit
def _read(grid, x, y):
    """Return the grid at (x, y), by Lagrange's polynomial through the nearest 6x6; 0 beyond it."""
    i0, j0 = int(np.floor(x)) - 2, int(np.floor(y)) - 2
    if i0 < 0 or j0 < 0 or i0 + 6 > grid.shape[1] or j0 + 6 > grid.shape[0]:
        return 0.0
    along, down = _lagrange(x - i0 - 2), _lagrange(y - j0 - 2)
    total = 0.0
    for j in range(6):
        row = grid[j0 + j]
        part = along[0] * row[i0] + along[1] * row[i0 + 1] + along[2] * row[i0 + 2]
        part += along[3] * row[i0 + 3] + along[4] * row[i0 + 4] + along[5] * row[i0 + 5]
        total += down[j] * part
    return total


@jit
def _pair(box, alike, at):
    """Return (gain, fluxes of both points) at places (x1, y1, x2, y2) from the middle; 0 of equal signs."""
    half, middle = box.shape[0] // 2, alike.shape[0] // 2
    if (at[0] - at[2]) ** 2 + (at[1] - at[3]) ** 2 < CLOSEST * CLOSEST:
        return 0.0, 0.0, 0.0
    one = _read(box, half + at[0], half + at[1])
    two = _read(box, half + at[2], half + at[3])
    r = _read(alike, middle + at[2] - at[0], middle + at[3] - at[1])
    det = 1 - r * r
    if det < 1e-6:
        return 0.0, 0.0, 0.0
    a, b = (one - r * two) / det, (two - r * one) / det
    if a * b >= 0:
        return 0.0, 0.0, 0.0
    return a * one + b * two, a, b


@jit
def _start(box, alike, reach, at):
    """Set the places to the middle and the best whole pixel for the other point; return the gain there."""
    best = 0.0
    half = int(reach)
    x2, y2 = 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if 0 < i * i + j * j <= reach * reach:
                at[2], at[3] = i, j
                gain, _, _ = _pair(box, alike, at)
                if gain > best:
                    best, x2, y2 = gain, i, j
    at[2], at[3] = x2, y2
    return best


@jit
def _improved(box, alike, at, reach, best, moves):
    """Move the places while the gain grows, down to a sixteenth of a pixel; return the gain."""
    trial = np.empty(4)
    step = 0.5
    while step > 0.05:
        moved = False
        for move in range(moves.shape[0]):
            for k in range(4):
                trial[k] = at[k] + step * moves[move, k]
            far = (trial[0] - trial[2]) ** 2 + (trial[1] - trial[3]) ** 2 > reach * reach
            if far or abs(trial[0]) > STRAY or abs(trial[1]) > STRAY:
                continue
            gain, _, _ = _pair(box, alike, trial)
            if gain > best * (1 + 1e-9):
                best, moved = gain, True
                for k in range(4):
                    at[k] = trial[k]
        if not moved:
            step *= 0.5
    return best


@jit
def _pairs(flux, error, places, alike, moves, out):
    at = np.zeros(4)
    reach = flux.shape[1] // 2 - MARGIN
    for n in range(flux.shape[0]):
        box = flux[n]
        at[0], at[1] = places[0, n], places[1, n]
        one = _read(box, box.shape[0] // 2 + at[0], box.shape[0] // 2 + at[1])
        best = _start(box, alike, reach, at)
        if best <= 0:
            continue
        best = _improved(box, alike, at, reach, best, moves)
        _, a, b = _pair(box, alike, at)
        dx, dy = at[0] - at[2], at[1] - at[3]
        if a < 0:
            dx, dy = -dx, -dy
        out[0, n], out[1, n] = max(a, b), min(a, b)
        out[2, n], out[3, n] = np.hypot(dx, dy), np.arctan2(dy, dx)
        out[4, n] = max(best - one * one, 0.0) / error[n] ** 2
