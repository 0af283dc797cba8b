"""Inject sources into exposures as read, subtract again, and see which come back and what else does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.isolate import isolated
from ks4diff.pipeline.pair import calibrated, exposure_id, subtract_chips
from ks4diff.pipeline.rb import threshold
from ks4diff.pipeline.report import Stopwatch
from ks4diff.pipeline.run import Edges, prepared
from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.ids import CHIPS
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.inject import InjectConfig, inject
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.package import select
from ks4diff.stages.photometry import njy_per_count
from ks4diff.stages.recover import RECOVERED, RecoverConfig, near_any, recover, unflagged

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """How often sources are injected into each chip, which, and what counts as found."""

    rounds: int = 3  # each with other sources: 20 per Mpix do not meet each other, 60 would
    inject: InjectConfig = field(default_factory=lambda: InjectConfig(snr_range=(4.0, 80.0)))
    recover: RecoverConfig = field(default_factory=RecoverConfig)

    def __post_init__(self) -> None:
        """Refuse no rounds at all."""
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")


class Subject(NamedTuple):
    """One chip to inject into: read when its turn comes, as (chip without signature, its template)."""

    exposure: str
    chip: str
    read: Callable[[], tuple[RawChip, CalibratedChip]]


class Unflagged(NamedTuple):
    """Candidates without a rejecting flag: |S_corr|, rb and whether each is an alert, [n] each."""

    scorr: np.ndarray
    rb: np.ndarray
    alert: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ChipEfficiency:
    """What was measured on one chip.

    ``rows`` [n] of `ks4diff.stages.recover.RECOVERED`, all rounds; ``plain`` is found in the exposure as it
    is; ``made``, of each round, is neither at an injected place nor found in the exposure as it is.
    """

    exposure: str
    chip: str
    mpix: float
    quality: str
    zeropoint: float | None  # AB magnitude of one count
    seeds: tuple[int, ...]  # of the rounds
    rows: np.ndarray
    taken: int  # injected onto a candidate of the exposure as it is, not counted in ``rows``
    plain: Unflagged
    made: tuple[Unflagged, ...]


@dataclass(frozen=True, kw_only=True)
class ChipOutcome:
    """A chip's measurement, or why there is none."""

    exposure: str
    chip: str
    status: str  # ok, skipped, failed
    reason: str | None
    measured: ChipEfficiency | None


def exposure_subjects(
    found: Sequence[ExposureFiles], edges: Edges, config: PipelineConfig, chips: Sequence[str] = CHIPS
) -> Iterator[Subject]:
    """Yield the chips of KMTNet exposures against their templates."""

    def read(files: ExposureFiles, chip: str) -> tuple[RawChip, CalibratedChip]:
        ready = prepared(files, chip, edges, config)
        return ready.raw, as_template(ready.part)

    for files in found:
        for chip in (chip for chip in chips if chip in files.chips):
            yield Subject(str(files.id), chip, lambda files=files, chip=chip: read(files, chip))


def pair_subject(science: RawChip, reference: RawChip, config: PipelineConfig) -> Subject:
    """Return two images of any instrument as a chip and its template."""
    return Subject(exposure_id(science), science.chip, lambda: (science, calibrated(reference, config)))


def measured_chips(
    subjects: Iterator[Subject], config: PipelineConfig, efficiency: EfficiencyConfig
) -> Iterator[ChipOutcome]:
    """Yield what each chip gave; one that is skipped or fails stops no other."""
    for one in subjects:
        done = isolated(lambda one=one: measure_chip(one, config, efficiency), f"{one.exposure} {one.chip}")
        yield ChipOutcome(
            exposure=one.exposure,
            chip=one.chip,
            status=done.status,
            reason=done.reason,
            measured=done.result,
        )


def measure_chip(subject: Subject, config: PipelineConfig, efficiency: EfficiencyConfig) -> ChipEfficiency:
    """Return what came of some rounds of injection into one chip.

    Nothing of the exposure is changed: sources are added to pixels in memory, after the detector's signature
    is gone and before anything is measured. The exposure is subtracted once without them, for the places
    of its own candidates and for the galaxies of its template, which serve as hosts.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted.

    """
    raw, template = subject.read()
    plain = calibrated(raw, config)
    done = subtract_chips(plain, template, config, Stopwatch())
    own, galaxies = done.candidates.table, template_galaxies(done, efficiency.inject)
    min_rb, reach = threshold(config.score, config.min_rb), efficiency.recover.match_pix
    seeds, rows, made, taken = [], [], [], 0
    first = _unflagged(done, min_rb, np.ones(len(own), dtype=bool))
    zeropoint, quality = done.chip.raw.zeropoint, done.quality.verdict
    del done
    for number in range(efficiency.rounds):
        seeds.append(round_seed(efficiency.inject.seed, subject, number))
        wanted = replace(efficiency.inject, seed=seeds[-1])
        after, injected = with_injected(raw, plain, template, config, wanted, galaxies=galaxies)
        table = after.candidates.table
        known = near_any(table, injected["x"], injected["y"], reach) | near_any(
            table, own["x"], own["y"], reach
        )
        made.append(_unflagged(after, min_rb, ~known))
        clear = ~near_any(injected, own["x"], own["y"], reach)
        taken += int((~clear).sum())
        alerts, _ = select(after, min_rb=min_rb)
        unit = 1.0 if after.chip.raw.zeropoint is None else njy_per_count(after.chip.raw.zeropoint)
        back = recover(
            injected[clear], after.candidates, after.difference, efficiency.recover, unit=unit, alerts=alerts
        )
        rows.append(back)
        log.info("%s %s, round %d: %d injected", subject.exposure, subject.chip, number + 1, len(injected))
    return ChipEfficiency(
        exposure=subject.exposure,
        chip=subject.chip,
        mpix=raw.data.size / 1e6,
        quality=quality,
        zeropoint=zeropoint,
        seeds=tuple(seeds),
        rows=np.concatenate(rows or [np.zeros(0, RECOVERED)]),
        taken=taken,
        plain=first,
        made=tuple(made),
    )


def with_injected(
    raw: RawChip,
    plain: CalibratedChip,
    template: CalibratedChip,
    config: PipelineConfig,
    wanted: InjectConfig,
    *,
    galaxies: np.ndarray,
) -> tuple[SubtractedChip, np.ndarray]:
    """Return (the subtraction after sources were added to the chip as read, the table of those sources).

    ``plain`` is the chip calibrated without them; ``galaxies`` [3, n] are the hosts of `inject`.
    """
    changed, injected = inject(raw, plain, wanted, galaxies=galaxies)
    return subtract_chips(calibrated(changed, config), template, config, Stopwatch()), injected


def template_galaxies(done: SubtractedChip, config: InjectConfig) -> np.ndarray:
    """Return float64 [3, n]: x, y and FWHM, science pixels, of the template's sources wider than its stars.

    Of those that the science image can show: fainter ones are no wider than noise makes them.
    """
    stars, none = done.template.stars, np.empty((3, 0))
    if stars is None or not stars.clean.any():
        return none
    usual = float(np.median(stars.fwhm[stars.clean]))
    bright = stars.flux * done.match.flux_scale > done.limiting_flux
    rows, columns = done.chip.image.shape
    inside = (stars.x > 0) & (stars.x < columns - 1) & (stars.y > 0) & (stars.y < rows - 1)
    wide = bright & inside & (stars.fwhm > config.galaxy_width * usual)
    return np.array([stars.x[wide], stars.y[wide], stars.fwhm[wide]])


def round_seed(seed: int, subject: Subject, number: int) -> int:
    """Return the seed of one round: another for every chip, the same whenever it is asked for."""
    text = f"{seed}/{subject.exposure}/{subject.chip}/{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _unflagged(done: SubtractedChip, min_rb: float, which: np.ndarray) -> Unflagged:
    table = done.candidates.table
    rows = np.flatnonzero(which & unflagged(table))
    alerts, _ = select(done, min_rb=min_rb)
    return Unflagged(
        np.abs(table["scorr"][rows]).astype(np.float64),
        np.nan_to_num(table["rb"][rows]).astype(np.float64),
        np.isin(rows, alerts),
    )
