"""Run a pair and put what it found where it belongs: files, pictures, archive and Kafka."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff.io import fits_tables, pictures
from ks4diff.io.history import History
from ks4diff.io.sinks import DeliverySummary, check_destination, open_sink
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ledger import Ledger, begin, close_exposure
from ks4diff.pipeline.pair import SOFTWARE, PairResult, process_pair
from ks4diff.pipeline.report import RunReport, peak_rss_mb
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError
from ks4diff.products.sightings import ExposureSightings
from ks4diff.stages.coverage import coverage_of
from ks4diff.stages.package import row_of
from ks4diff.stages.score import rank
from ks4diff.stages.sightings import chip_sightings

log = logging.getLogger(__name__)

DELIVERY_DEADLINE_S = 30.0  # a broker that is away must not hold up the images behind
MAX_TRIPLETS = 30  # pictures for people; the packets hold every stamp


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left behind: its report, alert records, the files for people and how delivery stands."""

    report: RunReport
    records: list[dict[str, Any]]
    files: list[Path]
    delivery: DeliverySummary
    unassociated: int = 0  # exposures whose alerts wait for the history

    @property
    def undelivered(self) -> int:
        """Alerts in the outbox that the broker has not taken, or has refused, and exposures in the queue."""
        return self.delivery.waiting + self.delivery.dead + self.unassociated


def run_pair(
    science: RawChip,
    reference: RawChip,
    out: Path,
    config: PipelineConfig,
    *,
    kafka: str | None = None,
    topic: str | None = None,
    database: str | None = None,
) -> Outcome:
    """Return the outcome of a subtraction, everything written under ``out`` and offered to Kafka.

    Nothing is written before the subtraction has succeeded; the report comes last, so that a folder with a
    report is complete.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted.
    ConfigError
        When ``kafka``, ``topic`` or ``database`` is malformed, or ``out`` cannot be a folder.

    """
    start = time.perf_counter()
    check_destination(kafka, topic, config.kafka)
    history = History(database, out)
    result = process_pair(science, reference, config)
    _make_folder(out)
    where = {"kafka": kafka, "topic": topic, "settings": config.kafka}
    sink = open_sink(lambda exposure: out / "alerts.avro", out, **where)
    try:
        write_candidates(result, out)
        write_difference(result, out)
        files = _draw(result, out)
        path = out / "report.json"
        ledger = Ledger(history=history, out=out, config=config, sink=sink, report_of=lambda _: path)
        begin(ledger)
        path.unlink(missing_ok=True)  # an earlier pair's: a folder with a report is complete
        report = RunReport(
            software=SOFTWARE,
            config_digest=config.digest(),
            exposure=result.exposure,
            night=None,
            site=science.site,
            filter=science.filter,
            seconds_total=time.perf_counter() - start,
            peak_rss_mb=peak_rss_mb(),
            chips=(result.report,),
        )
        closed = close_exposure(report, _sightings(result, science), ledger)
        delivery = sink.flush(DELIVERY_DEADLINE_S)
    finally:
        sink.close()
    if delivery.waiting:
        log.warning("%d messages wait in %s", delivery.waiting, out / "outbox.db")
    return Outcome(
        report=closed.report,
        records=closed.records,
        files=[*files, path],
        delivery=delivery,
        unassociated=ledger.spool.waiting(),
    )


def _sightings(result: PairResult, science: RawChip) -> ExposureSightings:
    subtracted = result.subtracted
    chip = chip_sightings(subtracted, result.alerts, result.exposure, coverage_of(subtracted), None)
    return ExposureSightings(
        exposure=result.exposure,
        night=None,
        site=science.site,
        filter=science.filter,
        mjd=science.mjd_mid,
        exptime=science.exptime,
        chips=(chip,),
        alerts=tuple(result.alerts),
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


def write_candidates(result: PairResult, folder: Path) -> None:
    """Write candidates.fits into a folder."""
    subtracted = result.subtracted
    fits_tables.write_candidates(
        folder / "candidates.fits",
        subtracted.candidates,
        meta=_meta(result),
        reasons=subtracted.rb_reasons,
    )


def write_difference(result: PairResult, folder: Path) -> None:
    """Write difference.fits into a folder."""
    subtracted = result.subtracted
    path, wcs = folder / "difference.fits", subtracted.chip.raw.wcs
    fits_tables.write_difference(path, difference=subtracted.difference, wcs=wcs, meta=_meta(result))


def _meta(result: PairResult) -> dict[str, Any]:
    return {
        "software": result.provenance.software,
        "config_digest": result.provenance.config_digest,
        "template_ids": result.provenance.template_ids,
        "model_id": result.provenance.model_id,
        "rb_features": result.provenance.rb_features,
        "science_file": result.provenance.science_file,
        "exposure": result.exposure,
        "flux_scale": result.provenance.flux_scale,
        "quality": result.report.quality,
    }


def _draw(result: PairResult, out: Path) -> list[Path]:
    """Draw the best candidates' triplets and an overview; return the overview and the alerts' triplets."""
    subtracted = result.subtracted
    candidates, difference = subtracted.candidates, subtracted.difference
    folder = out / "triplets"
    if folder.exists():
        shutil.rmtree(folder)  # an earlier run's candidates would stand among this one's
    folder.mkdir()
    alerts = {row_of(alert) for alert in result.alerts}
    drawn = []
    for place, row in enumerate(rank(candidates)[:MAX_TRIPLETS], start=1):
        measured = candidates.table[row]
        path = folder / f"{place:03d}_x{measured['x']:.0f}_y{measured['y']:.0f}.png"
        pictures.write_triplet(
            path,
            candidates.cutout(row),
            caption=f"x {measured['x']:.1f}  y {measured['y']:.1f}  Scorr {measured['scorr']:+.1f}  "
            f"rb {measured['rb']:.2f}",
            noise=difference.noise,
        )
        if int(row) in alerts:
            drawn.append(path)
    good = difference.flags == 0
    overview = out / "overview.png"
    pictures.write_overview(
        overview,
        science=subtracted.chip.image.data,
        difference=np.where(good, difference.difference, np.nan),
        score=np.where(good, difference.score_corr, np.nan),
        x=candidates.table["x"],
        y=candidates.table["y"],
        accepted=np.isin(np.arange(len(candidates)), list(alerts)),
        caption=f"{result.exposure}: candidates {len(candidates)}, alerts {len(alerts)}",
    )
    return [overview, *drawn]
