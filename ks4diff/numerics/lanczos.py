"""Lanczos resampling of an image and its mask onto another pixel grid."""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from ks4diff.numerics.jit import jit
from ks4diff.numerics.lanczos_noise import noise_covariance as noise_covariance
from ks4diff.numerics.pools import pool
from ks4diff.numerics.taps import COORDINATE_STEP, tap_table
from ks4diff.numerics.taps import STEPS as STEPS
from ks4diff.numerics.taps import SUPPORT as SUPPORT

FAINT, OUTSIDE = 1 << 14, 1 << 15  # flags of a sample beside those of its taps
_BLOCK = 16  # side of the squares of input pixels that are known to be clean or not
_BAND = 8  # rows of cells of 16x16 pixels that a thread takes at a time


def _dot(image, wx, wy, left, low):
    """Return the float32 sum of 8x8 pixels from (left, low) on, times the weights wx, wy.

    This is what it does in Python; compiled, `_dot_in_lanes` does: LLVM makes 8-wide instructions of no other
    form without fastmath, and the scalar ones take 32 ns per sample instead of 15.
    """
    total = wy[0] * image[low, left : left + 8]
    for j in range(1, 8):
        total = total + wy[j] * image[low + j, left : left + 8]
    total = wx * total
    half = total[:4] + total[4:]
    return (half[0] + half[2]) + (half[1] + half[3])


@intrinsic
def _dot_in_lanes(typing_context, image, wx, wy, left, low):
    """Return `_dot` of C-contiguous float32 arrays, 8 columns at a time."""

    def generate(context, builder, signature, args):
        lanes = ir.VectorType(ir.FloatType(), 8)
        undefined = ir.Constant(lanes, ir.Undefined)
        pixels, across, down = (
            make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], args[:3], strict=True)
        )

        def pick(vector, which):
            wanted = ir.Constant(ir.VectorType(ir.IntType(32), len(which)), which)
            return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), wanted)

        def load(pointer):
            loaded = builder.load(builder.bitcast(pointer, lanes.as_pointer()))
            loaded.align = 4
            return loaded

        row_bytes, pixel_bytes = (builder.extract_value(pixels.strides, k) for k in (0, 1))
        start = builder.add(builder.mul(args[4], row_bytes), builder.mul(args[3], pixel_bytes))
        total = None
        for j in range(8):
            row = load(cgutils.pointer_add(builder, pixels.data, start))
            weight = builder.load(cgutils.gep(builder, down.data, j))
            term = builder.fmul(pick(builder.insert_element(undefined, weight, _index(0)), [0] * 8), row)
            total = term if total is None else builder.fadd(total, term)
            start = builder.add(start, row_bytes)
        total = builder.fmul(load(across.data), total)
        total = builder.fadd(pick(total, [0, 1, 2, 3]), pick(total, [4, 5, 6, 7]))
        total = builder.fadd(pick(total, [0, 1]), pick(total, [2, 3]))
        return builder.fadd(*(builder.extract_element(total, _index(k)) for k in (0, 1)))

    return types.float32(image, wx, wy, types.intp, types.intp), generate


def _index(k):
    return ir.Constant(ir.IntType(32), k)


@overload(_dot)
def _dot_compiled(image, wx, wy, left, low):
    """Return the compiled `_dot`; weights are rows of the table, contiguous too."""
    if all(a.dtype == types.float32 and a.layout == "C" for a in (image, wx, wy)):
        return lambda image, wx, wy, left, low: _dot_in_lanes(image, wx, wy, left, low)
    return None


@jit
def _masked_sample(image, bad, wx, wy, left, low):
    """Return (data, flags) at one position as `_dot` does, bad taps left out."""
    total, used, lost = 0.0, 0.0, 0.0
    flags = 0
    for j in range(8):
        for i in range(8):
            w = float(wx[i]) * float(wy[j])
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
        total /= used
    return total, flags


@jit
def _blocks(bad, size, band, some, every):
    """Write the bits that some, and that all, pixels of each block have, for a band of rows of blocks."""
    height, width = bad.shape
    for j in range(band[0], min(band[1], some.shape[0])):
        for i in range(some.shape[1]):
            block = bad[j * size : min((j + 1) * size, height), i * size : min((i + 1) * size, width)]
            one, both = 0, 65535
            for row in block:
                for raised in row:
                    one |= raised
                    both &= raised
            some[j, i], every[j, i] = one, both


@jit
def _over(image, nodes, j, i, blocks, size):
    """Return what lies under a cell of output pixels: 0 all good, -1 various, else the bits that all have."""
    height, width = image.shape
    corners = nodes[:, j : j + 2, i : i + 2]
    # 1e-6: more than rounding may add between the corners
    left, right = corners[0].min() - 3.000001, corners[0].max() + 4.000001
    low, high = corners[1].min() - 3.000001, corners[1].max() + 4.000001
    # written so that NaN fails
    if not (left >= 0.0 and low >= 0.0 and right < width and high < height):
        return -1
    some, every = blocks
    bits = int(some[int(low) // size, int(left) // size])
    for y in range(int(low) // size, int(high) // size + 1):
        for x in range(int(left) // size, int(right) // size + 1):
            if some[y, x] != bits or every[y, x] != bits:
                return -1
    return bits


@jit
def _clean_run(image, taps, start, out):
    """Write samples from ``start`` (x, y, dx, dy) on; all taps are inside and good."""
    x, y, dx, dy = start
    steps = taps.shape[0] - 1
    # a loop of its own: with the tests of `_run` in it, it takes twice as long
    for k in range(len(out)):
        px, py = x + k * dx, y + k * dy
        x0, y0 = int(px), int(py)
        wx = taps[int((px - x0) * steps + 0.5)]
        wy = taps[int((py - y0) * steps + 0.5)]
        out[k] = _dot(image, wx, wy, x0 - 3, y0 - 3)


@jit
def _run(image, bad, taps, start, out, flags):
    """Write samples and flags from ``start`` (x, y, dx, dy) on."""
    height, width = image.shape
    x, y, dx, dy = start
    steps = taps.shape[0] - 1
    for k in range(len(out)):
        px, py = x + k * dx, y + k * dy
        # written so that NaN is outside too
        if not (3.0 <= px < width - 4.0 and 3.0 <= py < height - 4.0):
            out[k], flags[k] = 0.0, 32768
            continue
        x0, y0 = int(px), int(py)
        wx = taps[int((px - x0) * steps + 0.5)]
        wy = taps[int((py - y0) * steps + 0.5)]
        if _raised(bad, x0 - 3, y0 - 3):
            out[k], flags[k] = _masked_sample(image, bad, wx, wy, x0 - 3, y0 - 3)
        else:
            out[k], flags[k] = _dot(image, wx, wy, x0 - 3, y0 - 3), 0


@jit
def _resample(source, blocks, nodes, sizes, taps, band, result):
    """Write the samples of a band of rows of cells."""
    image, bad = source
    rows, columns = result[0].shape
    step, size = sizes
    for j in range(band[0], min(band[1], (rows - 1) // step + 1)):
        for i in range((columns - 1) // step + 1):
            over = _over(image, nodes, j, i, blocks, size)
            for r in range(j * step, min((j + 1) * step, rows)):
                t = (r - j * step) / step
                x = (1 - t) * nodes[0, j, i] + t * nodes[0, j + 1, i]
                y = (1 - t) * nodes[1, j, i] + t * nodes[1, j + 1, i]
                dx = ((1 - t) * nodes[0, j, i + 1] + t * nodes[0, j + 1, i + 1] - x) / step
                dy = ((1 - t) * nodes[1, j, i + 1] + t * nodes[1, j + 1, i + 1] - y) / step
                out = result[0][r, i * step : min((i + 1) * step, columns)]
                flags = result[1][r, i * step : min((i + 1) * step, columns)]
                if over == 0:
                    _clean_run(image, taps, (x, y, dx, dy), out)
                    flags[:] = 0
                elif over > 0:
                    out[:] = 0.0
                    flags[:] = over
                else:
                    _run(image, bad, taps, (x, y, dx, dy), out, flags)


@jit
def _raised(bad, left, low):
    """Return whether any of 8x8 pixels is bad."""
    raised = 0
    for j in range(8):
        for i in range(8):
            raised |= bad[low + j, left + i]
    return raised != 0


def resample(
    image: np.ndarray, bad: np.ndarray, nodes: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (data, flags) of an image sampled where another grid's pixels fall.

    Surface brightness is conserved: the weights of one sample add up to 1. Masked pixels are left out and the
    other weights scaled up to 1 again. A sample needs all 8x8 taps inside the input.

    Parameters
    ----------
    image
        Float32 [y, x] on the input grid, C-contiguous (else it is copied).
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
    source = np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(bad, dtype=np.uint16)
    counts = tuple(-(-n // _BLOCK) for n in image.shape)
    blocks = np.empty(counts, dtype=np.uint16), np.empty(counts, dtype=np.uint16)
    result = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.uint16)
    taps = tap_table().astype(np.float32)
    sizes = COORDINATE_STEP, _BLOCK
    with pool() as threads:
        for _ in threads.map(lambda band: _blocks(source[1], _BLOCK, band, *blocks), _bands(counts[0])):
            pass
        work = partial(_resample, source, blocks, nodes, sizes, taps)
        for _ in threads.map(lambda band: work(band, result), _bands(-(-shape[0] // COORDINATE_STEP))):
            pass
    return result


def _bands(n: int) -> list[tuple[int, int]]:
    return [(first, first + _BAND) for first in range(0, n, _BAND)]


def node_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the output pixel positions (x, y), float64 2-D, at which `resample` wants coordinates."""
    rows = np.arange(0, shape[0] + 2 * COORDINATE_STEP, COORDINATE_STEP, dtype=np.float64)
    columns = np.arange(0, shape[1] + 2 * COORDINATE_STEP, COORDINATE_STEP, dtype=np.float64)
    return np.meshgrid(columns, rows)
