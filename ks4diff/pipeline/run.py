"""KMTNet exposures against the template store: chip by chip, into the folders that the contract names."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from astropy.wcs import WCS

from ks4diff.io.ahead import read_ahead_folder
from ks4diff.io.calibrations import load_masters
from ks4diff.io.exposures import find_exposures
from ks4diff.io.history import History
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.scratch import park
from ks4diff.io.sinks import AlertSink
from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_tables import read_distortions
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.deliver import DELIVERY_DEADLINE_S, write_difference
from ks4diff.pipeline.forced import keep
from ks4diff.pipeline.isolate import Isolated, isolated
from ks4diff.pipeline.ledger import Ledger, begin
from ks4diff.pipeline.pair import PairResult, calibrated, process_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.pipeline.templates import template_for
from ks4diff.pipeline.visit import GLIMPSE, ExposureOutcome, Seen, Trace, finish, forget, same_visit
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.ids import CHIPS, parse_exposure_name
from ks4diff.products.subtracted import without_pixels
from ks4diff.products.template import TilePart
from ks4diff.stages.astrometry import first_wcs
from ks4diff.stages.cosmics import cleaned
from ks4diff.stages.coverage import coverage_of
from ks4diff.stages.detector import with_known_gain
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.signature import Signature, find_signature

log = logging.getLogger(__name__)

# what a raw header's position may be wrong by, at 0.4 arcsec: 2 arcminutes are 300 px, and a chip turned by 1
# degree about its middle reaches 79 px farther at its corners
POINTING_ERROR_PIX = 400


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What a run reads beside its exposures."""

    templates: TemplateStore
    calibrations: Path | None = None
    save_images: bool = False
    database: str | None = None  # URL of the history; None: ks4diff.db in the run's folder


def exposure_folder(out: Path, name: str) -> Path:
    """Return where an exposure's results go: OUT/<night>/<exposure>, OUT itself of no KMTNet exposure."""
    known = parse_exposure_name(name)
    return out if known is None else out / known.night / name


def exposures_of(paths: Sequence[Path]) -> list[ExposureFiles]:
    """Return the complete exposures among files and folders, in time order; partial ones are logged."""
    found = find_exposures(paths)
    for files in found:
        for partial in files.partial:
            log.warning("%s: not complete yet, left alone", partial)
    return [files for files in found if files.chips]


def run_exposures(
    found: Sequence[ExposureFiles], edges: Edges, out: Path, config: PipelineConfig, sink: AlertSink
) -> Iterator[ExposureOutcome]:
    """Yield the outcome of each exposure, written under OUT/<night>/<exposure>/, in time order.

    Each chip by itself: one that is skipped or fails is reported and the others go on. The exposures of one
    visit are compared before any of them makes alerts; its flux images wait on disk, in a folder of ``out``
    that goes when the visit is done. A report comes last, so that a folder with one is complete.
    """
    history = History(edges.database, out)
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(
        history=history,
        out=out,
        config=config,
        sink=sink,
        report_of=lambda one: exposure_folder(out, one.exposure) / "report.json",
    )
    begin(ledger)
    sink.flush(DELIVERY_DEADLINE_S)  # what an earlier run left
    with tempfile.TemporaryDirectory(prefix=".visit-", dir=out) as folder:
        visit: list[Seen] = []
        for files in found:
            seen = look_at(files, edges, out, Path(folder), config)
            if visit and not same_visit(visit[-1], seen, config.visit):
                yield from (finish(one, visit, ledger) for one in visit)
                forget(visit)
                visit = []
            visit.append(seen)
        yield from (finish(one, visit, ledger) for one in visit)


def look_at(files: ExposureFiles, edges: Edges, out: Path, parking: Path, config: PipelineConfig) -> Seen:
    """Return one exposure with its chips subtracted, without their pixels: those are parked."""
    start = time.perf_counter()
    chips: dict[str, Isolated[PairResult]] = {}
    seconds: dict[str, float] = {}
    traces: dict[str, Trace] = {}
    for chip in (chip for chip in CHIPS if chip in files.chips):
        began = time.perf_counter()
        looked = isolated(lambda chip=chip: _look(files, chip, edges, out, config), f"{files.id} {chip}")
        seconds[chip] = round(time.perf_counter() - began, 3)
        result = None
        if looked.result is not None:
            result, traces[chip] = looked.result
            if edges.save_images:
                write_difference(result, out / files.id.night / str(files.id) / chip)
            if config.visit.compare:
                _park(result, parking / f"{files.id}.{chip}")
            result = replace(result, subtracted=without_pixels(result.subtracted))
        chips[chip] = Isolated(result=result, status=looked.status, reason=looked.reason)
    return Seen(
        files=files,
        chips=chips,
        chip_seconds=seconds,
        traces=traces,
        parking=parking,
        seconds=time.perf_counter() - start,
    )


def _look(
    files: ExposureFiles, chip: str, edges: Edges, out: Path, config: PipelineConfig
) -> tuple[PairResult, Trace]:
    """Return a chip's result and its trace, the difference kept under ``out``."""
    result = process_chip(files, chip, edges, config)
    folder, kept = Path(files.id.night, str(files.id), chip), None
    if config.keep.days > 0 and config.keep.gigabytes > 0:
        kept = keep(result.subtracted, out / folder, result.exposure)
    name = None if kept is None else (folder / kept.name).as_posix()
    return result, Trace(coverage=coverage_of(result.subtracted), kept=name)


def _park(result: PairResult, stem: Path) -> None:
    difference = result.subtracted.difference
    for name in GLIMPSE:
        park(stem.with_name(f"{stem.name}.{name}.npy"), getattr(difference, name))


def _first_wcs(raw: RawChip, ahead: str) -> WCS | None:
    """Return the chip's WCS before its stars are seen, by .ahead files where a folder of them is given."""
    if ahead:
        return first_wcs(raw, read_ahead_folder(Path(ahead)), "ahead")
    return first_wcs(raw, read_distortions())


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A chip without its detector's signature, and the part of the template under it."""

    signature: Signature
    raw: RawChip
    part: TilePart


def process_chip(files: ExposureFiles, chip: str, edges: Edges, config: PipelineConfig) -> PairResult:
    """Return what changed on one chip since its template.

    Raises
    ------
    SkipChip
        When there is no template, or the pair cannot be subtracted.
    InputError
        When a file cannot be read.

    """
    ready = prepared(files, chip, edges, config)
    clock = Stopwatch()
    with clock.step("calibrate"):
        science = calibrated(ready.raw, config)
    names = (str(files.id), ready.part.tile_ids)
    return process_chips(science, as_template(ready.part), config, clock, names=names)


def prepared(files: ExposureFiles, chip: str, edges: Edges, config: PipelineConfig) -> Prepared:
    """Return one chip as `process_chip` compares it with its template.

    Raises
    ------
    SkipChip
        When there is no template.
    InputError
        When a file cannot be read.

    """
    raw = read_exposure_chip(files, chip)
    raw = replace(raw, wcs=_first_wcs(raw, config.register.ahead))
    if raw.wcs is None:
        raise SkipChip("the header gives no position to look a template up by")
    masters = None
    if edges.calibrations is not None:
        site, night = str(files.id.site), files.id.night
        masters = load_masters(edges.calibrations, site, chip, raw.filter, night)
    signature = find_signature(raw, masters, config.signature)
    raw = with_known_gain(signature.chip)
    if config.cosmics.clean:
        raw = cleaned(raw, config.cosmics)
    wanted = replace(config.template, margin_pix=max(config.template.margin_pix, POINTING_ERROR_PIX))
    part = template_for(edges.templates, chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted)
    return Prepared(signature=signature, raw=raw, part=part)
