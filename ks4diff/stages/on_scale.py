"""Both images of a matched pair on the science image's flux scale, rectangle by rectangle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.cell_maps import less_map, times_map
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match

ALL = slice(None)


class Place(NamedTuple):
    """Where a rectangle is written: its first pixel lies ``at`` (y, x) of ``grid``, float32, C-contiguous."""

    grid: np.ndarray
    at: tuple[int, int]


def science_on_scale(
    chip: CalibratedChip,
    match: Match,
    rows: slice = ALL,
    columns: slice = ALL,
    place: Place | None = None,
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle (slices without steps): (counts - level) / factor - background.

    ``level`` and ``factor`` are those of the amplifier that holds the pixel, 0 and 1 where none is listed.
    Written into ``place`` and its grid returned where there is one.
    """
    corner, cells, (grid, at) = _rectangle(match.background, rows, columns, place)
    boxes = np.array([(a.x0, a.x1, a.y0, a.y1) for a in match.amplifiers], dtype=np.int64).reshape(-1, 4)
    steps = np.array([(a.level, a.factor) for a in match.amplifiers], dtype=np.float32).reshape(-1, 2)
    less_map(np.asarray(chip.image.data, dtype=np.float32), corner, (boxes, steps), cells, grid, at)
    return grid


def template_on_scale(
    template: AlignedTemplate,
    match: Match,
    rows: slice = ALL,
    columns: slice = ALL,
    place: Place | None = None,
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle (slices without steps): the template in science counts.

    Written into ``place`` and its grid returned where there is one.
    """
    corner, cells, (grid, at) = _rectangle(match.scale, rows, columns, place)
    times_map(np.asarray(template.image.data, dtype=np.float32), corner, cells, grid, at)
    return grid


def _rectangle(cells: Cells, rows: slice, columns: slice, place: Place | None):
    """Return a rectangle's first pixel (y, x), a map over it for `cell_maps`, and where it is written."""
    corner = rows.indices(cells.shape[0])[0], columns.indices(cells.shape[1])[0]
    over = cells.across(columns), *cells.down(rows)
    if place is None:
        place = Place(np.empty((len(over[1]), over[0].shape[-1]), dtype=np.float32), (0, 0))
    return corner, over, place
