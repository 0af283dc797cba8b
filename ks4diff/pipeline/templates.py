"""What is done with reference tiles: measure and add them, find those under an exposure, read the part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_files import read_box, read_image_wcs
from ks4diff.products.errors import InputError, SkipChip
from ks4diff.products.template import Footprint, PixelBox, TileCover, TilePart, TileRecord
from ks4diff.stages.footprint import (
    box_footprint,
    chip_footprint,
    covered,
    enclosing_box,
    polygon_footprint,
    rank_tiles,
    unit_vectors,
)
from ks4diff.stages.mosaic import MARGIN_PIX, fill_from, missing, positions_in
from ks4diff.stages.tile_part import make_part

log = logging.getLogger(__name__)

MAX_PART_PIXELS = 2**28  # 1 GiB as float32: three KMTNet chips
_TINY_GAIN = 1e-3  # of a footprint: not worth resampling another tile for


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """Which tiles serve as templates."""

    min_coverage: float = 0.1  # of a chip; below, it is skipped
    margin_pix: int = 32  # read around the chip: room for a wrong pointing is the caller's to ask
    allowed_issues: tuple[str, ...] = field(
        default=()
    )  # of the survey's flags; a tile with others is not used

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not 0 <= self.min_coverage <= 1:
            raise ValueError(f"min_coverage must be in [0, 1], got {self.min_coverage}")
        if self.margin_pix < 0:
            raise ValueError(f"margin_pix must not be negative, got {self.margin_pix}")


def cover(store: TemplateStore, footprint: Footprint, band: str | None = None) -> list[TileCover]:
    """Return the tiles that cover a footprint, in the order in which they add to it."""
    return rank_tiles(_near(store, footprint, band), footprint)


def exposure_footprint(path: Path) -> Footprint:
    """Return the footprint of all images of a file that have a WCS: a chip, a mosaic or its amplifiers.

    Raises
    ------
    InputError
        When there is none.

    """
    parts = [chip_footprint(wcs, shape) for _, wcs, shape in read_image_wcs(path)]
    if not parts:
        raise InputError(f"{path}: no image with a usable WCS")
    return Footprint(
        points=np.concatenate([part.points for part in parts]),
        border=np.concatenate([part.border for part in parts]),
    )


def _near(store: TemplateStore, footprint: Footprint, band: str | None) -> list[TileRecord]:
    vectors = unit_vectors(np.concatenate([footprint.border, footprint.points]))
    centre = vectors.mean(axis=0)
    centre = centre / np.linalg.norm(centre)
    radius = float(np.degrees(np.arccos(np.clip((vectors @ centre).min(), -1, 1))))
    return store.near(centre, radius, band)


def template_tiles(
    store: TemplateStore, footprint: Footprint, band: str, config: TemplateConfig
) -> list[TileRecord]:
    """Return the tiles to use under a footprint, the one that covers most first.

    Raises
    ------
    SkipChip
        When there is no tile, none in this band, only tiles with known defects, or too little coverage.

    """
    records = {record.id: record for record in _near(store, footprint, None)}
    every = rank_tiles(list(records.values()), footprint)
    if not every:
        raise SkipChip("no template tile covers this field")
    same = [item for item in every if item.band == band]
    if not same:
        raise SkipChip(f"no {band} template here, only {', '.join(sorted({item.band for item in every}))}")
    usable = [item for item in same if not set(item.issues) - set(config.allowed_issues)]
    if not usable:
        issues = sorted({issue for item in same for issue in item.issues})
        raise SkipChip(f"the {band} template is flagged: {', '.join(issues)}")
    ranked = rank_tiles([records[item.id] for item in usable], footprint)
    share = sum(item.gained for item in ranked)
    if share < config.min_coverage:
        raise SkipChip(f"the {band} template hardly covers the chip", coverage=share)
    return [records[item.id] for n, item in enumerate(ranked) if n == 0 or item.gained > _TINY_GAIN]


def template_for(store: TemplateStore, footprint: Footprint, band: str, config: TemplateConfig) -> TilePart:
    """Return the template under a chip's footprint.

    Raises
    ------
    SkipChip
        As `template_tiles` does.
    InputError
        When a tile's file is gone or damaged.

    """
    tiles = template_tiles(store, footprint, band, config)
    return read_part(store, tiles, footprint, margin_pix=config.margin_pix)


def read_part(
    store: TemplateStore,
    tiles: Sequence[TileRecord],
    region: Footprint | PixelBox | np.ndarray,
    *,
    margin_pix: int = 32,
) -> TilePart:
    """Return the part of tiles under a region, on the grid of the first tile; only that part is read.

    Where the first tile has no data the next ones fill in, resampled to its grid; see `fill_from` for what
    that does to the noise. The part may reach beyond the first tile.

    Parameters
    ----------
    store, tiles
        Where the tiles are, and which ones in the order of preference.
    region
        A footprint, a polygon of ICRS degrees [n, 2], or a box of pixels of the first tile.
    margin_pix
        Read around a footprint or polygon.

    Raises
    ------
    InputError
        When a file is gone or damaged, or the region is larger than any chip.

    """
    first, *others = tiles
    if isinstance(region, np.ndarray):
        region = polygon_footprint(region)
    box = region if isinstance(region, PixelBox) else enclosing_box(first.wcs, region, margin_pix)
    part = _single(store, first, box)
    for record in others:
        patch = missing(part)
        if patch is None:
            break
        at = PixelBox(patch.box.x0, patch.box.y0, patch.box.x1, patch.box.y1)
        if not covered(record, box_footprint(part.wcs, at)).any():
            continue
        nodes = positions_in(patch, part, record.wcs)
        if not np.isfinite(nodes).any():
            continue
        low = np.floor(np.nanmin(nodes, axis=(1, 2))).astype(int)
        high = np.ceil(np.nanmax(nodes, axis=(1, 2))).astype(int)
        wanted = _within_reach(record, PixelBox(low[0], low[1], high[0] + 1, high[1] + 1))
        if wanted.x1 <= wanted.x0 or wanted.y1 <= wanted.y0:
            continue
        other = _single(store, record, wanted)
        part = fill_from(part, patch, nodes - np.array([wanted.x0, wanted.y0]).reshape(2, 1, 1), other)
    return part


def _within_reach(record: TileRecord, box: PixelBox) -> PixelBox:
    """Return a box grown by the kernel's reach and held to the tile and as much around it."""
    rows, columns = record.shape
    return PixelBox(
        int(np.clip(box.x0 - MARGIN_PIX, -MARGIN_PIX, columns)),
        int(np.clip(box.y0 - MARGIN_PIX, -MARGIN_PIX, rows)),
        int(np.clip(box.x1 + MARGIN_PIX, 0, columns + MARGIN_PIX)),
        int(np.clip(box.y1 + MARGIN_PIX, 0, rows + MARGIN_PIX)),
    )


def _single(store: TemplateStore, record: TileRecord, box: PixelBox) -> TilePart:
    rows, columns = box.shape
    if rows < 1 or columns < 1 or rows * columns > MAX_PART_PIXELS:
        raise InputError(f"tile {record.id}: a part of {columns} x {rows} pixels is none that a chip needs")
    data = read_box(store.pixels(record), box)
    return make_part(data, box, record, store.stars(record))
