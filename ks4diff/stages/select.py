"""Which alerts a consumer wants: cuts on the records of a stream or an archive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ks4diff.products.alert_filter import AlertFilter
from ks4diff.products.errors import ConfigError
from ks4diff.products.ids import parse_exposure_name
from ks4diff.stages.sky_cells import separation_arcsec, unit_vectors


@dataclass(frozen=True, kw_only=True)
class Cone:
    """A circle on the sky, its edge included; ICRS degrees."""

    ra: float
    dec: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class AlertCuts:
    """What an alert must be; None of a cut lets all pass."""

    min_rb: float | None = None
    expression: AlertFilter | None = None
    cone: Cone | None = None
    event: str | None = None  # name of one of its multimessenger events
    object_id: str | None = None
    exposure: str | None = None
    night: str | None = None  # YYYYMMDD, of the exposure's name


def wanted(record: Mapping[str, Any], cuts: AlertCuts) -> bool:
    """Return whether a record passes all cuts; what it does not tell passes no cut on it.

    Raises
    ------
    ConfigError
        When the expression does not go with the record's kinds of values.

    """
    candidate = record.get("candidate")
    seen = candidate if isinstance(candidate, Mapping) else {}
    exposure = record.get("exposure")
    return (
        (cuts.min_rb is None or (seen.get("rb") is not None and seen["rb"] >= cuts.min_rb))
        and (cuts.object_id is None or record.get("objectId") == cuts.object_id)
        and (cuts.exposure is None or exposure == cuts.exposure)
        and (cuts.night is None or _night(exposure) == cuts.night)
        and (cuts.cone is None or _inside(seen, cuts.cone))
        and (cuts.event is None or _belongs(record, cuts.event))
        and (cuts.expression is None or cuts.expression.accepts(record))
    )


def parse_cone(text: str) -> Cone:
    """Return the cone of ``"RA,DEC,RADIUS"``, degrees.

    Raises
    ------
    ConfigError
        When it is not three numbers that make a circle on the sky.

    """
    try:
        ra, dec, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--cone {text!r}: expected RA,DEC,RADIUS in degrees") from None
    if not (math.isfinite(ra) and abs(dec) <= 90 and 0 < radius <= 180):
        raise ConfigError(f"--cone {text!r}: no circle on the sky (degrees)")
    return Cone(ra=ra, dec=dec, radius=radius)


def _inside(seen: Mapping[str, Any], cone: Cone) -> bool:
    ra, dec = seen.get("ra"), seen.get("dec")
    if ra is None or dec is None:
        return False
    apart = separation_arcsec(unit_vectors(ra, dec), unit_vectors(cone.ra, cone.dec))
    return bool(apart <= 3600 * cone.radius)


def _belongs(record: Mapping[str, Any], event: str) -> bool:
    return any(match.get("event") == event for match in record.get("multimessenger") or ())


def _night(exposure: str | None) -> str | None:
    known = parse_exposure_name(exposure) if exposure else None
    return known and known.night
