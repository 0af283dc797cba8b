"""What resampling by `ks4diff.numerics.lanczos` does to the noise of an image."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.taps import COORDINATE_STEP, STEPS, SUPPORT, tap_table

_PHASES = 64  # of a pixel, at which the noise is summed: it changes by 1e-3 between them
_MANY_NODES = 10_000  # so many sample the phases well enough without points in between


def noise_covariance(nodes: np.ndarray) -> np.ndarray:
    """Return the covariance that `resample` gives to white noise of unit variance, averaged over a map.

    Float64 [4 S - 1, 4 S - 1], S = `SUPPORT`, by lag (dy, dx) with lag 0 in the middle: the mean over the
    sampled positions of the product of the weights there and of those a lag away, which under a map that
    scales and turns is not a whole number of input pixels. It beats with the sub-pixel phase, once in 80 px
    for KMTNet on a KS4 tile: ask for each patch by the ``nodes`` over it, float64 [2, rows, columns] as for
    `resample`, two or more each way. The map's scale is taken as one all over them, and as 1 or above within
    some percent: else there are more lags. 2 ms for a patch of 512 px.
    """
    per_column = np.diff(nodes, axis=2).mean(axis=(1, 2)) / COORDINATE_STEP
    per_row = np.diff(nodes, axis=1).mean(axis=(1, 2)) / COORDINATE_STEP
    places = _quartered(nodes) if nodes[0].size < _MANY_NODES else nodes
    bins = np.rint(places * _PHASES).astype(np.int64).reshape(2, -1) % _PHASES
    share = np.bincount(bins[1] * _PHASES + bins[0], minlength=_PHASES**2) / bins.shape[1]
    half = 2 * SUPPORT - 1
    lag = np.arange(-half, half + 1)
    moved = per_column[:, None, None] * lag + per_row[:, None, None] * lag[half:, None]
    across, down = (_overlaps(m.ravel()) for m in moved)
    upper = ((down @ share.reshape(_PHASES, _PHASES)) * across).sum(axis=1).reshape(half + 1, 2 * half + 1)
    upper[0] = 0.5 * (upper[0] + upper[0, ::-1])
    return np.concatenate([upper[:0:-1, ::-1], upper])


def _overlaps(moved: np.ndarray) -> np.ndarray:
    """Return float64 [n, _PHASES]: the product of the weights of two samples ``moved`` [n] px apart.

    Summed over the pixels of both; the first sample is k / _PHASES px past a pixel.
    """
    taps = tap_table()
    place = np.arange(_PHASES) / _PHASES + moved[:, None]
    whole = np.floor(place)
    step = np.rint((place - whole) * STEPS).astype(np.int64)
    out = np.empty(place.shape)
    _sum_products(taps[:: STEPS // _PHASES], whole.astype(np.int64), taps, step, out)
    return out


@jit
def _sum_products(own, whole, taps, step, out):
    """Fill [n, p] with the product of the weights own[p] and taps[step[n, p]], moved by whole[n, p] px."""
    n_taps = taps.shape[1]
    for n in range(out.shape[0]):
        for p in range(out.shape[1]):
            moved = whole[n, p]
            total = 0.0
            for t in range(max(-moved, 0), min(n_taps, n_taps - moved)):
                total += own[p, t + moved] * taps[step[n, p], t]
            out[n, p] = total


def _quartered(nodes: np.ndarray) -> np.ndarray:
    """Return the map [2, 4 (rows - 1), 4 (columns - 1)] 2, 6, 10 ... px on: phases turn fast over 16 px."""
    for axis in (1, 2):
        first = nodes.take(range(nodes.shape[axis] - 1), axis=axis)
        step = np.diff(nodes, axis=axis) / 4
        nodes = np.concatenate([first + (k + 0.5) * step for k in range(4)], axis=axis)
    return nodes


def noise_variance(nodes: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Return the variance that samples at nodes have where a pixel of the input has 1.

    Float64 [rows, columns] for ``nodes`` [2, rows, columns]; ``correlation`` float64 [n, n], n odd, is that
    of the input's noise by lag (dy, dx), 1 in the middle.
    """
    taps = np.pad(tap_table()[:: STEPS // _PHASES][:_PHASES], ((0, 0), (2 * SUPPORT, 2 * SUPPORT)))
    half = min(len(correlation) // 2, 2 * SUPPORT - 1)
    middle = len(correlation) // 2
    near = correlation[middle - half : middle + half + 1, middle - half : middle + half + 1]
    pairs = np.stack([(taps * np.roll(taps, lag, axis=1)).sum(axis=1) for lag in range(-half, half + 1)])
    by_phase = pairs.T @ near @ pairs
    x, y = np.rint(nodes * _PHASES).astype(np.int64) % _PHASES
    return by_phase[y, x]
