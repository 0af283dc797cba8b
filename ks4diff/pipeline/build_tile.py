"""Build a reference tile from exposures of one's own: an event's first visit serves the later ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ks4diff import __version__
from ks4diff.io.fits_image import read_chip
from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_files import read_tile_header
from ks4diff.io.tile_write import Scratch, scratch, write_stack
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.products.errors import ConfigError, InputError, SkipChip
from ks4diff.products.template import TileRecord
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.stack import StackConfig, StackGrid, Warped, combine, stack_grid, warp

log = logging.getLogger(__name__)

_BAND_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a user says of the exposures; ``zeropoint`` is that of the first one."""

    band: str
    zeropoint: float | None = None
    scale_arcsec: float | None = None
    field: str | None = None
    hdu: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """A tile made of exposures: which went in, how each was placed, which were left out and why."""

    record: TileRecord
    used: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def build_tile(store: TemplateStore, exposures: Sequence[Path], out: Path, options: BuildOptions) -> Built:
    """Return the tile made of single-chip exposures with a WCS, written to ``out`` and added to the store.

    One exposure is in memory at a time. The first one that can be used sets the flux scale.

    Raises
    ------
    InputError
        When no exposure can be used, or the flux scale has no zero point.
    ConfigError
        When the output would overwrite an exposure or cannot be written.

    """
    if any(path.resolve() == out.resolve() for path in exposures):
        raise ConfigError(f"{out}: would overwrite an exposure")
    config, left_out = StackConfig(), {}
    usable = list(_with_wcs(exposures, options, left_out))
    if not usable:
        raise InputError(f"no exposure can be used: {_reasons(left_out)}")
    grid = stack_grid([(wcs, shape) for _, wcs, shape in usable], options.scale_arcsec, config)
    try:
        with scratch(out, grid.shape) as space:
            chips = _calibrated((path for path, *_ in usable), options, left_out)
            first, warped = _warp_all(chips, grid, config, space, left_out)
            zeropoint = first and (options.zeropoint or first.raw.zeropoint)
            if not zeropoint:
                reason = _reasons(left_out) if first is None else "no MAGZERO; say --zeropoint"
                raise InputError(f"no template can be made of these exposures: {reason}")
            _write(out, grid, space, warped, replace(options, zeropoint=zeropoint))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    tile = TileOptions(band=options.band, field=options.field, origin="built")
    return Built(
        record=add_tile(store, out, tile),
        used={name: item.registration for name, item, _ in warped},
        left_out=left_out,
    )


def _with_wcs(exposures: Sequence[Path], options: BuildOptions, left_out: dict[str, str]) -> Iterator[tuple]:
    for path in dict.fromkeys(exposures):
        try:
            header = read_tile_header(path, options.hdu)
        except InputError as error:
            left_out[str(path)] = str(error)
            continue
        if header.wcs is None:
            left_out[str(path)] = "no usable WCS"
        else:
            yield path, header.wcs, header.shape


def _calibrated(
    paths: Iterator[Path], options: BuildOptions, left_out: dict[str, str]
) -> Iterator[tuple[Path, CalibratedChip]]:
    for path in paths:
        try:
            raw = read_chip(path, hdu=options.hdu)
            yield path, calibrate(raw, CalibrateConfig())
        except (InputError, SkipChip) as error:
            left_out[str(path)] = str(error)
            log.warning("%s is left out: %s", path, error)


def _warp_all(
    chips: Iterator[tuple[Path, CalibratedChip]],
    grid: StackGrid,
    config: StackConfig,
    space: Scratch,
    left_out: dict[str, str],
) -> tuple[CalibratedChip | None, list[tuple[str, Warped, RawChip]]]:
    """Return (first exposure, [(name, how it was warped, its facts)]); the pixels go to scratch space."""
    first, done = None, []
    for path, chip in chips:
        first = first or chip
        try:
            warped = warp(chip, first, grid, config)
        except SkipChip as skip:
            left_out[str(path)] = str(skip)
            log.warning("%s is left out: %s", path, skip)
            continue
        space.append(warped.data)
        nothing = np.zeros((0, 0), dtype=np.float32)
        done.append((path.name, replace(warped, data=nothing), replace(chip.raw, data=nothing)))
    return first, done


def _write(
    out: Path,
    grid: StackGrid,
    space: Scratch,
    warped: list[tuple[str, Warped, RawChip]],
    options: BuildOptions,
) -> None:
    sigma = np.array([item.sigma for _, item, _ in warped])
    config = StackConfig()
    raws = [raw for *_, raw in warped]
    full = [raw.saturation * item.flux_scale for _, item, raw in warped if raw.saturation]
    times = [raw.exptime for raw in raws if raw.exptime is not None]
    days = [raw.mjd_mid for raw in raws if raw.mjd_mid is not None]
    cards = [
        ("MAGZERO", options.zeropoint, "AB magnitude of one count"),
        ("FILTER", options.band, "band this template serves"),
        ("OBJECT", options.field or raws[0].object, ""),
        ("EXPTIME", float(sum(times)) if times else None, "[s] total"),
        ("MEANMJD", float(np.mean(days)) if days else None, "UTC, mean of the exposures"),
        ("SATURATE", float(min(full)) if full else None, "[count] lowest of the exposures"),
        ("NUMIMAGE", len(warped), "exposures combined"),
        ("SOFTWARE", f"ks4diff {__version__}", ""),
        *((f"IMAGE{n}", name[:60], "") for n, (name, *_) in enumerate(warped, start=1) if n < 1000),
    ]
    history = [
        f"{name}: counts x {item.flux_scale:.6g}, placed by {item.registration}" for name, item, _ in warped
    ]
    history.append("clipped mean of background-subtracted exposures; 0 = no data; no variance plane")
    bands = (combine(values, sigma, config)[0] for values in space.bands(_BAND_ROWS))
    write_stack(out, bands, grid.shape, grid.wcs, cards, history)


def _reasons(left_out: dict[str, str]) -> str:
    return (
        "; ".join(f"{Path(name).name}: {reason}" for name, reason in left_out.items())[:300] or "none given"
    )
