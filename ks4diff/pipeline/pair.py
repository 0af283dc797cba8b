"""One science image against one reference: the whole story from pixels to alerts."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ks4diff import __version__
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.rb import features_id, model_id, scored, scoring, threshold
from ks4diff.pipeline.report import ChipReport, Stopwatch, chip_report
from ks4diff.products.alert import Alert, Provenance
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip
from ks4diff.products.difference import Match
from ks4diff.products.errors import SkipChip
from ks4diff.products.registration import Registration
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.align import align
from ks4diff.stages.astrometry import solved
from ks4diff.stages.calibrate import calibrate
from ks4diff.stages.detect import detect
from ks4diff.stages.features import Scene
from ks4diff.stages.ghosts import flag_ghosts
from ks4diff.stages.hits import flag_hits
from ks4diff.stages.match import match
from ks4diff.stages.measure import cut_out, measure
from ks4diff.stages.package import package, select
from ks4diff.stages.photometry import limiting_flux, star_scale
from ks4diff.stages.quality import judge
from ks4diff.stages.register import register
from ks4diff.stages.residuals import flag_residuals
from ks4diff.stages.subtract import subtract
from ks4diff.stages.trails import flag_trails

log = logging.getLogger(__name__)

# BLAS's own threads wait in loops, half of align's processor time where cores are busy, and how many they are
# changes the last bits of sums
_one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")

SOFTWARE = f"ks4diff {__version__}"
UNIX_EPOCH_MJD = 40587.0


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """A subtraction with the alerts and the report that came of it."""

    exposure: str
    subtracted: SubtractedChip
    alerts: list[Alert]
    provenance: Provenance
    report: ChipReport


def process_pair(
    science: RawChip,
    reference: RawChip,
    config: PipelineConfig,
    *,
    exposure: str | None = None,
    template_ids: tuple[str, ...] | None = None,
) -> PairResult:
    """Return what changed between two images, both as read, from star patterns to alert packets.

    ``exposure`` and ``template_ids`` name them; without, files and digests of the pixels do.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted, with the reason.

    """
    clock = Stopwatch()
    names = (exposure or exposure_id(science), template_ids or (exposure_id(reference),))
    with clock.step("calibrate"):
        chips = calibrated(science, config), calibrated(reference, config)
    return process_chips(*chips, config, clock, names=names)


def process_chips(
    chip: CalibratedChip,
    template: CalibratedChip,
    config: PipelineConfig,
    clock: Stopwatch,
    *,
    names: tuple[str, tuple[str, ...]],
) -> PairResult:
    """Return what changed between two calibrated images; ``names`` are those of exposure and templates.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted, with the reason.

    """
    exposure, template_ids = names
    subtracted = subtract_chips(chip, template, config, clock)
    provenance = _provenance(subtracted, template_ids, config)
    report = chip_report(subtracted, provenance, seconds=clock.seconds)
    undecided = PairResult(
        exposure=exposure, subtracted=subtracted, alerts=[], provenance=provenance, report=report
    )
    return decided(undecided, config)


def decided(result: PairResult, config: PipelineConfig) -> PairResult:
    """Return a result with the alerts that its candidates make, and the counts of them in its report.

    Once more after candidates have been flagged by what other exposures show.
    """
    min_rb = threshold(config.score, config.min_rb)
    rows, dropped = select(result.subtracted, min_rb=min_rb)
    alerts = package(
        result.subtracted,
        rows,
        result.provenance,
        exposure=result.exposure,
        min_rb=min_rb,
        scoring=scoring(result.subtracted.rb_reasons),
        now=time.time() / 86400 + UNIX_EPOCH_MJD,
    )
    log.info(
        "%s: %d alerts of %d candidates", result.exposure, len(alerts), len(result.subtracted.candidates)
    )
    return replace(
        result, alerts=alerts, report=replace(result.report, n_alerts=len(alerts), dropped=dropped)
    )


def subtract_chips(
    chip: CalibratedChip, template_chip: CalibratedChip, config: PipelineConfig, clock: Stopwatch
) -> SubtractedChip:
    """Return the scored candidates of a pair and all that led to them, each step timed by ``clock``.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted, with the reason.

    """
    return subtract_matched(match_chips(chip, template_chip, config, clock), config, clock)


@_one_blas_thread
def subtract_matched(
    pair: tuple[CalibratedChip, AlignedTemplate, Registration, Match],
    config: PipelineConfig,
    clock: Stopwatch,
) -> SubtractedChip:
    """Return what `subtract_chips` does, of a pair that `match_chips` has matched."""
    chip, template, registration, matched = pair
    with clock.step("subtract"):
        difference = subtract(chip, template, matched, registration, config.subtract)
    with clock.step("detect"):
        detections = detect(difference, config.detect)
    with clock.step("measure"):
        candidates = measure(detections, chip, template, difference, config.measure)
    with clock.step("flag"):
        candidates = flag_hits(candidates, chip, template, matched, config.hits)
        candidates = flag_trails(candidates, difference, config.trails)
        candidates = flag_ghosts(candidates, chip, config.ghosts, config.signature.crosstalk)
        candidates = flag_residuals(candidates, difference, template, config.residuals)
    with clock.step("score"):
        scene = Scene(chip, template, matched, difference)
        candidates, reasons = scored(candidates, scene, config.score)
        candidates = cut_out(candidates, chip, template, difference, config.measure)
    return SubtractedChip(
        chip=chip,
        template=template,
        registration=registration,
        match=matched,
        difference=difference,
        candidates=candidates,
        quality=judge(chip, template, registration, difference, candidates, config.quality, match=matched),
        limiting_flux=limiting_flux(difference),
        rb_reasons=reasons,
    )


@_one_blas_thread
def match_chips(
    chip: CalibratedChip, template_chip: CalibratedChip, config: PipelineConfig, clock: Stopwatch
) -> tuple[CalibratedChip, AlignedTemplate, Registration, Match]:
    """Return (chip with its WCS solved, template on its grid, registration, match): all but the subtraction.

    Raises
    ------
    SkipChip
        When the pair cannot be compared, with the reason.

    """
    with clock.step("register"):
        registration = register(chip, template_chip, config.register)
    with clock.step("align"):
        template = align(template_chip, chip, registration, config.calibrate.psf)
    with clock.step("match"):
        matched = match(chip, template, config.match)
        per_count = star_scale(matched.scale, template.area)
        chip = replace(chip, raw=solved(chip, registration, template_chip.raw, per_count))
    return chip, template, registration, matched


@_one_blas_thread
def calibrated(raw: RawChip, config: PipelineConfig) -> CalibratedChip:
    """Return the calibrated chip; a refusal names the file."""
    try:
        return calibrate(raw, config.calibrate)
    except SkipChip as skip:
        raise SkipChip(f"{raw.file}, HDU {raw.hdu}: {skip.reason}", **skip.numbers) from None


def _provenance(
    subtracted: SubtractedChip, template_ids: tuple[str, ...], config: PipelineConfig
) -> Provenance:
    return Provenance(
        software=SOFTWARE,
        config_digest=config.digest(),
        template_ids=template_ids,
        model_id=model_id(config.score),
        rb_features=features_id(config.score),
        science_file=Path(subtracted.chip.raw.file).name,
        seeing=subtracted.chip.psf.fwhm_pix,
        template_seeing=subtracted.template.psf.fwhm_pix,
        flux_scale=subtracted.match.flux_scale,
        astrometric_rms_pix=subtracted.registration.rms_pix,
    )


def exposure_id(raw: RawChip) -> str:
    """Return the name of an exposure of no known survey: its file's stem and a digest of its pixels.

    Equal pixels under an equal name are the same exposure, wherever the file lies.
    """
    stem = Path(raw.file).name.split(".fit")[0]
    return f"{stem}-{hashlib.sha256(np.ascontiguousarray(raw.data)).hexdigest()[:12]}"
