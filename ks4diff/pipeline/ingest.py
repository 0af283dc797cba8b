"""Add stacks to the template store: read them block by block in two processes, write what they show."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff import __version__
from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_files import (
    TileHeader,
    TilePixels,
    copy_with_sha256,
    read_box,
    read_tile_header,
    unpack_tile,
)
from ks4diff.io.tile_tables import read_field_grid, read_zp_map
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError, InputError, SkipChip
from ks4diff.products.fields import field_number, find_field_name, nearest_fields
from ks4diff.products.ids import BANDS
from ks4diff.products.template import PixelBox, TileRecord
from ks4diff.stages.footprint import position_of, tile_corners, unit_vectors
from ks4diff.stages.ingest import (
    BlockMeasures,
    IngestConfig,
    Sample,
    blocks,
    cell_size,
    measure_block,
    measure_sample,
    sample_boxes,
    widened,
)
from ks4diff.stages.tile_measures import TileMeasures, join_blocks

log = logging.getLogger(__name__)

WORKERS = 2
FIELD_TOLERANCE_DEG = 0.2  # a tenth of a field: a stack centred farther off belongs to no field
_BAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_'-]{0,15}")
_SMALL_PIXELS = 2**24  # below, starting processes takes longer than measuring


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """What a user says of a stack; None is left to its header."""

    band: str | None = None
    zeropoint: float | None = None
    field: str | None = None
    zp_map: Path | None = None
    issues: Mapping[tuple[str, str], tuple[str, ...]] | None = None
    copy: bool = False
    hdu: int | str | None = None
    origin: str = "added"


def add_tile(
    store: TemplateStore, path: Path, options: TileOptions, config: IngestConfig | None = None
) -> TileRecord:
    """Return the tile made of a stack, measured and written to the store; its pixels stay where they are.

    Compressed files are unpacked into the store, since parts of them cannot be read quickly.

    Raises
    ------
    InputError
        When the file is no image with a WCS and a zero point, or holds nothing to measure.
    ConfigError
        When an option is wrong, or the store cannot be written.

    """
    config = config or IngestConfig()
    header = read_tile_header(path, options.hdu)
    band, zeropoint = _band(path, header, options), _zeropoint(path, header, options)
    if header.wcs is None:
        raise InputError(f"{path}, HDU {header.hdu}: has no usable WCS; a template needs one")
    factor = None if options.zp_map is None else read_zp_map(options.zp_map, zeropoint)
    try:
        file, digest = _settle(store, path, header, options)
        plain = (
            header if file == path else read_tile_header(file, None if header.pixels is None else options.hdu)
        )
        measures = _measure(plain.pixels, header.facts["saturation"], config)
    except SkipChip as skip:
        raise InputError(f"{path}, HDU {header.hdu}: {skip}") from None
    except OSError as error:
        raise ConfigError(f"{store.root}: cannot be written ({error.strerror})") from None
    field = _field(path, header, options)
    psf = measures.psf
    record = TileRecord(
        id=_tile_id(path, digest, header.hdu, band),
        file=str(file.absolute()),
        hdu=plain.hdu,
        sha256=digest,
        band=band,
        field=field,
        shape=header.shape,
        wcs=header.wcs,
        zeropoint=zeropoint,
        exptime=header.facts["exptime"],
        mjd=header.mjd,
        corners=tile_corners(header.wcs, header.shape),
        cell_pix=cell_size(header.shape, config),
        coverage=measures.coverage,
        sigma=measures.sigma,
        background=measures.background,
        flux_factor=factor,
        noise=measures.noise,
        psf=psf,
        fwhm_pix=None if psf is None else psf.fwhm_pix,
        fwhm_map=measures.fwhm_map,
        saturation=measures.saturation,
        n_stars=len(measures.stars),
        issues=(options.issues or {}).get((field or "", band), ()),
    )
    try:
        store.add(record, measures.stars, _provenance(path, options))
    except OSError as error:
        raise ConfigError(f"{store.root}: cannot be written ({error.strerror})") from None
    log.info("%s: tile %s, %s, %d stars", path, record.id, band, record.n_stars)
    return record


def _band(path: Path, header: TileHeader, options: TileOptions) -> str:
    if options.band is not None:
        if not _BAND.fullmatch(options.band):
            raise ConfigError(f"band {options.band!r} is no name of a filter")
        return options.band
    band = str(header.facts["filter"] or "")
    if band not in BANDS:
        raise InputError(f"{path}: FILTER is {band or 'missing'}, not one of B V R I; say --band")
    return band


def _zeropoint(path: Path, header: TileHeader, options: TileOptions) -> float:
    value = options.zeropoint if options.zeropoint is not None else header.facts["zeropoint"]
    if value is None:
        raise InputError(f"{path}: no MAGZERO in the header; say --zeropoint (AB magnitude of one count)")
    if not 5 <= value <= 50:
        raise ConfigError(f"zero point {value:g} is none of an AB magnitude of one count")
    return float(value)


def _settle(store: TemplateStore, path: Path, header: TileHeader, options: TileOptions) -> tuple[Path, str]:
    """Return (plain file with the pixels, its sha256), copying or unpacking it into the store if need be."""
    stem = _stem(path)
    if header.pixels is None:
        made = store.pixel_path(f"{stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}.fits")
        unpack_tile(path, options.hdu, made)
        return made, copy_with_sha256(made, None)
    if not options.copy or path.resolve().is_relative_to(store.root.resolve()):
        return path, copy_with_sha256(path, None)
    digest = copy_with_sha256(path, None)
    made = store.pixel_path(f"{stem}-{digest[:8]}.fits")
    if copy_with_sha256(path, made) != digest:
        raise InputError(f"{path}: changed while it was copied")
    return made, digest


def _stem(path: Path) -> str:
    stem = re.sub(r"\.(fits?|fts)(\.(gz|fz))?$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", stem).lstrip(".")[:100] or "tile"


def _tile_id(path: Path, digest: str, hdu: str, band: str) -> str:
    number = hdu.split()[0]
    return f"{_stem(path)}{'' if number == '0' else '.' + number}-{band.replace(chr(39), '_')}-{digest[:8]}"


def _field(path: Path, header: TileHeader, options: TileOptions) -> str | None:
    """Return the field as told, as the header or name says if the position agrees, or by position alone."""
    grid = read_field_grid()
    if options.field is not None:
        number = field_number(grid, options.field)
        if number is None:
            raise ConfigError(f"there is no field {options.field!r}; names are like 2149.115-50")
        return grid.name(number)
    centre = unit_vectors(tile_corners(header.wcs, header.shape)).mean(axis=0)
    number, distance = nearest_fields(grid, *position_of(centre), n=1)[0]
    here = grid.name(number) if distance <= FIELD_TOLERANCE_DEG else None
    said = find_field_name(header.words)
    if said is not None and said != here:
        log.warning("%s: says field %s but lies at %s; position counts", path, said, here or "no field")
    return here


def _provenance(path: Path, options: TileOptions) -> dict[str, Any]:
    made: dict[str, Any] = {"software": f"ks4diff {__version__}", "origin": options.origin}
    made["source"] = str(path.absolute())
    if options.zp_map is not None:
        made["zp_map"] = {"file": str(options.zp_map), "sha256": copy_with_sha256(options.zp_map, None)}
    return made


def _measure(pixels: TilePixels, saturation: float | None, config: IngestConfig) -> TileMeasures:
    """Return the measures of a tile; in processes of their own when it is large, for sep holds the GIL."""
    cell = cell_size(pixels.shape, config)
    grid = blocks(pixels.shape, cell, config)
    with _mapper(pixels.shape) as spread:
        flat = list(spread(_block_job, ((pixels, core, cell, config) for row in grid for core in row)))
        measured = [flat[n * len(grid[0]) : (n + 1) * len(grid[0])] for n in range(len(grid))]
        coverage = np.block([[block.coverage for block in row] for row in measured])
        places = sample_boxes(coverage, cell, config)
        boxes = [widened(box, 0, pixels.shape) for *_, box in places]
        found = spread(_sample_job, ((pixels, box, saturation, config) for box in boxes))
        samples = [
            (i, j, box, sample)
            for (i, j, _), box, sample in zip(places, boxes, found, strict=True)
            if sample is not None
        ]
    return join_blocks(measured, samples, cell, saturation, config)


class _mapper:
    """``map`` in this process for small tiles, in two of their own for large ones."""

    def __init__(self, shape: tuple[int, int]) -> None:
        large = shape[0] * shape[1] > _SMALL_PIXELS
        # spawned, not forked: a fork copies the locks of running threads
        self._pool = ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) if large else None

    def __enter__(self) -> Any:
        return map if self._pool is None else self._pool.map

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _block_job(job: tuple[TilePixels, PixelBox, int, IngestConfig]) -> BlockMeasures:
    pixels, core, cell, config = job
    read = widened(core, config.margin_pix, pixels.shape)
    return measure_block(read_box(pixels, read), read, core, cell, config)


def _sample_job(job: tuple[TilePixels, PixelBox, float | None, IngestConfig]) -> Sample | None:
    pixels, box, saturation, config = job
    data = read_box(pixels, box)
    raw = RawChip(data=data, file=str(pixels.path), hdu=pixels.hdu, saturation=saturation)
    return measure_sample(raw, config)


def add_tiles(
    store: TemplateStore, paths: Iterable[Path], options: TileOptions
) -> Iterator[tuple[Path, TileRecord | InputError]]:
    """Yield (file, tile) for each file, or what is wrong with it: one bad stack does not stop the others."""
    for path in paths:
        try:
            yield path, add_tile(store, path, options)
        except InputError as error:
            yield path, error
