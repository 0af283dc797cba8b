"""KMTNet's fields on the sky: how they are named and which are near a position."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

N_KS4 = 2749  # fields 0 ... 2748 have KS4 templates; the 5586 beyond are the northern extension without
FIELD_NAME = re.compile(r"(?<!\d)(?P<number>\d{4})\.(?P<ra>\d{3})(?P<dec>[+-]\d{2})(?!\d)")


@dataclass(frozen=True, kw_only=True)
class FieldGrid:
    """All fields in the order of their numbers: centres in ICRS degrees, dithers 0 without KS4 template."""

    ra: np.ndarray
    dec: np.ndarray
    dithers: np.ndarray

    def __len__(self) -> int:
        """Return the number of fields."""
        return len(self.ra)

    def name(self, number: int) -> str:
        """Return the name of a field."""
        return field_name(number, float(self.ra[number]), float(self.dec[number]))

    def has_template(self, number: int) -> bool:
        """Return whether KS4 covers a field."""
        return bool(self.dithers[number] > 0)


def field_name(number: int, ra: float, dec: float) -> str:
    """Return FFFF.RRR+DD of a field: its number and whole degrees of its centre.

    RRR is rounded (halves up) for the KS4 fields and cut for the extension; DD is always cut.
    """
    whole = math.floor(ra + 0.5) if number < N_KS4 else math.floor(ra)
    return f"{number:04d}.{whole:03d}{'-' if dec < 0 else '+'}{int(abs(dec)):02d}"


def find_field_name(text: str) -> str | None:
    """Return the first field name within a text such as a file's name, or None."""
    match = FIELD_NAME.search(text)
    return match[0] if match else None


def field_number(grid: FieldGrid, name: str) -> int | None:
    """Return the number of a field by its name FFFF.RRR-DD, or by RRR-DD alone; None when there is none."""
    match = FIELD_NAME.fullmatch(name)
    if match:
        number = int(match["number"])
        return number if number < len(grid) and grid.name(number) == name else None
    found = [number for number in range(len(grid)) if grid.name(number)[5:] == name]
    return found[0] if len(found) == 1 else None


def nearest_fields(grid: FieldGrid, ra: float, dec: float, n: int = 4) -> list[tuple[int, float]]:
    """Return the ``n`` nearest fields to a position as (number, degrees to its centre), nearest first."""
    a, d = np.radians(grid.ra - ra), np.radians(grid.dec)
    there = math.radians(dec)
    # haversine: exact to 1e-9 degrees where the cosine formula loses half its digits
    half = np.sin((d - there) / 2) ** 2 + np.cos(d) * math.cos(there) * np.sin(a / 2) ** 2
    distance = np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
    order = np.argsort(distance, kind="stable")[:n]
    return [(int(i), float(distance[i])) for i in order]
