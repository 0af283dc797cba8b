"""What an alert of any survey says, found by the names that surveys use: ours, ZTF's and its kin, LSST's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_MJD_OF_JD = 2400000.5
_TAI_AHEAD_DAYS = 37 / 86400  # of UTC, since 2017
_NJY_ZEROPOINT = 31.4  # AB magnitude of 1 nJy
_ABSURD = -900.0  # -999 and -99999 stand for "none" in ZTF's kin
_IMAGES = ("Science", "Template", "Difference")


@dataclass(frozen=True, kw_only=True)
class Digest:
    """The few things that every alert tells; None where it does not."""

    number: int | str | None  # candid, diaSourceId
    object: str | None
    mjd: float | None  # UTC
    x: float | None  # pixels as the survey counts them
    y: float | None
    ra: float | None  # degrees
    dec: float | None
    band: str | None
    mag: float | None
    positive: bool | None
    flux: float | None
    flux_unit: str | None
    significance: float | None  # scorr, else S/N
    score: float | None  # real/bogus: rb, else drb, else reliability
    score_name: str | None  # its model's version, else the field's name


def digest(record: Mapping[str, Any]) -> Digest:
    """Return what an alert's record says, whichever survey's it is; nothing is raised for what it lacks."""
    source = next((record[name] for name in ("candidate", "diaSource") if _is_record(record, name)), record)
    tables = (source, record)
    flux = _number(tables, "psfFlux", "flux")
    score, score_name = _score(tables)
    mag = _number(tables, "magpsf", "forcediffimmag", "mag")
    if mag is None and "diaSource" in record and flux:
        mag = _NJY_ZEROPOINT - 2.5 * math.log10(abs(flux))
    return Digest(
        number=_first((record, source), "candid", "diaSourceId"),
        object=_text(tables, "objectId", "objectid", "diaObjectId"),
        mjd=_time(tables),
        x=_number(tables, "x", "xpos"),
        y=_number(tables, "y", "ypos"),
        ra=_number(tables, "ra"),
        dec=_number(tables, "dec", "decl"),
        band=_band(tables),
        mag=mag,
        positive=_is_positive(tables, flux),
        flux=flux,
        flux_unit=None if flux is None else _text(tables, "fluxUnit", "flux_unit") or "nJy",
        significance=_number(tables, "scorr", "snr"),
        score=score,
        score_name=score_name,
    )


def cutouts(record: Mapping[str, Any]) -> np.ndarray | None:
    """Return float32 [3, k, k]: science, template and difference of any survey's alert, None without any.

    Stamps of other shapes are put in the middle of the largest one's square; what they lack, and a stamp that
    is not there, is NaN.

    Raises
    ------
    InputError
        When a stamp is not FITS.

    """
    import numpy as np

    from ks4diff.io.stamps import decode_stamp

    found = [_stamp_bytes(record, name) for name in _IMAGES]
    stamps = [None if data is None else decode_stamp(data) for data in found]
    sides = [max(stamp.shape) for stamp in stamps if stamp is not None and stamp.ndim == 2 and stamp.size]
    if not sides:
        return None
    planes = np.full((3, max(sides), max(sides)), np.nan, dtype=np.float32)
    for plane, stamp in zip(planes, stamps, strict=True):
        if stamp is not None and stamp.ndim == 2:
            top, left = ((len(plane) - n) // 2 for n in stamp.shape)
            plane[top : top + stamp.shape[0], left : left + stamp.shape[1]] = stamp
    return planes


def _stamp_bytes(record: Mapping[str, Any], image: str) -> bytes | None:
    value = _first((record,), f"cutout{image}", f"cutout_{image.lower()}")
    if isinstance(value, Mapping):
        value = value.get("stampData")
    return bytes(value) if isinstance(value, bytes | bytearray) and value else None


def _is_record(record: Mapping[str, Any], name: str) -> bool:
    return isinstance(record.get(name), Mapping)


def _first(tables: tuple[Mapping[str, Any], ...], *names: str) -> Any:
    """Return the first value that is there under one of the names, earlier names first."""
    return next((t[name] for name in names for t in tables if t.get(name) is not None), None)


def _number(tables: tuple[Mapping[str, Any], ...], *names: str) -> float | None:
    for name in names:
        value = _first(tables, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and value > (-math.inf if name in ("psfFlux", "flux", "scorr") else _ABSURD):
            return float(value)
    return None


def _text(tables: tuple[Mapping[str, Any], ...], *names: str) -> str | None:
    value = _first(tables, *names)
    return None if value is None else str(value)


def _time(tables: tuple[Mapping[str, Any], ...]) -> float | None:
    mjd = _number(tables, "mjd")
    if mjd is not None:
        return mjd
    jd, tai = _number(tables, "jd"), _number(tables, "midpointMjdTai", "midPointTai")
    if jd is not None:
        return jd - _MJD_OF_JD
    return None if tai is None else tai - _TAI_AHEAD_DAYS


def _band(tables: tuple[Mapping[str, Any], ...]) -> str | None:
    name = _text(tables, "filter", "band", "filterName")
    fid = _first(tables, "fid")
    return name if name is not None or fid is None else f"fid{fid}"


def _is_positive(tables: tuple[Mapping[str, Any], ...], flux: float | None) -> bool | None:
    sign = _first(tables, "isdiffpos")
    if sign is not None:
        return str(sign).lower() in ("t", "true", "1", "1.0")
    negative = _first(tables, "isNegative")
    if isinstance(negative, bool):
        return not negative
    return None if flux is None else flux > 0


def _score(tables: tuple[Mapping[str, Any], ...]) -> tuple[float | None, str | None]:
    for name in ("rb", "drb", "reliability"):
        value = _number(tables, name)
        if value is not None:
            return value, _text(tables, f"{name}version") or name
    return None, _text(tables, "rbversion")
