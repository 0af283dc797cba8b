"""Cut an image into patches that overlap, and weigh them so that they join without a seam."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from ks4diff.numerics.jit import jit

SMALLEST, LARGEST = 384, 900  # px of an FFT grid: below, overlap costs; above, two no longer fit the cache


class Span(NamedTuple):
    """One patch along one axis, pixels of the image: [``start``, ``stop``) gets a weight above 0.

    ``ramp_in`` and ``ramp_out`` px of it are shared with the patch before and after; 0 at the border.
    """

    start: int
    stop: int
    ramp_in: int
    ramp_out: int

    @property
    def middle(self) -> float:
        """The pixel, 0-based, in the middle of the span."""
        return 0.5 * (self.start + self.stop - 1)


def spans(size: int, margin: int, overlap: int) -> tuple[list[Span], int]:
    """Return the spans that cover an axis of ``size`` px, and the FFT length of each.

    Each span and ``margin`` px on both sides of it fit the length; neighbours share ``overlap`` px. Of the
    fast lengths the cheapest is taken: few large patches waste little on overlap but may end far out.
    """
    best = None
    for n in range(1, size // 64 + 2):
        core = -(-size // n)
        length = fft.next_fast_len(core + (overlap if n > 1 else 0) + 2 * margin, real=True)
        if length > LARGEST and size > 64 * n:
            continue
        if best is None or n * length < best[1] * best[0]:
            best = (length, n)
        if length < SMALLEST:
            break
    length, n = best
    cut = np.rint(np.linspace(0, size, n + 1)).astype(int)
    half = overlap // 2
    found = []
    for k in range(n):
        low = int(cut[k]) - (half if k > 0 else 0)
        high = int(cut[k + 1]) + (half if k < n - 1 else 0)
        found.append(Span(low, high, 2 * half * (k > 0), 2 * half * (k < n - 1)))
    return found, length


def weights(span: Span) -> np.ndarray:
    """Return float32 [stop - start]: straight ramps where neighbours share, 1 between; they sum to 1."""
    weight = np.ones(span.stop - span.start, dtype=np.float32)
    for ramp, part in (
        (span.ramp_in, slice(0, span.ramp_in)),
        (span.ramp_out, slice(-1, -1 - span.ramp_out, -1)),
    ):
        if ramp:
            weight[part] = (np.arange(ramp, dtype=np.float32) + np.float32(0.5)) / np.float32(ramp)
    return weight


@jit
def _add(plane, down, along, out, left):
    """Row by row, each a flat array: only so does the compiler use vectors."""
    for y in range(len(down)):
        row, to = plane[y], out[y][left : left + along.size]
        for x in range(along.size):
            to[x] += down[y] * along[x] * row[x]


def add(plane: np.ndarray, rows: Span, columns: Span, out: np.ndarray) -> None:
    """Add a patch's float32 plane, weighted, to its place in the image ``out``, in place."""
    _add(plane, weights(rows), weights(columns), out[rows.start : rows.stop], columns.start)


def window(image: np.ndarray, rows: Span, columns: Span, margin: int) -> tuple[slice, slice, slice, slice]:
    """Return which rows and columns of ``image`` a patch reads, and where they lie on its FFT grid.

    A patch reads ``margin`` px more than it weighs, as far as there are any; its own first pixel always
    lies at ``margin`` on the grid.
    """
    out = []
    for span, size in ((rows, image.shape[0]), (columns, image.shape[1])):
        low, high = max(span.start - margin, 0), min(span.stop + margin, size)
        at = low - (span.start - margin)
        out.append((slice(low, high), slice(at, at + high - low)))
    return out[0][0], out[1][0], out[0][1], out[1][1]
