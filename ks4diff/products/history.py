"""What is known of a place on the sky from earlier exposures: objects, detections, limits, forced fluxes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PastDetection:
    """One earlier candidate of an object; fluxes in nJy, signed, science minus template."""

    candid: int
    exposure: str
    mjd: float  # mid-exposure, UTC
    exptime: float | None  # seconds
    filter: str
    site: str
    chip: str
    ra: float  # ICRS degrees
    dec: float
    scorr: float
    snr: float
    flux: float
    flux_err: float
    magpsf: float | None  # AB
    sigmapsf: float | None
    diffmaglim: float | None  # 5 sigma, AB
    isdiffpos: bool
    rb: float | None
    alerted: bool  # it was sent as an alert


@dataclass(frozen=True, kw_only=True)
class PastLimit:
    """One earlier exposure that covered the place and found nothing."""

    exposure: str
    mjd: float
    filter: str
    site: str
    chip: str
    diffmaglim: float  # 5 sigma, AB


@dataclass(frozen=True, kw_only=True)
class ForcedFlux:
    """The PSF flux of one exposure's difference at the object's position, nJy."""

    exposure: str
    mjd: float
    filter: str
    site: str
    chip: str
    flux: float
    flux_err: float
    diffmaglim: float | None
    flags: tuple[str, ...]  # pixel flags within one FWHM, or quality_fail; with some it is not to be trusted


@dataclass(frozen=True, kw_only=True)
class ObjectSummary:
    """One object: where it is and how often it was seen, the present detection included."""

    object_id: str  # KS4-yy and letters
    ra: float  # ICRS degrees, weighted mean of the detections
    dec: float
    position_err_arcsec: float  # standard error per axis
    n_detections: int  # unflagged, one an exposure at most
    n_covered: int  # exposures that covered the place
    first_mjd: float
    last_mjd: float
    n_rejected: int = 0  # candidates at the place with a rejecting flag: known, but no part of the history


@dataclass(frozen=True, kw_only=True)
class ObjectHistory:
    """What an alert says of its object's past; all in order of time, the present exposure left out."""

    object: ObjectSummary
    detections: tuple[PastDetection, ...] = ()
    limits: tuple[PastLimit, ...] = ()
    forced: tuple[ForcedFlux, ...] = ()
