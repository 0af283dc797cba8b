"""What a KMTNet header and file name say of an exposure, past the traps of real files."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePath

from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.fits_header import card, header_facts
from ks4diff.io.fits_wcs import celestial_wcs
from ks4diff.products.errors import InputError, UnwantedExposure
from ks4diff.products.ids import BANDS, ExposureId, Site, parse_exposure_name

log = logging.getLogger(__name__)

_CHIP = r"(?P<chip>kk|mm|nn|tt)"
_NAMES = (
    # the camera's own single-CCD files do not say where they come from: KMTNk.20170209.044131.fits
    re.compile(r"^kmtn(?P<chip>[kmnt])\.(?P<night>\d{8})\.(?P<number>\d{6})(\.|$)", re.IGNORECASE),
    # kmtc.20250207.004413.kk.fits
    re.compile(rf"^x?kmt[cas]\.(?P<night>\d{{8}})\.(?P<number>\d{{6}})\.{_CHIP}\.", re.IGNORECASE),
    # OBJ_2149.115-50.B.20240423.CTIO.004413.kk.scaled.fits
    re.compile(
        rf"(^|\.)(?P<night>\d{{8}})\.(?P<site>CTIO|SAAO|SSO)\.(?P<number>\d{{6}})\.{_CHIP}\.", re.IGNORECASE
    ),
    # 004413.kk.fits
    re.compile(rf"^(?P<number>\d{{6}})\.{_CHIP}\.", re.IGNORECASE),
)
_CALIBRATIONS = ("BIAS", "ZERO", "DARK", "FLAT", "DOMEFLAT", "SKYFLAT")
_WCS_TEXT = re.compile(r"^(CTYPE|CUNIT)[12]$|^RADE(SYS|CSYS)$")
_WCS_NUMBER = re.compile(
    r"^(CRVAL|CRPIX|CDELT)[12]$|^(CD|PC)[12]_[12]$|^PV[12]_\d+$|^LONPOLE$|^LATPOLE$|^EQUINOX$"
    r"|^[AB]P?_(ORDER|DMAX|\d_\d)$"
)


@dataclass(frozen=True, kw_only=True)
class NameFacts:
    """What a file's name tells: any part may be absent."""

    site: Site | None = None
    night: str | None = None
    number: int | None = None
    chip: str | None = None


def name_facts(name: str) -> NameFacts:
    """Return what a file name tells of site, night, number and chip."""
    exposure = parse_exposure_name(name)
    match = next((m for m in (pattern.search(name) for pattern in _NAMES) if m), None)
    found = match.groupdict() if match else {}
    site, night, number = found.get("site"), found.get("night"), found.get("number")
    return NameFacts(
        site=exposure.site if exposure else (Site(site.upper()) if site else None),
        night=exposure.night if exposure else night,
        number=exposure.number if exposure else (int(number) if number else None),
        chip=found["chip"][0].upper() if "chip" in found else None,
    )


def exposure_id(where: str, name: str, headers: Sequence[fits.Header]) -> ExposureId:
    """Return site, night and number of a file.

    The site is OBSERVAT's (INSTRUME says KMTS at every site), else ORIGIN's, else the file name's prefix.
    Night and number are the file name's, else those of the name in the FILENAME card, else the night is
    that of the start of the exposure, changed at the site's boundary, and the number its hhmmss.

    Raises
    ------
    InputError
        When the site or the time cannot be told.

    """
    facts = name_facts(name)
    inner = name_facts(PurePath(text(headers, "FILENAME") or "").name)
    site = next((s for s in (_site(headers, "OBSERVAT"), _site(headers, "ORIGIN")) if s), None)
    site = site or facts.site or inner.site
    if site is None:
        raise InputError(f"{where}: site unknown: OBSERVAT is {text(headers, 'OBSERVAT')!r}")
    if facts.site not in (None, site):
        log.warning("%s: OBSERVAT says %s, the file name %s", where, site, facts.site)
    night = facts.night or inner.night
    number = facts.number if facts.number is not None else inner.number
    if night is None or number is None:
        start = start_time(headers)
        if start is None:
            raise InputError(f"{where}: neither file name nor DATE-OBS tells the night")
        night = night or night_of(start, site)
        number = number if number is not None else int(start.strftime("%H%M%S"))
    return ExposureId(site, night, number)


def night_of(start: datetime, site: Site) -> str:
    """Return the night (YYYYMMDD) that file names give to an exposure begun at this UTC.

    The night changes at 12:30 local time. SAAO and SSO name it by the UT date of its beginning, CTIO by
    that of its end: there 2021-05-02T23:00 and 2021-05-03T05:27 are both 20210503.
    """
    hours = site.facts.night_boundary_ut_hours
    return (start + timedelta(hours=24 - hours if hours > 12 else -hours)).strftime("%Y%m%d")


def start_time(headers: Sequence[fits.Header]) -> datetime | None:
    """Return when the shutter opened (UTC): from UT, which has the fraction of a second, else DATE-OBS.

    UT may be a date and time or a time alone; TSHOPEN (a time) stands in for it in single-CCD files.
    """
    begin = _datetime(text(headers, "DATE-OBS"))
    ut = _datetime(text(headers, "UT"))
    if ut is not None:
        return ut
    for name in ("UT", "TSHOPEN"):
        clock = _datetime(f"{begin:%Y-%m-%d}T{text(headers, name)}") if begin else None
        if clock is not None:
            # DATE-OBS may name the day before or after when the shutter opened at midnight
            return min((clock + timedelta(days=d) for d in (-1, 0, 1)), key=lambda t: abs(t - begin))
    return begin


def chip_facts(headers: Sequence[fits.Header]) -> dict[str, object]:
    """Return the header facts of a `RawChip`: those of any instrument, with KMTNet's time and pointing."""
    start = start_time(headers)
    extra = fits.Header()
    if start is not None:
        extra["DATE-OBS"] = start.isoformat()
        extra["TIMESYS"] = "UTC"
    facts: dict[str, object] = dict(header_facts([extra, *headers]))
    facts["pointing"] = pointing(headers)
    return facts


def checked_band(where: str, headers: Sequence[fits.Header]) -> str | None:
    """Return the band; None when a header has no FILTER, and whatever it says for calibration frames.

    Raises
    ------
    UnwantedExposure
        When a sky exposure was taken in another filter than B, V, R and I (sites also have LSST g, r, i).

    """
    name = text(headers, "FILTER")
    if name is None or name in BANDS or (image_type(headers) or "") in _CALIBRATIONS:
        return name
    raise UnwantedExposure(f"{where}: FILTER {name!r} is none of {', '.join(BANDS)}")


def image_type(headers: Sequence[fits.Header]) -> str | None:
    """Return IMAGETYP (else OBSTYPE) in capitals: OBJECT, BIAS, FLAT and so on."""
    kind = text(headers, "IMAGETYP") or text(headers, "OBSTYPE")
    return kind.upper() if kind else None


def pointing(headers: Sequence[fits.Header]) -> tuple[float, float] | None:
    """Return the telescope's RA and DEC in degrees; None when absent, nonsense or exactly (0, 0).

    Sexagesimal RA is in hours. A plain number is in degrees, unless the header's own CRVAL1 says hours.
    """
    ra, dec = text(headers, "RA"), text(headers, "DEC")
    ra_value, dec_value = _sexagesimal(ra), _sexagesimal(dec)
    if ra_value is None or dec_value is None or (ra_value == 0 and dec_value == 0):
        return None
    hours = ":" in ra or " " in ra
    reference = _sexagesimal(text(headers, "CRVAL1"))
    if not hours and reference is not None and ra_value <= 24:
        hours = abs(ra_value * 15 - reference) < abs(ra_value - reference)
    degrees = ra_value * 15 if hours else ra_value
    return (degrees, dec_value) if 0 <= degrees < 360 and -90 <= dec_value <= 90 else None


def chip_wcs(header: fits.Header, x0: int, y0: int, shape: tuple[int, int]) -> WCS | None:
    """Return the WCS of an assembled chip, from the header of the part placed at column x0 and row y0.

    CRPIX of a raw strip counts from its first *data* pixel, although the strip has a prescan before it:
    KASI's headers agree on one mosaic centre only so (CRPIX + DTV). So nothing is subtracted for the
    prescan. None when the header has no usable WCS or only placeholders (CRVAL 0, 0).
    """
    clean = fits.Header()
    for name in dict.fromkeys(header):
        value = card(header, name)
        if _WCS_TEXT.match(name) and isinstance(value, str):
            clean["RADESYS" if name == "RADECSYS" else name] = value.strip()
        elif _WCS_NUMBER.match(name):
            number = _sexagesimal(None if isinstance(value, bool) else str(value))
            if number is None:
                log.debug("%s = %r is not a number: no WCS", name, value)
                return None
            clean[name] = int(number) if name.endswith("ORDER") else number
    if clean.get("CRVAL1", 0.0) == 0 and clean.get("CRVAL2", 0.0) == 0:
        return None
    clean["CRPIX1"] = clean.get("CRPIX1", 0.0) + x0
    clean["CRPIX2"] = clean.get("CRPIX2", 0.0) + y0
    return celestial_wcs(clean, shape)


def text(headers: Sequence[fits.Header], name: str) -> str | None:
    """Return the first non-empty value of a card as text."""
    for header in headers:
        value = card(header, name)
        words = "" if value is None or isinstance(value, bool) else " ".join(str(value).split())
        if words:
            return words
    return None


def _site(headers: Sequence[fits.Header], name: str) -> Site | None:
    words = re.split(r"[^A-Z]+", (text(headers, name) or "").upper())
    return next((site for site in Site if site.value in words), None)


def _datetime(words: str | None) -> datetime | None:
    match = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d?:\d\d:\d\d)(\.\d+)?Z?$", words or "")
    if not match:
        return None
    try:
        whole = datetime.fromisoformat(f"{match[1]}T{match[2].zfill(8)}")
    except ValueError:
        return None
    if not 1990 <= whole.year <= 2100:
        return None
    return whole + timedelta(seconds=float(match[3] or 0))


def _sexagesimal(words: str | None) -> float | None:
    """Return d:m:s, d m s or a plain number; None when it is none of these or not finite."""
    match = re.match(r"([+-]?)(\d{1,3})[: ](\d{1,2})[: ](\d{1,2}(?:\.\d*)?)$", words or "")
    if match:
        minutes, seconds = int(match[3]), float(match[4])
        value = int(match[2]) + minutes / 60 + seconds / 3600
        return None if minutes > 59 or seconds > 60 else (-value if match[1] == "-" else value)
    try:
        number = float((words or "").upper().replace("D", "E"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
