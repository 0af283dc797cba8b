"""Lanczos resampling of an image and its mask onto another pixel grid."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

SUPPORT = 4  # 8x8 taps: a star errs by up to 1.4 % of its peak at FWHM 2.5 px, by 0.6 % at 3 px
COORDINATE_STEP = 16  # 54" of cubic distortion bend 5e-6 per px at a corner of KMTNet: 2e-4 px between nodes
FAINT, OUTSIDE = 1 << 14, 1 << 15  # flags of a sample beside those of its taps
STEPS = 4096  # positions are rounded to 1/4096 px: 7e-5 of the peak of a star of FWHM 2.5 px where steepest


def tap_table() -> np.ndarray:
    """Return float64 [STEPS + 1, 2 * SUPPORT]: the weights of the pixels around a sample, each row sum 1.

    Row k serves a sample k / STEPS past pixel p; its columns are the pixels p - SUPPORT + 1 .. p + SUPPORT.
    Kernels take the table as an argument: one file then holds the whole of each jitted call chain.
    """
    return _weights(np.arange(STEPS + 1) / STEPS, 0.0)


def _weights(past: np.ndarray, moved: np.ndarray | float) -> np.ndarray:
    """Return the weights [..., 2 * SUPPORT] of a sample ``moved`` px from one ``past`` px past pixel p.

    Of the pixels p - SUPPORT + 1 .. p + SUPPORT only; with those that it has beyond, they add up to 1.
    """
    taps = np.arange(2 * SUPPORT) - SUPPORT + 1
    place = past + moved
    own = _lanczos((place - np.floor(place))[..., None] - taps)
    return _lanczos(place[..., None] - taps) / own.sum(axis=-1, keepdims=True)


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """Return sinc(d) sinc(d / SUPPORT) within the support, 0 beyond."""
    return np.where(np.abs(distance) < SUPPORT, np.sinc(distance) * np.sinc(distance / SUPPORT), 0.0)


@jit
def _between(nodes, axis, step, r, c):
    """Return coordinate 0 (x) or 1 (y) at output pixel (c, r), bilinear between nodes [2, rows, columns]."""
    jy = r // step
    jx = c // step
    ty = (r - jy * step) / step
    tx = (c - jx * step) / step
    return (1 - ty) * ((1 - tx) * nodes[axis, jy, jx] + tx * nodes[axis, jy, jx + 1]) + ty * (
        (1 - tx) * nodes[axis, jy + 1, jx] + tx * nodes[axis, jy + 1, jx + 1]
    )


@jit
def _clean_sample(image, wx, wy, left, low):
    """Return the sample at one position: the weights wx, wy start at pixel (left, low)."""
    w0, w1, w2, w3, w4, w5, w6, w7 = wx[0], wx[1], wx[2], wx[3], wx[4], wx[5], wx[6], wx[7]
    total = 0.0
    # 8 taps written out become vector instructions
    for j in range(8):
        p = image[low + j, left : left + 8]
        along = (w0 * p[0] + w1 * p[1] + w2 * p[2] + w3 * p[3]) + (
            w4 * p[4] + w5 * p[5] + w6 * p[6] + w7 * p[7]
        )
        total += wy[j] * along
    return total


@jit
def _masked_sample(image, bad, wx, wy, left, low):
    """Return (data, flags) at one position as `_clean_sample` does, bad taps left out."""
    total = 0.0
    used = 0.0
    lost = 0.0
    flags = 0
    for j in range(8):
        for i in range(8):
            w = wx[i] * wy[j]
            raised = bad[low + j, left + i]
            if raised != 0:
                lost += abs(w)
                if abs(w) > 0.02:
                    flags |= int(raised)
                continue
            used += w
            total += w * image[low + j, left + i]
    # many small bad taps together count as one big one
    if flags == 0 and lost > 0.1:
        flags = 16384
    if used > 0.5:
        return total / used, flags
    return total, flags


@jit
def _counted(bad):
    """Return int32 [rows + 1, columns + 1]: how many pixels below and left of each corner are bad."""
    height, width = bad.shape
    count = np.zeros((height + 1, width + 1), dtype=np.int32)
    for y in range(height):
        along = 0
        for x in range(width):
            along += bad[y, x] != 0
            count[y + 1, x + 1] = count[y, x + 1] + along
    return count


@jit
def _resample(image, bad, nodes, step, taps, out, out_bad):
    height, width = image.shape
    steps = taps.shape[0] - 1
    span = taps.shape[1]
    before = span // 2 - 1
    rows, columns = out_bad.shape
    count = _counted(bad)
    for r in range(rows):
        for c in range(columns):
            x = _between(nodes, 0, step, r, c)
            y = _between(nodes, 1, step, r, c)
            # written so that NaN is outside too
            if not (before <= x < width - span + before + 1 and before <= y < height - span + before + 1):
                out[r, c] = 0.0
                out_bad[r, c] = 32768
                continue
            x0 = int(np.floor(x))
            y0 = int(np.floor(y))
            wx = taps[int((x - x0) * steps + 0.5)]
            wy = taps[int((y - y0) * steps + 0.5)]
            left = x0 - before
            low = y0 - before
            if count[low + 8, left + 8] - count[low, left + 8] - count[low + 8, left] + count[low, left] > 0:
                out[r, c], out_bad[r, c] = _masked_sample(image, bad, wx, wy, left, low)
            else:
                out[r, c] = _clean_sample(image, wx, wy, left, low)
                out_bad[r, c] = 0


def resample(
    image: np.ndarray, bad: np.ndarray, nodes: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (data, flags) of an image sampled where another grid's pixels fall.

    Surface brightness is conserved: the weights of one sample add up to 1. Masked pixels are left out and the
    other weights scaled up to 1 again. A sample needs all 8x8 taps inside the input.

    Parameters
    ----------
    image
        Float32 [y, x] on the input grid.
    bad
        Uint16 [y, x], bits below `FAINT`, non-zero where the input must not be used; the bits are passed on.
    nodes
        Float64 [2, rows, columns]: input (x, y) at output pixels (`COORDINATE_STEP` * column,
        `COORDINATE_STEP` * row), enough to enclose the output; bilinear in between. See `node_grid`.
    shape
        Output (rows, columns).

    Returns
    -------
    data
        Float32.
    flags
        Uint16: 0 good; `OUTSIDE` the input; `FAINT`: bad taps with more than 10 % weight together, none with
        more than 2 %; else the bits of bad taps with more than 2 % weight.

    Raises
    ------
    ValueError
        When the nodes do not enclose the output.

    """
    need = tuple((n - 1) // COORDINATE_STEP + 2 for n in shape)
    if nodes.shape[0] != 2 or nodes.shape[1] < need[0] or nodes.shape[2] < need[1]:
        raise ValueError(f"an output of {shape} needs nodes of (2, {need[0]}, {need[1]}), got {nodes.shape}")
    out = np.empty(shape, dtype=np.float32)
    flags = np.empty(shape, dtype=np.uint16)
    _resample(image, bad, nodes, COORDINATE_STEP, tap_table(), out, flags)
    return out, flags


def node_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the output pixel positions (x, y), float64 2-D, at which `resample` wants coordinates."""
    rows = np.arange(0, shape[0] + 2 * COORDINATE_STEP, COORDINATE_STEP, dtype=np.float64)
    columns = np.arange(0, shape[1] + 2 * COORDINATE_STEP, COORDINATE_STEP, dtype=np.float64)
    return np.meshgrid(columns, rows)


def noise_covariance(nodes: np.ndarray) -> np.ndarray:
    """Return the covariance that `resample` gives to white noise of unit variance, averaged over the image.

    Float64 [4 S - 1, 4 S - 1], S = `SUPPORT`, by lag (dy, dx) with lag 0 in the middle: the mean over the
    sampled positions of the product of the weights there and of those a lag away, which under a map that
    scales and turns is not a whole number of input pixels. ``nodes`` as for `resample`; the map's scale is
    taken as one all over the image, and as 1 or above within some percent: else there are more lags.
    """
    phases = 64
    bins = np.rint(_quartered(nodes) % 1.0 * phases).astype(np.int64).reshape(2, -1)
    share = np.zeros((phases + 1, phases + 1))
    np.add.at(share, (bins[1], bins[0]), 1.0 / bins.shape[1])
    per_column = np.diff(nodes, axis=2).mean(axis=(1, 2)) / COORDINATE_STEP
    per_row = np.diff(nodes, axis=1).mean(axis=(1, 2)) / COORDINATE_STEP
    lag = np.arange(1 - 2 * SUPPORT, 2 * SUPPORT)
    moved = per_column[:, None, None] * lag + per_row[:, None, None] * lag[:, None]
    past = np.arange(phases + 1) / phases
    own = _weights(past, 0.0)
    across, down = (np.einsum("pt,jipt->jip", own, _weights(past, m[..., None])) for m in moved)
    covariance = np.einsum("jiq,qp,jip->ji", down, share, across, optimize=True)
    return 0.5 * (covariance + covariance[::-1, ::-1])


def _quartered(nodes: np.ndarray) -> np.ndarray:
    """Return the nodes [2, rows, columns] with three more between each two: phases turn fast over 16 px."""
    for axis in (1, 2):
        first = nodes.take(range(nodes.shape[axis] - 1), axis=axis)
        step = np.diff(nodes, axis=axis) / 4
        nodes = np.concatenate([first + k * step for k in range(4)], axis=axis)
    return nodes
