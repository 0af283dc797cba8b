"""One visit: what its exposures show together decides their alerts; then everything is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ks4diff.io.kept import prune_kept
from ks4diff.io.scratch import parked
from ks4diff.io.sinks import DeliverySummary
from ks4diff.pipeline.deliver import DELIVERY_DEADLINE_S, write_candidates
from ks4diff.pipeline.isolate import Isolated
from ks4diff.pipeline.ledger import Ledger, close_exposure
from ks4diff.pipeline.pair import SOFTWARE, PairResult, decided
from ks4diff.pipeline.report import ChipReport, RunReport, peak_rss_mb
from ks4diff.products.alert import Alert
from ks4diff.products.chip import RawChip
from ks4diff.products.coverage import ChipCoverage
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.sightings import ChipSightings, ExposureSightings
from ks4diff.stages.photometry import njy_per_count
from ks4diff.stages.sightings import chip_sightings
from ks4diff.stages.visit import Glimpse, VisitConfig, flag_absent

GLIMPSE = ("flux", "flux_err", "flags")  # of a difference, kept until its visit is compared


@dataclass(frozen=True, kw_only=True)
class ExposureOutcome:
    """One exposure's report, its alert records and how delivery stands."""

    report: RunReport
    records: list[dict[str, Any]]
    delivery: DeliverySummary
    waiting: int = 0  # exposures whose alerts wait for the history


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a chip's pixels leave behind: where it looked, and its kept difference relative to the run."""

    coverage: ChipCoverage | None
    kept: str | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One exposure after its chips were subtracted, waiting for the rest of its visit."""

    files: ExposureFiles
    chips: Mapping[str, Isolated[PairResult]]
    chip_seconds: Mapping[str, float]
    traces: Mapping[str, Trace]
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


def finish(seen: Seen, visit: Sequence[Seen], ledger: Ledger) -> ExposureOutcome:
    """Return the outcome of one exposure of a visit: compared, its alerts decided, everything written."""
    start = time.perf_counter()
    files, out, config = seen.files, ledger.out, ledger.config
    name, folder = str(files.id), out / files.id.night / str(files.id)
    glimpses = [glimpse for other in visit if other is not seen for glimpse in other.glimpses()]
    reports: list[ChipReport] = []
    sightings: list[ChipSightings] = []
    alerts: list[Alert] = []
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
        trace = seen.traces[chip]
        sightings.append(chip_sightings(result.subtracted, result.alerts, name, trace.coverage, trace.kept))
        alerts += result.alerts
        reports.append(result.report)
    reports += [
        ChipReport(chip=chip, status="skipped", reason="no file with this chip") for chip in files.missing
    ]
    report = RunReport(
        software=SOFTWARE,
        config_digest=config.digest(),
        exposure=name,
        night=files.id.night,
        site=str(files.id.site),
        filter=None if seen.example is None else seen.example.filter,
        seconds_total=seen.seconds + time.perf_counter() - start,
        peak_rss_mb=peak_rss_mb(),
        chips=tuple(reports),
    )
    closed = close_exposure(report, _exposure_sightings(seen, sightings, alerts), ledger)
    prune_kept(out, days=config.keep.days, gigabytes=config.keep.gigabytes)
    return ExposureOutcome(
        report=closed.report,
        records=closed.records,
        delivery=ledger.sink.flush(DELIVERY_DEADLINE_S),
        waiting=ledger.spool.waiting(),
    )


def _exposure_sightings(
    seen: Seen, chips: Sequence[ChipSightings], alerts: Sequence[Alert]
) -> ExposureSightings:
    raw = seen.example
    return ExposureSightings(
        exposure=str(seen.files.id),
        night=seen.files.id.night,
        site=str(seen.files.id.site),
        filter=None if raw is None else raw.filter,
        mjd=None if raw is None else raw.mjd_mid,
        exptime=None if raw is None else raw.exptime,
        chips=tuple(chips),
        alerts=tuple(alerts),
    )
