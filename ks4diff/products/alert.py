"""An alert as the pipeline means it, before any encoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Three stamps of one candidate, float32 [y, x], square and odd; bad or missing pixels NaN.

    All share one pixel grid (the science image's) and are centred on the candidate's pixel.
    """

    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AlertCandidate:
    """The measurements of one candidate, named as in the schema's ``candidate`` record.

    ``None`` means not known (no WCS, no date, no zero point, score withheld).
    """

    mjd: float | None  # mid-exposure, UTC
    jd: float | None
    exptime: float | None  # seconds
    filter: str | None
    site: str | None
    chip: str
    x: float  # 0-based pixel of the science chip
    y: float
    xerr: float  # pixels
    yerr: float
    ra: float | None  # ICRS degrees
    dec: float | None
    scorr: float  # signed peak of S_corr
    snr: float  # |flux| / flux_err
    flux: float  # signed PSF flux of science minus template
    flux_err: float
    flux_unit: str  # "nJy" or "count"
    ap_flux: float  # aperture flux on the difference image, same unit
    magpsf: float | None  # AB
    sigmapsf: float | None
    diffmaglim: float | None  # 5 sigma, AB
    isdiffpos: bool
    fwhm: float  # pixels, of the difference source
    elong: float
    rb: float | None
    rbversion: str
    rbthreshold: float
    flags: tuple[str, ...]  # names of raised candidate flags, none of them rejecting


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made an alert; equal inputs give equal provenance."""

    software: str
    config_digest: str  # sha256 hex
    template_ids: tuple[str, ...]
    model_id: str
    science_file: str
    seeing: float | None  # science FWHM, pixels
    template_seeing: float | None
    flux_scale: float  # science counts per template count
    astrometric_rms_pix: float


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One transient candidate to be sent, with everything a consumer needs."""

    alert_id: str  # 32 hex digits, deterministic
    candid: int  # 63-bit, deterministic
    object_id: str | None  # None without a WCS
    alert_type: str  # "new"
    exposure: str  # exposure id the alert belongs to
    candidate: AlertCandidate
    cutouts: Cutouts
    provenance: Provenance
