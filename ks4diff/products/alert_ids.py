"""Identifiers of alerts: made of what they name, so that the same input always gives the same."""

from __future__ import annotations

import hashlib
from datetime import date

from ks4diff.products.ids import Site, parse_exposure_name

_ROWS = 0xFFFFF  # a million candidates a chip
_CHIP_NUMBER = {"0": 0, "K": 1, "M": 2, "N": 3, "T": 4}
_UNNAMED = 1 << 38  # numbers with this bit are digests, the others spell the name
_EPOCH = date(2000, 1, 1).toordinal()


def exposure_number(exposure: str) -> int:
    """Return a positive number below 2**39 for an exposure's name.

    KMTNet's are spelt: 2 bits of the site, 15 of the night since 2000, 20 of the running number, so no two
    are equal. Others are digests of 38 bits: among 10,000 exposures two are equal once in 5,000 archives.
    """
    named = parse_exposure_name(exposure)
    if named is not None and str(named) == exposure and named.number < 1 << 20:
        night = _days(named.night)
        if night is not None:
            site = list(Site).index(named.site)
            return (site << 35) | (night << 20) | named.number
    digest = int.from_bytes(hashlib.sha256(exposure.encode()).digest()[:5], "big")
    return _UNNAMED | (digest & (_UNNAMED - 1))


def candid(exposure: str, chip: str, row: int) -> int:
    """Return a positive 62-bit number: 39 bits of the exposure, 3 of the chip, 20 of the row."""
    return (exposure_number(exposure) << 23) | (_CHIP_NUMBER[chip] << 20) | (row & _ROWS)


def row_of_candid(number: int) -> int:
    """Return the row of the candidate table that a candid was made of."""
    return number & _ROWS


def digest_of(*parts: str) -> str:
    """Return 32 hexadecimal digits of some texts, the same for the same texts in the same order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _days(night: str) -> int | None:
    """Return the days from 2000-01-01 to a night YYYYMMDD, None where 15 bits do not hold them."""
    try:
        days = date(int(night[:4]), int(night[4:6]), int(night[6:8])).toordinal() - _EPOCH
    except ValueError:
        return None
    return days if 0 < days < 1 << 15 else None
