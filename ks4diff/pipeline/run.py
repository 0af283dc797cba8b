"""KMTNet exposures against the template store: chip by chip, into the folders that the contract names."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.calibrations import load_masters
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.packets import alert_record
from ks4diff.io.sinks import AlertSink, DeliverySummary
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.deliver import write_tables
from ks4diff.pipeline.isolate import Isolated, isolated
from ks4diff.pipeline.pair import SOFTWARE, PairResult, process_pair
from ks4diff.pipeline.report import ChipReport, RunReport, peak_rss_mb
from ks4diff.pipeline.templates import template_for
from ks4diff.products.errors import SkipChip
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.ids import CHIPS
from ks4diff.stages.astrometry import nominal_wcs
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.mosaic import as_chip
from ks4diff.stages.signature import remove_signature

log = logging.getLogger(__name__)

DELIVERY_DEADLINE_S = 30.0
POINTING_ERROR_PIX = 320  # 2 arcminutes at 0.4 arcsec: what a raw header's position may be wrong by


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What a run reads beside its exposures."""

    templates: TemplateStore
    calibrations: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ExposureOutcome:
    """One exposure's report, its alert records and how delivery stands."""

    report: RunReport
    records: list[dict[str, Any]]
    delivery: DeliverySummary


def exposures_of(paths: Sequence[Path]) -> list[ExposureFiles]:
    """Return the complete exposures among files and folders, in time order; partial ones are logged."""
    found = find_exposures(paths)
    for files in found:
        for partial in files.partial:
            log.warning("%s: not complete yet, left alone", partial)
    return [files for files in found if files.chips]


def run_exposure(
    files: ExposureFiles,
    edges: Edges,
    out: Path,
    config: PipelineConfig,
    sink: AlertSink,
    *,
    save_images: bool = False,
) -> ExposureOutcome:
    """Return the outcome of one exposure, written under OUT/<night>/<exposure>/.

    Each chip by itself: one that is skipped or fails is reported and the others go on. The report comes last,
    so that a folder with a report is complete.
    """
    start = time.perf_counter()
    name = str(files.id)
    folder = out / files.id.night / name
    reports: list[ChipReport] = []
    records: list[dict[str, Any]] = []
    band = None
    for chip in (chip for chip in CHIPS if chip in files.chips):
        began = time.perf_counter()
        done: Isolated[PairResult] = isolated(
            lambda chip=chip: process_chip(files, chip, edges, config), f"{name} {chip}"
        )
        if done.result is None:
            seconds = {"total": round(time.perf_counter() - began, 3)}
            reports.append(ChipReport(chip=chip, status=done.status, reason=done.reason, seconds=seconds))
            continue
        write_tables(done.result, folder / chip, images=save_images)
        records += [alert_record(alert) for alert in done.result.alerts]
        reports.append(done.result.report)
        band = done.result.subtracted.chip.raw.filter
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
        filter=band,
        seconds_total=round(time.perf_counter() - start, 3),
        peak_rss_mb=peak_rss_mb(),
        chips=tuple(reports),
    )
    atomic_write_bytes(folder / "report.json", report.to_json().encode())
    return ExposureOutcome(report=report, records=records, delivery=delivery)


def process_chip(files: ExposureFiles, chip: str, edges: Edges, config: PipelineConfig) -> PairResult:
    """Return what changed on one chip since its template.

    Raises
    ------
    SkipChip
        When there is no template, or the pair cannot be subtracted.
    InputError
        When a file cannot be read.

    """
    raw = read_exposure_chip(files, chip)
    if raw.wcs is None:
        raw = replace(raw, wcs=nominal_wcs(raw))
    if raw.wcs is None:
        raise SkipChip("the header gives no position to look a template up by")
    masters = None
    if edges.calibrations is not None:
        site, night = str(files.id.site), files.id.night
        masters = load_masters(edges.calibrations, site, chip, raw.filter, night)
    raw = remove_signature(raw, masters, config.signature)
    wanted = replace(config.template, margin_pix=max(config.template.margin_pix, POINTING_ERROR_PIX))
    part = template_for(edges.templates, chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted)
    return process_pair(raw, as_chip(part), config, exposure=str(files.id), template_ids=part.tile_ids)
