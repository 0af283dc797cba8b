"""What a run tells of itself: report.json."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ks4diff.products.alert import Provenance
from ks4diff.products.cells import CELL_PIX
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.guards import limiting_flux_map, scale_left, star_residuals, static_stars
from ks4diff.stages.photometry import magnitude, njy_per_count
from ks4diff.stages.quality import elongation, pixel_arcsec, scale_range, scorr_std

SCHEMA = "ks4diff.report/1"


@dataclass(frozen=True, kw_only=True)
class ChipReport:
    """One chip's line of the report; ``None`` where a step was not reached or the input does not tell."""

    chip: str
    status: str  # ok, skipped, failed
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    n_stars: int | None = None
    n_matched: int | None = None
    astrometric_rms_pix: float | None = None
    registration: str | None = None
    flux_scale: float | None = None  # science counts per reference count
    flux_scale_error: float | None = None
    seeing_arcsec: float | None = None
    template_seeing_arcsec: float | None = None
    seeing_pix: float | None = None
    template_seeing_pix: float | None = None
    noise: float | None = None  # science counts per pixel
    noise_method: str | None = None
    gain: float | None = None
    template_ids: tuple[str, ...] = ()
    coverage: float | None = None
    masked_fraction: float | None = None
    scorr_std: float | None = None
    scorr_std_sky: float | None = None  # source-free pixels only
    limiting_mag: float | None = None
    limiting_flux: float | None = None  # 5 sigma, in flux_unit
    flux_unit: str | None = None
    n_candidates: int = 0
    n_alerts: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    quality: str | None = None
    quality_reasons: tuple[str, ...] = ()
    zeropoint: float | None = None  # AB magnitude of one count
    astrometric_rms_cells: tuple[tuple[float, ...], ...] = ()  # pixels, rows of 1024 px cells from below
    astrometric_error_worst: float | None = None  # of the map in its worst cell, pixels
    astrometric_bad_cells: int | None = None
    flux_scale_range: tuple[float, float] | None = None  # least and largest over the chip
    flux_scale_error_worst: float | None = None  # fraction
    amplifier_factors: tuple[float, ...] = ()  # empty where no amplifier stands off
    amplifier_levels: tuple[float, ...] = ()  # counts, likewise
    background_range: tuple[float, float] | None = None  # of the differential background, counts
    psf_error: float | None = None  # of the peak, median
    template_psf_error: float | None = None
    limiting_mag_cells: tuple[tuple[float, ...], ...] = ()  # 5 sigma, AB, rows of 1024 px cells from below
    scale_left: float | None = None  # fraction of bright stars' flux that the difference holds
    scale_left_error: float | None = None
    star_rms: float | None = None  # of S_corr within a FWHM of bright stars
    star_dipoles: float | None = None  # share of them with a peak and a trough beyond 5 sigma
    elongation: float | None = None  # of the PSF, major over minor axis
    template_elongation: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One exposure's report, as report.json holds it."""

    software: str
    config_digest: str
    exposure: str
    night: str | None
    site: str | None
    filter: str | None
    seconds_total: float
    peak_rss_mb: float
    chips: tuple[ChipReport, ...]
    association: Mapping[str, Any] | None = None  # status done, waiting or failed; counts
    schema: str = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not finite become null."""
        return plain(asdict(self))

    def to_json(self) -> str:
        """Return the text of report.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def chip_report(
    subtracted: SubtractedChip,
    provenance: Provenance,
    *,
    seconds: dict[str, float],
) -> ChipReport:
    """Return the report of one processed chip, before its alerts are decided."""
    chip, template, difference = subtracted.chip, subtracted.template, subtracted.difference
    scale = pixel_arcsec(chip.raw)
    limit = subtracted.limiting_flux
    zeropoint = chip.raw.zeropoint
    return ChipReport(
        chip=chip.raw.chip,
        status="ok",
        seconds=seconds,
        n_stars=len(chip.stars),
        n_matched=subtracted.registration.n_matched,
        astrometric_rms_pix=subtracted.registration.rms_pix,
        registration=subtracted.registration.method,
        flux_scale=subtracted.match.flux_scale,
        flux_scale_error=subtracted.match.flux_scale_error,
        seeing_arcsec=None if scale is None else chip.psf.fwhm_pix * scale,
        template_seeing_arcsec=None if scale is None else template.psf.fwhm_pix * scale,
        seeing_pix=chip.psf.fwhm_pix,
        template_seeing_pix=template.psf.fwhm_pix,
        noise=subtracted.match.science_noise.sigma,
        noise_method=subtracted.match.science_noise.method,
        gain=chip.gain,
        template_ids=provenance.template_ids,
        coverage=template.coverage,
        masked_fraction=float((difference.flags != 0).mean()),
        scorr_std=scorr_std(difference),
        scorr_std_sky=scorr_std(difference, chip.sky),
        limiting_mag=magnitude(limit, zeropoint),
        limiting_flux=limit if zeropoint is None else limit * njy_per_count(zeropoint),
        flux_unit=subtracted.candidates.flux_unit,
        n_candidates=len(subtracted.candidates),
        quality=subtracted.quality.verdict,
        quality_reasons=subtracted.quality.reasons,
        zeropoint=zeropoint,
        **_fields(subtracted),
    )


def _fields(subtracted: SubtractedChip) -> dict[str, Any]:
    """Return what changes over the chip, as few rounded numbers."""
    registration, match = subtracted.registration, subtracted.match
    error, background = registration.error.values, match.background.values
    stars = static_stars(subtracted.template, subtracted.difference)
    left, around = scale_left(subtracted.difference, stars), star_residuals(subtracted.difference, stars)
    return {
        "astrometric_rms_cells": _rows(registration.residual_rms.values),
        "limiting_mag_cells": _depth(subtracted),
        "scale_left": left.fraction,
        "scale_left_error": left.error,
        "star_rms": around.rms,
        "star_dipoles": around.dipoles,
        "astrometric_error_worst": round(float(np.max(error)), 4),
        "astrometric_bad_cells": int((registration.bad.values > 0).sum()),
        "flux_scale_range": scale_range(match),
        "flux_scale_error_worst": float(match.scale_error.values.max()),
        "amplifier_factors": tuple(round(step.factor, 5) for step in match.amplifiers),
        "amplifier_levels": tuple(round(step.level, 3) for step in match.amplifiers),
        "background_range": (float(background.min()), float(background.max())),
        "psf_error": float(np.median(subtracted.chip.psf.error.values)),
        "template_psf_error": float(np.median(subtracted.template.psf.error.values)),
        "elongation": elongation(subtracted.chip.psf),
        "template_elongation": elongation(subtracted.template.psf),
    }


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(v), 4) for v in row) for row in values)


def _depth(subtracted: SubtractedChip) -> tuple[tuple[float, ...], ...]:
    """Return the 5-sigma magnitudes of point sources in cells of about 1024 px, none without a zero point."""
    zeropoint = subtracted.chip.raw.zeropoint
    if zeropoint is None:
        return ()
    return _rows(zeropoint - 2.5 * np.log10(limiting_flux_map(subtracted.difference, CELL_PIX).values))


class Stopwatch:
    """Collects the wall seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the body under ``name``; repeated names add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


def peak_rss_mb() -> float:
    """Return the largest resident size of this process so far, megabytes of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def plain(value: Any) -> Any:
    """Return a tree of values as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
