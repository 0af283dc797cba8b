"""What the pixels tell of a layout where headers are silent: the overscan's place, the amplifiers' order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.io.kmtnet_layout import ChipLayout, amplifiers_of
from ks4diff.io.kmtnet_pixels import sample_columns
from ks4diff.io.kmtnet_sections import Image, Piece, raw_chip_pieces

_EDGE = 2  # columns on either side of a seam: half a star
_ROWS = 64  # rows over which levels and gradients are taken out
_CLIP = 10.0  # sigma: one bright star must not decide alone
_SIGMAS = 5.0
_STEP_RATIO = 0.5
_LEAST_CONTRAST = 5.0  # counts between sky and overscan before a layout is told by them


def by_contrast(where: str, item: object, image: Image, chip: str, layout: ChipLayout) -> ChipLayout:
    """Return the layout of a single-CCD file under which its overscan and data columns differ more.

    The usual one (all prescans, all data, all overscans) stands unless the other is twice as good.
    """
    _, beside = raw_chip_pieces(where, image, chip, amplifiers_of(image.header), interleaved=True)
    columns = sample_columns(item, image.shape)

    def contrast(pieces: tuple[Piece, ...]) -> float:
        data = np.concatenate([columns[slice(*piece.columns)] for piece in pieces])
        bias = np.concatenate([columns[slice(*piece.overscan)] for piece in pieces])
        return abs(float(np.median(data) - np.median(bias)))

    better = contrast(beside) > max(2 * contrast(layout.pieces), _LEAST_CONTRAST)
    return replace(layout, pieces=beside) if better else layout


def by_seams(data: np.ndarray, layout: ChipLayout) -> ChipLayout:
    """Return the layout with its strips in the order in which the sky continues; ``data`` follows."""
    pieces = layout.pieces
    borders = [piece.x0 for piece in pieces] + [pieces[-1].x1]
    joined = all(piece.x1 == following for piece, following in zip(pieces, borders[1:], strict=True))
    if len(pieces) < 2 or not joined or not runs_backwards(data, borders):
        return layout
    for one, other in zip(pieces[: len(pieces) // 2], reversed(pieces), strict=False):
        strip = data[:, one.x0 : one.x1].copy()
        data[:, one.x0 : one.x1] = data[:, other.x0 : other.x1]
        data[:, other.x0 : other.x1] = strip
    ends = borders[0] + borders[-1]
    return replace(layout, pieces=tuple(piece.at(ends - piece.x1, piece.y0) for piece in pieces))


def runs_backwards(data: np.ndarray, borders: list[int]) -> bool:
    """Return whether the strips of ``data`` join better in reverse order; False when the sky cannot tell.

    Stars that lie across a seam make the rows of its two edges vary together, whatever level and gain their
    amplifiers have: with N rows over all seams, the difference of the summed products of normalised rows
    is normal with variance 2 N when there are no stars, and must exceed 5 sigma. Failing that, the steps in
    level decide when those of one order are less than half of the other's.

    Parameters
    ----------
    data
        The chip in the assumed order, [y, x].
    borders
        First column of each strip, left to right, and the width of the chip; equal strips.

    """
    lefts = [data[:, x : x + _EDGE].mean(axis=1, dtype=np.float64) for x in borders[:-1]]
    rights = [data[:, x - _EDGE : x].mean(axis=1, dtype=np.float64) for x in borders[1:]]
    flat_lefts, flat_rights = [_normalised(e) for e in lefts], [_normalised(e) for e in rights]
    seams = range(len(lefts) - 1)
    forward = sum(float(flat_rights[k] @ flat_lefts[k + 1]) for k in seams)
    backward = sum(float(flat_rights[k + 1] @ flat_lefts[k]) for k in seams)
    spread = np.sqrt(2.0 * max(1, len(seams) * data.shape[0]))
    if abs(forward - backward) > _SIGMAS * spread:
        return backward > forward
    step_forward = sum(_step(rights[k], lefts[k + 1]) for k in seams)
    step_backward = sum(_step(rights[k + 1], lefts[k]) for k in seams)
    return step_backward < _STEP_RATIO * step_forward


def _step(one: np.ndarray, other: np.ndarray) -> float:
    difference = np.abs(np.median(one - other))
    return float(difference) if np.isfinite(difference) else 0.0


def _normalised(edge: np.ndarray) -> np.ndarray:
    """Return an edge in units of its scatter about the median of each block of rows."""
    values = np.where(np.isfinite(edge), edge, 0.0)
    for start in range(0, len(values), _ROWS):
        block = values[start : start + _ROWS]
        block -= np.median(block)
    scatter = 1.4826 * np.median(np.abs(values))
    return np.clip(values / scatter, -_CLIP, _CLIP) if scatter > 0 else np.zeros_like(values)
