"""Measure every detection: fluxes, errors, shape, fits, surroundings and flags; cut out what may be shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ks4diff.numerics.cutouts import cut
from ks4diff.numerics.pools import pool
from ks4diff.products.candidates import REJECTING_BITS, Candidates, Detections, empty_table
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference
from ks4diff.stages.measure_context import MeasureConfig, add_context, add_flags
from ks4diff.stages.measure_fits import add_fits
from ks4diff.stages.measure_flux import add_fluxes, add_magnitudes
from ks4diff.stages.measure_shape import add_shapes
from ks4diff.stages.photometry import njy_per_count
from ks4diff.stages.place import Place, psf_of_place
from ks4diff.stages.score import rank

CUT_AT_A_TIME = 512  # candidates: 24 MB of cut-outs
MOST_REJECTED = 30  # rejected candidates with cut-outs: more are never drawn


def measure(
    detections: Detections,
    chip: CalibratedChip,
    template: AlignedTemplate,
    difference: Difference,
    config: MeasureConfig,
) -> Candidates:
    """Return one measured row per detection, strongest first; cut-outs of no pixels.

    Fluxes are in nJy when the chip has a zero point, else in science counts.
    """
    table = empty_table(len(detections))
    unit = 1.0 if chip.raw.zeropoint is None else njy_per_count(chip.raw.zeropoint)
    table["id"] = np.arange(len(detections))
    table["x"], table["y"], table["scorr"] = detections.x, detections.y, detections.score
    table["is_positive"] = detections.score > 0
    table["rb"] = np.nan
    _add_sky(table, chip)

    def work(place: Place) -> None:
        rows = table[place.rows]  # a copy: threads write different rows
        add_fluxes(rows, place, chip, template, difference)
        add_shapes(rows, place, chip, difference, config)
        add_fits(rows, place, difference)
        table[place.rows] = rows

    with pool() as threads:
        list(threads.map(work, _places(table, difference)))
    add_magnitudes(table, unit, calibrated=chip.raw.zeropoint is not None)
    around = add_context(table, chip, template, difference, unit)
    add_flags(table, around, template, difference, unit, config)
    return Candidates(
        table=table,
        cutouts=np.empty((0, 3, 0, 0), dtype=np.float32),
        flux_unit="count" if chip.raw.zeropoint is None else "nJy",
        shown=np.empty(0, dtype=np.int64),
    )


def _add_sky(table: np.ndarray, chip: CalibratedChip) -> None:
    if chip.raw.wcs is None or len(table) == 0:
        table["ra"], table["dec"] = np.nan, np.nan
        return
    table["ra"], table["dec"] = chip.raw.wcs.all_pix2world(table["x"], table["y"], 0)


def _places(table: np.ndarray, difference: Difference) -> Iterator[Place]:
    """Yield the rows of the table cell by cell, as the PSF is one there."""
    shape = difference.flags.shape
    cells = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
    j, i = cells.cell_of(table["x"], table["y"])
    cell = j * cells.values.shape[1] + i
    order = np.argsort(cell, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        if len(rows):
            yield psf_of_place(
                difference, rows, float(table["x"][rows].mean()), float(table["y"][rows].mean())
            )


def cut_out(
    candidates: Candidates,
    chip: CalibratedChip,
    template: AlignedTemplate,
    difference: Difference,
    config: MeasureConfig,
) -> Candidates:
    """Return the candidates with cut-outs of those not rejected and the best of the others.

    The 12,000 cosmic rays of one full chip would hold 0.6 GB.
    """
    table, side = candidates.table, config.cutout_pix
    n_passed = int(((table["flags"] & REJECTING_BITS) == 0).sum())
    shown = np.sort(rank(candidates)[: n_passed + MOST_REJECTED])
    out = np.empty((len(shown), 3, side, side), dtype=np.float32)
    at = np.stack([table["x"][shown], table["y"][shown]])
    science, other = chip.image, template.image
    planes = (
        (science.data, (science.flags,), 1.0),
        (other.data, (other.flags,), difference.flux_scale),
        (difference.difference, (science.flags, other.flags), 1.0),
    )

    def work(start: int) -> None:
        part = slice(start, start + CUT_AT_A_TIME)
        for k, (data, masks, factor) in enumerate(planes):
            cut(out[part, k], data, masks, at[:, part], factor)

    with pool() as threads:
        list(threads.map(work, range(0, len(shown), CUT_AT_A_TIME)))
    return replace(candidates, cutouts=out, shown=shown)
