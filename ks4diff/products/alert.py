"""An alert as the pipeline means it, before any encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default_of

import numpy as np

from ks4diff.products.history import ObjectHistory

MJD_TO_JD = 2400000.5


@dataclass(frozen=True, kw_only=True)
class StampGrid:
    """Where a stamp's middle pixel lies on the sky, ICRS degrees, and how its pixels run.

    ``cd`` is ((d xi / dx, d xi / dy), (d eta / dx, d eta / dy)), degrees per pixel on the tangent plane.
    """

    ra: float
    dec: float
    cd: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Three stamps of one candidate, float32 [y, x], square and odd; bad or missing pixels NaN.

    All share one pixel grid (the science image's) and flux scale (its counts) and are centred on the
    candidate's pixel. ``noise`` is the standard deviation of a pixel of each: pixels are sent rounded to a
    sixteenth of it at most; None: as they are.
    """

    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray
    grid: StampGrid | None = None  # None without a WCS
    zeropoint: float | None = None  # AB magnitude of one count
    noise: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AlertCandidate:
    """The measurements of one candidate.

    ``None`` means not known (no WCS, no date, no zero point, score withheld). ``measured`` holds the columns
    of the candidate table that have no attribute here, by their names, None where not finite.
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
    fwhm: float | None  # pixels, of the difference source
    elong: float | None
    rb: float | None
    rbversion: str
    rbthreshold: float
    flags: tuple[str, ...]  # names of raised candidate flags, none of them rejecting
    xycov: float | None = None  # square pixels
    raerr: float | None = None  # degrees, of ra cos(dec)
    decerr: float | None = None
    radeccov: float | None = None  # square degrees
    magap: float | None = None  # AB
    zeropoint: float | None = None  # AB magnitude of one count
    field: int | None = None  # number of the KMTNet field
    target_name: str | None = None
    nbad: int = 0  # pixels without data among the middle 5x5
    injected: bool = False
    rb_flags: tuple[str, ...] = ()
    rb_reasons: tuple[str, ...] = ()
    measured: Mapping[str, float | None] = default_of(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is to be told of the real/bogus score beside its value.

    ``flag_names`` are the bits of the column ``rb_flags`` by name; ``reasons`` of each row of the candidate
    table what moved its score most, strongest first, empty where that is not known.
    """

    flag_names: Mapping[int, str] = default_of(default_factory=dict)
    reasons: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made an alert; equal inputs give equal provenance but for ``t_packed``."""

    software: str
    config_digest: str  # sha256 hex
    template_ids: tuple[str, ...]
    model_id: str
    science_file: str
    seeing: float | None  # science FWHM, pixels
    template_seeing: float | None
    flux_scale: float  # science counts per template count
    astrometric_rms_pix: float
    pixel_arcsec: float | None = None
    depth: float | None = None  # 5 sigma of the difference, AB
    zeropoint: float | None = None  # AB magnitude of one count
    rb_features: str | None = None  # version of the features that the model saw, None by rules
    quality: str = "pass"
    quality_reasons: tuple[str, ...] = ()
    t_shutter_close: float | None = None  # MJD, UTC
    t_packed: float | None = None  # MJD, UTC


@dataclass(frozen=True, kw_only=True)
class EventMatch:
    """An event of another messenger that a candidate may belong to."""

    event: str
    notice: str  # preliminary, initial, update, ...
    map_digest: str  # sha256 hex
    credible_level: float | None  # 0 to 1
    probability_density: float | None  # per square degree
    distance_mean: float | None  # Mpc
    distance_std: float | None
    delta_t: float  # days, mid-exposure minus event
    prior_activity: bool | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One transient candidate to be sent, with everything a consumer needs."""

    alert_id: str  # 32 hex digits, deterministic
    candid: int  # 62-bit, deterministic
    object_id: str | None  # None without a WCS or without a history
    alert_type: str  # "new", "update"
    exposure: str  # exposure id the alert belongs to
    candidate: AlertCandidate
    cutouts: Cutouts
    provenance: Provenance
    history: ObjectHistory | None = None
    multimessenger: tuple[EventMatch, ...] | None = None  # None: not looked up
