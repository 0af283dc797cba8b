"""KMTNet exposures against the template store: chip by chip, into the folders that the contract names."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astropy.wcs import WCS

from ks4diff.io.ahead import read_ahead_folder
from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.calibrations import load_masters
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.packets import alert_record
from ks4diff.io.scratch import park, parked
from ks4diff.io.sinks import AlertSink, DeliverySummary
from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_tables import read_distortions
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.deliver import write_candidates, write_difference
from ks4diff.pipeline.isolate import Isolated, isolated
from ks4diff.pipeline.pair import SOFTWARE, PairResult, calibrated, decided, process_chips
from ks4diff.pipeline.report import ChipReport, RunReport, Stopwatch, peak_rss_mb
from ks4diff.pipeline.templates import template_for
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.ids import CHIPS
from ks4diff.products.subtracted import without_pixels
from ks4diff.products.template import TilePart
from ks4diff.stages.astrometry import first_wcs
from ks4diff.stages.cosmics import cleaned
from ks4diff.stages.detector import with_known_gain
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.photometry import njy_per_count
from ks4diff.stages.signature import Signature, find_signature
from ks4diff.stages.visit import Glimpse, VisitConfig, flag_absent

log = logging.getLogger(__name__)

DELIVERY_DEADLINE_S = 30.0
GLIMPSE = ("flux", "flux_err", "flags")  # of a difference, kept until its visit is compared
POINTING_ERROR_PIX = 320  # 2 arcminutes at 0.4 arcsec: what a raw header's position may be wrong by


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What a run reads beside its exposures."""

    templates: TemplateStore
    calibrations: Path | None = None
    save_images: bool = False


@dataclass(frozen=True, kw_only=True)
class ExposureOutcome:
    """One exposure's report, its alert records and how delivery stands."""

    report: RunReport
    records: list[dict[str, Any]]
    delivery: DeliverySummary


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One exposure after its chips were subtracted, waiting for the rest of its visit."""

    files: ExposureFiles
    chips: Mapping[str, Isolated[PairResult]]
    chip_seconds: Mapping[str, float]
    parking: Path
    seconds: float

    @property
    def example(self) -> RawChip | None:
        """What the first good chip's header says, None when no chip is good."""
        good = (done.result for done in self.chips.values() if done.result is not None)
        return next((result.subtracted.chip.raw for result in good), None)

    def glimpses(self) -> Iterator[Glimpse]:
        """Yield what the good chips show, from the parked images."""
        for chip, done in self.chips.items():
            if done.result is None or done.result.subtracted.chip.raw.wcs is None:
                continue
            raw = done.result.subtracted.chip.raw
            images = {name: parked(self.parking / f"{self.files.id}.{chip}.{name}.npy") for name in GLIMPSE}
            unit = 1.0 if raw.zeropoint is None else njy_per_count(raw.zeropoint)
            yield Glimpse(**images, wcs=raw.wcs, unit=unit)


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
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".visit-", dir=out) as folder:
        visit: list[Seen] = []
        for files in found:
            seen = look_at(files, edges, out, Path(folder), config)
            if visit and not same_visit(visit[-1], seen, config.visit):
                yield from (finish(one, visit, out, config, sink) for one in visit)
                forget(visit)
                visit = []
            visit.append(seen)
        yield from (finish(one, visit, out, config, sink) for one in visit)


def look_at(files: ExposureFiles, edges: Edges, out: Path, parking: Path, config: PipelineConfig) -> Seen:
    """Return one exposure with its chips subtracted, without their pixels: those are parked."""
    start = time.perf_counter()
    chips: dict[str, Isolated[PairResult]] = {}
    seconds: dict[str, float] = {}
    for chip in (chip for chip in CHIPS if chip in files.chips):
        began = time.perf_counter()
        done = isolated(lambda chip=chip: process_chip(files, chip, edges, config), f"{files.id} {chip}")
        seconds[chip] = round(time.perf_counter() - began, 3)
        if done.result is not None:
            if edges.save_images:
                write_difference(done.result, out / files.id.night / str(files.id) / chip)
            if config.visit.compare:
                _park(done.result, parking / f"{files.id}.{chip}")
            done = replace(
                done, result=replace(done.result, subtracted=without_pixels(done.result.subtracted))
            )
        chips[chip] = done
    return Seen(
        files=files,
        chips=chips,
        chip_seconds=seconds,
        parking=parking,
        seconds=time.perf_counter() - start,
    )


def _park(result: PairResult, stem: Path) -> None:
    difference = result.subtracted.difference
    for name in GLIMPSE:
        park(stem.with_name(f"{stem.name}.{name}.npy"), getattr(difference, name))


def same_visit(before: Seen, after: Seen, config: VisitConfig) -> bool:
    """Return whether two exposures, in time order, are of one visit: one site, one band, no long gap."""
    first, second = before.example, after.example
    if not config.compare or first is None or second is None:
        return False
    if first.mjd_mid is None or second.mjd_mid is None:
        return False
    minutes = (second.mjd_mid - first.mjd_mid) * 1440
    same = before.files.id.site == after.files.id.site and first.filter == second.filter
    return same and 0 <= minutes <= config.longest_gap_minutes


def forget(visit: Sequence[Seen]) -> None:
    """Remove the parked images of a visit."""
    for seen in visit:
        for path in seen.parking.glob(f"{seen.files.id}.*.npy"):
            path.unlink()


def finish(
    seen: Seen, visit: Sequence[Seen], out: Path, config: PipelineConfig, sink: AlertSink
) -> ExposureOutcome:
    """Return the outcome of one exposure of a visit: compared, its alerts decided, everything written."""
    start = time.perf_counter()
    files = seen.files
    name, folder = str(files.id), out / files.id.night / str(files.id)
    glimpses = [glimpse for other in visit if other is not seen for glimpse in other.glimpses()]
    reports: list[ChipReport] = []
    records: list[dict[str, Any]] = []
    for chip, done in seen.chips.items():
        if done.result is None:
            took = {"total": seen.chip_seconds[chip]}
            reports.append(ChipReport(chip=chip, status=done.status, reason=done.reason, seconds=took))
            continue
        result = done.result
        if glimpses:
            flagged = flag_absent(result.subtracted.candidates, glimpses, config.visit)
            result = decided(
                replace(result, subtracted=replace(result.subtracted, candidates=flagged)), config
            )
        write_candidates(result, folder / chip)
        records += [alert_record(alert) for alert in result.alerts]
        reports.append(result.report)
    reports += [
        ChipReport(chip=chip, status="skipped", reason="no file with this chip") for chip in files.missing
    ]
    sink.emit(name, records)
    delivery = sink.flush(DELIVERY_DEADLINE_S)
    report = RunReport(
        software=SOFTWARE,
        config_digest=config.digest(),
        exposure=name,
        night=files.id.night,
        site=str(files.id.site),
        filter=None if seen.example is None else seen.example.filter,
        seconds_total=round(seen.seconds + time.perf_counter() - start, 3),
        peak_rss_mb=peak_rss_mb(),
        chips=tuple(reports),
    )
    atomic_write_bytes(folder / "report.json", report.to_json().encode())
    return ExposureOutcome(report=report, records=records, delivery=delivery)


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
