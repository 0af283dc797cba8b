"""Judge a subtraction by what went into it and by what it left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from ks4diff.numerics.moments import gaussian_shape
from ks4diff.numerics.scatter import masked_std
from ks4diff.products.candidates import FLAG_BIT, REJECTING_BITS, Candidates
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip
from ks4diff.products.difference import Difference, Match, Quality
from ks4diff.products.psf import PsfField
from ks4diff.products.registration import Registration
from ks4diff.stages.guards import scale_left, star_residuals, static_stars

FEWEST_STARS = 20  # bright ones: of fewer one variable or one blend would judge
# AB magnitude of one count of 120 s under a clear sky (facts/kmtnet.md section 8; B and R are guesses)
CLEAR_ZEROPOINT_120S = {"B": 28.1, "V": 28.3, "R": 28.6, "I": 28.7}


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Limits of a good and of a usable subtraction; beyond a fail limit no alert leaves the chip."""

    warn_scorr_std: float = 1.2  # of all unmasked pixels, sources included
    fail_scorr_std: float = 8.0
    warn_rms_pix: float = 0.15
    fail_rms_pix: float = 0.5  # half a pixel makes a dipole of every star
    warn_bad_cells: float = 0.1  # fraction of the cells of 1024 px whose map is not to be trusted
    fail_bad_cells: float = 0.75
    warn_residuals: float = 0.15  # unflagged candidates on template sources, per registered star
    fail_residuals: float = 1.0  # a photographic plate under a CCD image gives 1.7, the worst MOA frame 0.7
    warn_elongation: float = 1.3  # major over minor axis; KMTNet's optics reach 1.15 in the corners
    fail_elongation: float = 2.0  # the survey's own limit for a trailed frame
    warn_elongation_ratio: float = 1.25  # over the template's
    warn_fwhm_arcsec: float = 3.0  # 1 % of nights at the worst site are as bad
    fail_fwhm_arcsec: float = 6.0  # the survey's own limit: out of focus
    warn_ring: float = 1.02  # brightest ring over the middle of the PSF: a pupil begins to show
    fail_ring: float = 1.3
    warn_extinction_mag: float = 0.6  # below a clear sky; zero points themselves are known to 0.3
    fail_extinction_mag: float = 3.0
    warn_scale_range: float = 0.1  # (largest - least) / median, pixels' areas apart: illumination makes 0.03
    fail_scale_range: float = 0.7
    warn_scale_left: float = 0.02  # of bright stars' flux that the difference holds, beyond five errors
    fail_scale_left: float = 0.2
    warn_star_rms: float = 3.0  # of S_corr within a FWHM of bright stars, a twentieth of which may vary
    fail_star_rms: float = 30.0
    warn_dipoles: float = 0.05  # of the bright stars with a peak and a trough beyond 5 sigma
    fail_dipoles: float = 0.5
    warn_scale_error: float = 0.02  # fraction
    fail_scale_error: float = 0.2
    warn_psf_error: float = 0.03  # of the peak; a star of S/N 170 then leaves 5 sigma
    fail_psf_error: float = 0.3
    warn_template_fwhm: float = 1.5  # template FWHM over the science image's
    warn_template_noise: float = 2.0  # template noise over the science image's, on one scale
    warn_coverage: float = 0.5
    warn_psf_stars: int = 10


def judge(
    chip: CalibratedChip,
    template: AlignedTemplate,
    registration: Registration,
    difference: Difference,
    candidates: Candidates,
    config: QualityConfig,
    *,
    match: Match | None = None,
) -> Quality:
    """Return the verdict on one subtraction with a clause for everything out of the ordinary.

    Without ``match`` nothing is said of clouds, of the scale's errors or of the template's depth.
    """
    values = dict(_left(registration, difference, candidates))
    values |= dict(_seen(chip, template)) | dict(_of_stars(template, difference))
    if match is not None:
        values |= dict(_scaled(chip, template, match))
    limits = {
        "scorr_std": (config.warn_scorr_std, config.fail_scorr_std),
        "astrometric_rms_pix": (config.warn_rms_pix, config.fail_rms_pix),
        "bad astrometric cells": (config.warn_bad_cells, config.fail_bad_cells),
        "residuals per star": (config.warn_residuals, config.fail_residuals),
        "trailed: elongation": (config.warn_elongation, config.fail_elongation),
        "trailed: elongation over the template's": (config.warn_elongation_ratio, np.inf),
        "bad focus or seeing: FWHM arcsec": (config.warn_fwhm_arcsec, config.fail_fwhm_arcsec),
        "bad focus: ring over middle": (config.warn_ring, config.fail_ring),
        "clouds: magnitudes lost": (config.warn_extinction_mag, config.fail_extinction_mag),
        "clouds: scale range over median": (config.warn_scale_range, config.fail_scale_range),
        "flux scale left in stars": (config.warn_scale_left, config.fail_scale_left),
        "bright stars: rms of S_corr": (config.warn_star_rms, config.fail_star_rms),
        "bright stars: share of dipoles": (config.warn_dipoles, config.fail_dipoles),
        "flux scale error": (config.warn_scale_error, config.fail_scale_error),
        "PSF error": (config.warn_psf_error, config.fail_psf_error),
        "template PSF error": (config.warn_psf_error, config.fail_psf_error),
        "poor template: FWHM over the image's": (config.warn_template_fwhm, np.inf),
        "poor template: noise over the image's": (config.warn_template_noise, np.inf),
    }
    reasons, failed = [], False
    for name, value in values.items():
        warn, fail = limits[name]
        if not value <= warn:
            reasons.append(f"{name} {value:.2f} above {fail if not value <= fail else warn:g}")
            failed = failed or not value <= fail
    if template.coverage < config.warn_coverage:
        reasons.append(f"template covers {template.coverage:.2f}, below {config.warn_coverage:g}")
    n_stars = min(chip.psf.n_stars, template.psf.n_stars)
    if n_stars < config.warn_psf_stars:
        reasons.append(f"PSF from {n_stars} stars, fewer than {config.warn_psf_stars}")
    if chip.gain_source != "given":
        reasons.append(f"gain {chip.gain:.2f} {chip.gain_source}")
    return Quality(verdict="fail" if failed else "warn" if reasons else "pass", reasons=tuple(reasons))


def _left(
    registration: Registration, difference: Difference, candidates: Candidates
) -> Iterator[tuple[str, float]]:
    """Yield what registration and subtraction left."""
    yield "scorr_std", scorr_std(difference)
    yield "astrometric_rms_pix", registration.rms_pix
    yield "bad astrometric cells", float(np.mean(registration.bad.values > 0))
    yield "residuals per star", residuals(candidates) / registration.n_matched


def _seen(chip: CalibratedChip, template: AlignedTemplate) -> Iterator[tuple[str, float]]:
    """Yield the shapes and errors of both PSFs."""
    long, reference = elongation(chip.psf), elongation(template.psf)
    yield "trailed: elongation", long
    yield "trailed: elongation over the template's", long / reference
    pixel = pixel_arcsec(chip.raw)
    if pixel is not None:
        yield "bad focus or seeing: FWHM arcsec", chip.psf.fwhm_pix * pixel
    yield "bad focus: ring over middle", ring(chip.psf)
    yield "PSF error", float(np.median(chip.psf.error.values))
    yield "template PSF error", float(np.median(template.psf.error.values))
    yield "poor template: FWHM over the image's", template.psf.fwhm_pix / chip.psf.fwhm_pix


def _of_stars(template: AlignedTemplate, difference: Difference) -> Iterator[tuple[str, float]]:
    """Yield what bright stars leave, nothing without them."""
    stars = static_stars(template, difference)
    left, around = scale_left(difference, stars), star_residuals(difference, stars)
    if left.n_stars >= FEWEST_STARS:
        sure = abs(left.fraction) > 5 * left.error * max(left.chi2, 1.0) ** 0.5
        yield "flux scale left in stars", abs(left.fraction) if sure else 0.0
    if around.n_stars >= FEWEST_STARS:
        yield "bright stars: rms of S_corr", around.usual_rms
        yield "bright stars: share of dipoles", around.dipoles


def _scaled(chip: CalibratedChip, template: AlignedTemplate, match: Match) -> Iterator[tuple[str, float]]:
    """Yield what the flux scale says of clouds and of the template's depth."""
    lost = extinction(chip.raw)
    if lost is not None:
        yield "clouds: magnitudes lost", lost
    yield "clouds: scale range over median", light_range(match, template.area)
    yield "flux scale error", match.flux_scale_error
    noise = match.flux_scale * match.template_noise.sigma / match.science_noise.sigma
    yield "poor template: noise over the image's", noise


def elongation(psf: PsfField) -> float:
    """Return the major over the minor axis of a PSF, by moments under a Gaussian of twice its FWHM."""
    return gaussian_shape(psf.stamp.astype(np.float64), 2.0 * psf.fwhm_pix)[1]


def ring(psf: PsfField) -> float:
    """Return the brightest ring of a PSF over its middle: 1 or less in focus, more where a pupil shows."""
    stamp = psf.stamp.astype(np.float64)
    offset = np.arange(stamp.shape[0]) - stamp.shape[0] // 2
    index = np.rint(np.hypot(offset[:, None], offset[None, :])).astype(int).ravel()
    mean = np.bincount(index, weights=stamp.ravel()) / np.bincount(index)
    return float(mean[1:].max() / max(mean[0], 1e-12))


def pixel_arcsec(raw: RawChip) -> float | None:
    """Return the side of a pixel in the middle of the image, None without a WCS."""
    if raw.wcs is None:
        return None
    return float(np.mean(proj_plane_pixel_scales(raw.wcs.celestial))) * 3600


def extinction(raw: RawChip) -> float | None:
    """Return how many magnitudes a KMTNet chip lies below a clear sky's zero point, None for others."""
    clear = CLEAR_ZEROPOINT_120S.get(raw.filter or "")
    if raw.exposure is None or raw.unit != "adu" or None in (clear, raw.zeropoint, raw.exptime):
        return None
    return clear + 2.5 * float(np.log10(raw.exptime / 120)) - raw.zeropoint if raw.exptime > 0 else None


def scale_range(match: Match) -> tuple[float, float]:
    """Return the least and the largest flux scale over the chip."""
    return float(match.scale.values.min()), float(match.scale.values.max())


def light_range(match: Match, area: Cells) -> float:
    """Return how much the sky's transparency changes over the chip: largest less least scale over the median.

    The scale is that of surface brightness and goes with the ``area`` of a science pixel in template pixels,
    which distortion changes by 7 to 8 % over a KMTNet chip under a clear sky: that is taken out.
    """
    relative = area.at(*match.scale.middles()) / float(np.median(area.values))
    light = match.scale.values / relative
    return float(light.max() - light.min()) / float(np.median(light))


def residuals(candidates: Candidates) -> int:
    """Return how many unflagged candidates lie on template sources: variables, hosts, and stars left over."""
    flags = candidates.table["flags"]
    return int((((flags & REJECTING_BITS) == 0) & ((flags & FLAG_BIT["on_source"]) != 0)).sum())


def scorr_std(difference: Difference, among: np.ndarray | None = None) -> float:
    """Return the standard deviation of S_corr over all unmasked pixels, sources included.

    ``among`` (bool [y, x]) restricts it, for instance to the sky. NaN when no pixel is left.
    """
    return masked_std(difference.score_corr, difference.flags, among)
