"""How alerts are written out for people and for programs; one form for every command."""

from __future__ import annotations

import math
from typing import Any


def alert_line(record: dict[str, Any]) -> str:
    """Return one line on an alert record of any survey; a dash for what it does not have.

    Object, candidate, UTC as MJD, pixel, ICRS degrees, band and magnitude (- before it: fainter than the
    template), flux with unit, signed S_corr (else S/N), the real/bogus score with its model; ours also with
    type and identifier. Of an exposure's message: what was done and found.
    """
    from ks4diff.io.foreign import digest

    if "messageId" in record:
        return _exposure_line(record)
    seen = digest(record)
    sign = {None: " ", True: "+", False: "-"}[seen.positive]
    columns = (
        f"{_text(seen.object):<14}",
        f"{_text(seen.number):>19}",
        f"mjd {_number(seen.mjd, '.5f'):>11}",
        f"x {_number(seen.x, '.2f'):>8} y {_number(seen.y, '.2f'):>8}",
        f"ra {_number(seen.ra, '.6f'):>10} dec {_number(seen.dec, '+.6f'):>10}",
        f"{_text(seen.band):<4} {sign}{_number(seen.mag, '.3f'):>6}",
        f"flux {_number(seen.flux, '+.4g'):>10} {_text(seen.flux_unit):<5}",
        f"scorr {_number(seen.significance, '+.2f'):>8}",
        f"rb {_number(seen.score, '.3f'):>5} ({_text(seen.score_name)})",
        *(f"{_text(record[name])}" for name in ("alertType", "alertId") if name in record),
    )
    return "  ".join(columns)


def _exposure_line(record: dict[str, Any]) -> str:
    done = sum(chip["status"] == "ok" for chip in record["chips"])
    columns = (
        f"{record['exposure']:<14}",
        f"mjd {_number(record['mjd'], '.5f'):>11}",
        f"{_text(record['site']):<4} {_text(record['filter']):<1}",
        f"{record['status']:<8} {done} of {len(record['chips'])} chips",
        f"quality {record['quality']:<4}",
        f"coverage {_number(record['coverage'], '.3f'):>5}",
        f"depth {_number(record['depth'], '.2f'):>5}",
        f"{record['n_candidates']} candidates",
        f"{record['n_alerts']} alerts",
    )
    return "  ".join(columns)


def json_record(value: Any) -> Any:
    """Return a record as JSON can hold it: bytes as their number, not finite numbers as null.

    Stamps are left out on purpose: they are 98 % of an alert, and Avro holds them.
    """
    if isinstance(value, dict):
        return {str(name): json_record(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_record(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return {"bytes": len(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # dates, UUIDs and decimals of other surveys' schemas


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: 1 alert, 2 alerts."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
