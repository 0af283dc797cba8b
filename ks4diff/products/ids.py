"""Sites, chips, bands and exposures: their names, parsed in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

CHIPS = ("K", "M", "N", "T")
BANDS = ("B", "V", "R", "I")


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """Where a site is and when its night changes; longitude is positive to the east."""

    letter: str  # in file names: kmtc, kmts, kmta
    longitude_deg: float
    latitude_deg: float
    altitude_m: float
    night_boundary_ut_hours: float  # 12:30 local time, when the night in file names changes


class Site(StrEnum):
    """The three KMTNet observatories."""

    CTIO = "CTIO"
    SAAO = "SAAO"
    SSO = "SSO"

    @property
    def facts(self) -> SiteFacts:
        """Position and night boundary (shared facts: kmtnet.md sections 4 and 5)."""
        return _FACTS[self]


_FACTS = {
    Site.CTIO: SiteFacts(
        letter="c",
        longitude_deg=-70.804,
        latitude_deg=-30.1672,
        altitude_m=2167,
        night_boundary_ut_hours=16.5,
    ),
    Site.SAAO: SiteFacts(
        letter="s",
        longitude_deg=20.8104,
        latitude_deg=-32.3793,
        altitude_m=1762,
        night_boundary_ut_hours=10.5,
    ),
    Site.SSO: SiteFacts(
        letter="a",
        longitude_deg=149.0626,
        latitude_deg=-31.2712,
        altitude_m=1143,
        night_boundary_ut_hours=1.5,
    ),
}


@dataclass(frozen=True, order=True)
class ExposureId:
    """One exposure of one site: night as YYYYMMDD (not the UTC date) and the running number."""

    site: Site
    night: str
    number: int

    def __str__(self) -> str:
        """Return the file stem, such as kmtc.20250207.004413."""
        return f"kmt{self.site.facts.letter}.{self.night}.{self.number:06d}"


_NAME = re.compile(
    r"^x?kmt(?P<letter>[cas])[kmnt]?\.(?P<night>\d{8})\.(?P<number>\d{6})(\.|$)", re.IGNORECASE
)


def parse_exposure_name(name: str) -> ExposureId | None:
    """Return the exposure that a file's name tells, or None when it tells none.

    Understands kmtc.20250207.004413.fits, the archive's xkmtc..., KMTA.20261020.001234.MK.fits and single
    chips such as kmtc.20250207.004413.kk.fits. The legacy KMTNk.20170209.044131.fits does not name its site.
    """
    match = _NAME.match(name)
    if match is None:
        return None
    site = next(s for s in Site if s.facts.letter == match["letter"].lower())
    return ExposureId(site, match["night"], int(match["number"]))
