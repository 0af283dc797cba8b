"""One science image against one reference: the whole story from pixels to alerts."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from ks4diff import __version__
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.report import ChipReport, Stopwatch
from ks4diff.products.alert import Alert, Provenance
from ks4diff.products.candidates import Candidates
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip
from ks4diff.products.difference import Difference
from ks4diff.stages.align import align
from ks4diff.stages.calibrate import calibrate
from ks4diff.stages.detect import detect
from ks4diff.stages.match import match
from ks4diff.stages.measure import NJY_ZEROPOINT, measure
from ks4diff.stages.package import package, select
from ks4diff.stages.quality import judge, scorr_std
from ks4diff.stages.register import register
from ks4diff.stages.score import RULES_THRESHOLD, RULES_VERSION, score
from ks4diff.stages.subtract import subtract

log = logging.getLogger(__name__)

SOFTWARE = f"ks4diff {__version__}"


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """What a subtraction of two images produced."""

    exposure: str
    chip: CalibratedChip
    template: AlignedTemplate
    difference: Difference
    candidates: Candidates
    alerts: list[Alert]
    provenance: Provenance
    report: ChipReport


def process_pair(science: RawChip, reference: RawChip, config: PipelineConfig) -> PairResult:
    """Return what changed between two images, from star patterns to alert packets.

    Raises
    ------
    SkipChip
        When the pair cannot be subtracted, with the reason.
    """
    clock = Stopwatch()
    with clock.step("calibrate"):
        chip = calibrate(science, config.calibrate)
        template_chip = calibrate(reference, config.calibrate)
    with clock.step("register"):
        registration = register(chip, template_chip, config.register)
    with clock.step("align"):
        template = align(template_chip, chip, registration, config.calibrate.psf)
    with clock.step("match"):
        matched = match(chip, template, config.match)
    with clock.step("subtract"):
        difference = subtract(chip, template, matched, registration.rms_pix, config.subtract)
    with clock.step("detect"):
        detections = detect(difference, config.detect)
    with clock.step("measure"):
        candidates = measure(detections, chip, template, difference, config.measure)
    with clock.step("score"):
        candidates = score(candidates, difference.psf.fwhm_pix, config.score)
    quality = judge(chip, template, registration, difference, config.quality)
    exposure = exposure_id(science)
    min_rb = RULES_THRESHOLD if config.min_rb is None else config.min_rb
    provenance = Provenance(
        software=SOFTWARE,
        config_digest=config.digest(),
        template_ids=(exposure_id(reference),),
        model_id=RULES_VERSION,
        science_file=Path(science.file).name,
        seeing=chip.psf.fwhm_pix,
        template_seeing=template.psf.fwhm_pix,
        flux_scale=matched.flux_scale,
        astrometric_rms_pix=registration.rms_pix,
    )
    with clock.step("package"):
        rows, dropped = select(candidates, min_rb=min_rb, failed=quality.verdict == "fail")
        alerts = package(
            candidates,
            rows,
            science,
            provenance,
            exposure=exposure,
            rb=(RULES_VERSION, min_rb),
            limiting_mag=_limits(difference, science)[1],
        )
    log.info("%s: %d candidates, %d alerts, %s", exposure, len(candidates), len(alerts), quality.verdict)
    return PairResult(
        exposure=exposure,
        chip=chip,
        template=template,
        difference=difference,
        candidates=candidates,
        alerts=alerts,
        provenance=provenance,
        report=_report(
            clock, (chip, template, registration, matched, difference, candidates), quality, alerts, dropped
        ),
    )


def _report(clock, products, quality, alerts, dropped) -> ChipReport:
    """Return the report of one processed chip."""
    chip, template, registration, matched, difference, candidates = products
    scale = _pixel_scale(chip.raw)
    good = difference.flags == 0
    limiting_flux, limiting_mag = _limits(difference, chip.raw)
    return ChipReport(
        chip=chip.raw.chip,
        status="ok",
        seconds=clock.seconds,
        n_stars=len(chip.stars),
        n_matched=registration.n_matched,
        astrometric_rms_pix=registration.rms_pix,
        registration=registration.method,
        flux_scale=matched.flux_scale,
        flux_scale_error=matched.flux_scale_error,
        seeing_arcsec=None if scale is None else chip.psf.fwhm_pix * scale,
        template_seeing_arcsec=None if scale is None else template.psf.fwhm_pix * scale,
        seeing_pix=chip.psf.fwhm_pix,
        template_seeing_pix=template.psf.fwhm_pix,
        noise=matched.science_noise.sigma,
        noise_method=matched.science_noise.method,
        gain=chip.gain,
        template_ids=template.tile_ids,
        coverage=template.coverage,
        masked_fraction=float(1 - good.mean()),
        scorr_std=scorr_std(difference),
        scorr_std_sky=scorr_std(difference, chip.sky),
        limiting_mag=limiting_mag,
        limiting_flux=limiting_flux,
        flux_unit=candidates.flux_unit,
        n_candidates=len(candidates),
        n_alerts=len(alerts),
        dropped=dropped,
        quality=quality.verdict,
        quality_reasons=quality.reasons,
    )


def _limits(difference: Difference, raw: RawChip) -> tuple[float | None, float | None]:
    """Return the median 5-sigma (flux, AB magnitude) over unmasked pixels; None where not known."""
    good = difference.flags == 0
    if not good.any():
        return None, None
    counts = 5.0 * float(np.median(difference.flux_err[good]))
    if raw.zeropoint is None:
        return counts, None
    magnitude = raw.zeropoint - 2.5 * float(np.log10(counts))
    return 10 ** (0.4 * (NJY_ZEROPOINT - magnitude)), magnitude


def _pixel_scale(raw: RawChip) -> float | None:
    """Return arcseconds per pixel from the WCS, or None without one."""
    return None if raw.wcs is None else float(np.mean(proj_plane_pixel_scales(raw.wcs.celestial))) * 3600


def exposure_id(raw: RawChip) -> str:
    """Return the name of an exposure of no known survey: its file's stem and a digest of its pixels.

    Equal pixels under an equal name are the same exposure, wherever the file lies.
    """
    stem = Path(raw.file).name.split(".fit")[0]
    return f"{stem}-{hashlib.sha256(np.ascontiguousarray(raw.data)).hexdigest()[:12]}"
