"""How alerts are written out for people and for programs; one form for every command."""

from __future__ import annotations

import math
from typing import Any


def alert_line(record: dict[str, Any]) -> str:
    """Return one line on an alert record; a dash for what it does not have.

    Alert and candidate id, pixel, ICRS degrees, signed S_corr, flux with unit and the
    real/bogus score with its model. Made for our alerts, and good enough for another survey's.
    """
    candidate = record.get("candidate")
    measured = candidate if isinstance(candidate, dict) else {}

    def number(form: str, *names: str) -> str:
        value = next((measured[name] for name in names if measured.get(name) is not None), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return "-"
        return format(value, form)

    columns = (
        f"{_text(record.get('alertId')):<32}",
        f"{_text(record.get('candid', record.get('diaSourceId'))):>19}",
        f"x {number('8.2f', 'x', 'xpos'):>8} y {number('8.2f', 'y', 'ypos'):>8}",
        f"ra {number('10.6f', 'ra'):>10} dec {number('+10.6f', 'dec'):>10}",
        f"scorr {number('+8.2f', 'scorr'):>8}",
        f"flux {number('+11.4g', 'flux'):>11} {_text(measured.get('flux_unit')):<5}",
        f"rb {number('5.3f', 'rb'):>5} ({_text(measured.get('rbversion'))})",
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


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
