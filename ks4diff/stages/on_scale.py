"""Both images of a matched pair on the science image's flux scale, rectangle by rectangle."""

from __future__ import annotations

import numpy as np

from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match

ALL = slice(None)


def science_on_scale(
    chip: CalibratedChip, match: Match, rows: slice = ALL, columns: slice = ALL
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle (slices without steps): (counts - level) / factor - background.

    ``level`` and ``factor`` are those of the amplifier that holds the pixel, 0 and 1 where none is listed.
    """
    shape = chip.image.shape
    (y0, y1, _), (x0, x1, _) = rows.indices(shape[0]), columns.indices(shape[1])
    out = chip.image.data[rows, columns].astype(np.float32, copy=True)
    for step in match.amplifiers:
        inside = (
            slice(max(step.y0 - y0, 0), max(min(step.y1, y1) - y0, 0)),
            slice(max(step.x0 - x0, 0), max(min(step.x1, x1) - x0, 0)),
        )
        out[inside] -= np.float32(step.level)
        out[inside] /= np.float32(step.factor)
    out -= match.background.over(rows, columns)
    return out


def template_on_scale(
    template: AlignedTemplate, match: Match, rows: slice = ALL, columns: slice = ALL
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle (slices without steps): the template in science counts."""
    return match.scale.over(rows, columns) * template.image.data[rows, columns]
