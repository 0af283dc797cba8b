"""An even streak through the PSF that a candidate could be: something that moves during the exposure.

Its likelihood is read from the score, as in `point_pair`: a streak explains the chi² m² / q / e², where m is
the mean of the flux image along it and q the mean over all its pairs of points of the PSF's autocorrelation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.point_pair import MARGIN, fitted

ANGLES = 16  # that are tried, before the best is turned
REACH = 30  # px from the peak that a streak may end at
LEAST_GAIN = 4.0  # of chi²: a streak that explains less is not refined
GAP = 0.1  # of the peak: a streak ends where the flux falls below; beyond lies another source


class Streak(NamedTuple):
    """An even streak [n]: its length in pixels, angle in radians, chi² explained beyond one point."""

    length: np.ndarray
    angle: np.ndarray
    gain: np.ndarray


def fit_streaks(flux: np.ndarray, error: np.ndarray, at: np.ndarray, alike: np.ndarray) -> Streak:
    """Return the best even streak through the peak of each box, its ends within `REACH` px.

    Arguments as of `point_pair.fit_pairs`, boxes of ``2 (REACH + MARGIN) + 1`` px.
    """
    side = 2 * (REACH + MARGIN) + 1
    if flux.shape[1:] != (side, side):
        raise ValueError(f"boxes of {side} px are wanted, got {flux.shape[1:]}")
    out = np.zeros((3, len(flux)))
    norms = np.ones((ANGLES + 1, 2 * REACH + 1))
    _norms(fitted(alike, 2 * (2 * REACH + MARGIN) + 1), norms)
    _streaks(flux, np.asarray(error, dtype=np.float64), np.asarray(at, dtype=np.float64), norms, out)
    return Streak(*out)


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
def _norms(alike, out):
    """Write the squared norm of a streak, by angle and whole length, into ``out`` [angles + 1, lengths]."""
    fine = 4
    middle = alike.shape[0] // 2
    for k in range(out.shape[0]):
        c, s = np.cos(k * np.pi / ANGLES), np.sin(k * np.pi / ANGLES)
        plain, times, before = 0.0, 0.0, 1.0
        # the mean of r(t - t') over a length L is 2 / L² times the integral of (L - u) r(u)
        for n in range(1, (out.shape[1] - 1) * fine + 1):
            u = n / fine
            here = _read(alike, middle + u * c, middle + u * s)
            plain += 0.5 * (before + here) / fine
            times += 0.5 * (before * (u - 1 / fine) + here * u) / fine
            before = here
            if n % fine == 0:
                out[k, n // fine] = 2 * (u * plain - times) / (u * u)


@jit
def _norm(norms, angle, length):
    """Return the squared norm of a streak, between the angles and lengths of the table."""
    k = (angle / np.pi - np.floor(angle / np.pi)) * ANGLES
    low, m = min(int(k), ANGLES - 1), min(int(length), norms.shape[1] - 2)
    t, u = k - low, length - m
    near = norms[low, m] * (1 - u) + norms[low, m + 1] * u
    far = norms[low + 1, m] * (1 - u) + norms[low + 1, m + 1] * u
    return near * (1 - t) + far * t


@jit
def _along(box, norms, x1, y1, x2, y2):
    """Return the gain of the streak between two places, from the middle of the box."""
    half = box.shape[0] // 2
    length = np.hypot(x2 - x1, y2 - y1)
    n = max(int(2 * length), 2)
    total = 0.0
    for k in range(n + 1):
        t = k / n
        weight = 0.5 if k == 0 or k == n else 1.0
        total += weight * _read(box, half + x1 + t * (x2 - x1), half + y1 + t * (y2 - y1))
    return (total / n) ** 2 / _norm(norms, np.arctan2(y2 - y1, x2 - x1), length)


@jit
def _coarse(box, norms, at, ends):
    """Set ``ends`` (x1, y1, x2, y2) of the best streak through ``at`` by angle and whole lengths."""
    half = box.shape[0] // 2
    peak = _read(box, half + at[0], half + at[1])
    best = peak * peak
    arms = np.zeros((2, REACH + 1))
    ends[0], ends[1], ends[2], ends[3] = at[0], at[1], at[0], at[1]
    for k in range(ANGLES):
        c, s = np.cos(k * np.pi / ANGLES), np.sin(k * np.pi / ANGLES)
        reach = np.zeros(2, dtype=np.int64)
        for arm in range(2):
            sign = 1.0 if arm else -1.0
            before = peak
            for m in range(1, REACH + 1):
                here = _read(box, half + at[0] + sign * m * c, half + at[1] + sign * m * s)
                arms[arm, m] = arms[arm, m - 1] + 0.5 * (before + here)
                before = here
                if here * peak < GAP * peak * peak:
                    break
                reach[arm] = m
        for a in range(reach[0] + 1):
            for b in range(reach[1] + 1):
                if a + b == 0:
                    continue
                mean = (arms[0, a] + arms[1, b]) / (a + b)
                gain = mean * mean / norms[k, a + b]
                if gain > best:
                    best = gain
                    ends[0], ends[1] = at[0] - a * c, at[1] - a * s
                    ends[2], ends[3] = at[0] + b * c, at[1] + b * s
    return best, peak * peak


@jit
def _stretched(box, norms, ends, best):
    """Move the ends of a streak while the gain grows; return the gain."""
    trial = np.empty(4)
    step = 0.5
    while step > 0.05:
        moved = False
        for move in range(8):
            for k in range(4):
                trial[k] = ends[k]
            trial[move // 2] += step if move % 2 else -step
            inside = True
            for k in range(4):
                inside = inside and abs(trial[k]) <= REACH
            gain = _along(box, norms, trial[0], trial[1], trial[2], trial[3]) if inside else 0.0
            if gain > best * (1 + 1e-9):
                best, moved = gain, True
                for k in range(4):
                    ends[k] = trial[k]
        if not moved:
            step *= 0.5
    return best


@jit
def _streaks(flux, error, places, norms, out):
    ends = np.zeros(4)
    for n in range(flux.shape[0]):
        best, point = _coarse(flux[n], norms, places[:, n], ends)
        if best - point > LEAST_GAIN * error[n] ** 2:
            best = _stretched(flux[n], norms, ends, best)
        out[0, n] = np.hypot(ends[2] - ends[0], ends[3] - ends[1])
        out[1, n] = np.arctan2(ends[3] - ends[1], ends[2] - ends[0]) % np.pi if out[0, n] > 0 else 0.0
        out[2, n] = (best - point) / error[n] ** 2
