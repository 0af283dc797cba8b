"""Header cards as KMTNet's systems write them, traps included: astropy would not write most of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.ids import Site
from ks4diff.products.simulated import OVERSCAN, PRESCAN, ExposureFacts, SimulatedChip

CHIP_ORDER = ("M", "K", "N", "T")  # of extensions
STRIPS = 8
BACKWARDS = ("K", "N")  # their strip 1 is the rightmost
FULL = (9216, 9232)
GAPS = (460, 933)
_MJD_UNIX = 40587.0
_LONG = 67  # characters of a string that fit on a card before the &
_BITPIX = {"i2": 16, "i4": 32, "f4": -32, "u1": 8}
_NUMBER = {Site.CTIO: 1, Site.SAAO: 2, Site.SSO: 3}


def line(name: str, value: object = None, comment: str = "") -> str:
    """Return one card of 80 characters; without a value there is no equals sign either, as in real files."""
    tail = f" / {comment}" if comment else ""
    if value is None:
        return f"{name:<8}                      {tail}"[:80].ljust(80)
    if isinstance(value, bool):
        words = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        words = f"'{value:<8}'".ljust(20)
    elif isinstance(value, float | np.floating):
        words = f"{float(value)!r:>20}".replace("e", "E")
    else:
        words = f"{value!s:>20}"
    return f"{name:<8}= {words}{tail}"[:80].ljust(80)


def long_lines(name: str, value: str, comment: str) -> list[str]:
    """Return a string over several cards, ended by an empty CONTINUE with the comment, as in real files."""
    parts = [value[k : k + _LONG] for k in range(0, len(value), _LONG)]
    lines = [f"{name:<8}= '{parts[0]}&'", *(f"CONTINUE  '{part}&'" for part in parts[1:])]
    return [*lines, f"CONTINUE  '' / {comment}"]


def block(lines: Iterable[str]) -> bytes:
    """Return the header's bytes, END and padding included."""
    text = "".join(item.ljust(80) for item in (*lines, "END"))
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def stored(counts: np.ndarray) -> np.ndarray:
    """Return counts 0 to 65535 as signed big-endian numbers, to go with BZERO 32768."""
    return (counts.astype(np.int32) - 32768).astype(">i2")


def image_lines(data: np.ndarray, extname: str | None = None, *, primary: bool = False) -> list[str]:
    """Return the mandatory cards of an image of the data's own type."""
    first = line("SIMPLE", True, "Fits standard") if primary else line("XTENSION", "IMAGE", "Image extension")
    lines = [first, line("BITPIX", _BITPIX[data.dtype.str[1:]]), line("NAXIS", 2)]
    lines += [line("NAXIS1", data.shape[1]), line("NAXIS2", data.shape[0])]
    lines += [] if primary else [line("PCOUNT", 0), line("GCOUNT", 1)]
    return lines if extname is None else [*lines, line("EXTNAME", extname)]


def empty_primary_lines() -> list[str]:
    """Return the primary header's start; EXTEND is false although extensions follow, as in real files."""
    return [
        line("SIMPLE", True, "Fits standard"),
        line("BITPIX", 16, "Bits per pixel"),
        line("NAXIS", 0, "Number of axes"),
        line("EXTEND", False, "File may contain extensions"),
    ]


def start(facts: ExposureFacts) -> datetime:
    """Return when the shutter opened, rounded to hundredths of a second."""
    seconds = round((facts.start_mjd - _MJD_UNIX) * 86400, 2)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def sexagesimal(degrees: float, *, hours: bool) -> str:
    """Return 11:49:59.88 or -32:59:59.6."""
    digits = 2 if hours else 1
    value = round(abs(degrees) / (15 if hours else 1) * 3600, digits)
    whole, seconds = divmod(value, 60)
    big, minutes = divmod(int(whole), 60)
    sign = "" if hours else ("-" if degrees < 0 else "+")
    return f"{sign}{big:02d}:{minutes:02d}:{seconds:0{3 + digits}.{digits}f}"


def observation_lines(facts: ExposureFacts, filename: str, *, single: bool = False) -> list[str]:
    """Return the cards of one exposure as the legacy system writes them.

    Valueless cards, numbers as strings, CONTINUE, INSTRUME of another site, DATE-OBS cut to the second. The
    camera's own ``single``-CCD files have no UT card: TSHOPEN has the fraction.
    """
    site, begin = facts.id.site, start(facts)
    fraction = f"{begin:%H:%M:%S}.{begin.microsecond // 10_000:02d}"
    whole = begin.replace(microsecond=0)
    west = sexagesimal((-site.facts.longitude_deg) % 360, hours=False).lstrip("+").split(".")[0]
    mid_jd = 2400000.5 + _MJD_UNIX + (whole.timestamp() + facts.exptime / 2) / 86400
    lines = [
        line("ORIGIN", site.value, "FITS file originator"),
        line("OBJECT", facts.object, "Name of the object observed"),
        line("BUNIT", "ADU", "units of physical values (LBT)"),
        line("COMMENT"),
        line("DETECTOR", "e2v CCD290-99", "Detector name"),
        line("NAMPS", STRIPS, "Number of amplifiers in the detector"),
        line("GAINDL", None, "Pixel integration time, in sequencer clocks"),
        line("PIXITIME", None, "Pixel integration time, in seconds"),
        line("OVERSCNX", OVERSCAN, "Horizontal overscan pixels per amplifier"),
        line("PRESCANX", PRESCAN, "Horizontal prepixels per amplifier"),
        line("READOUT", "ARLBRL", "Amplifiers used in readout"),
        line("PIXSCALE", 0.4, "Unbinned pixel scale [arcsec per pixel]"),
        line("OBSERVAT", site.value, "Observatory Site"),
        line("TELESCOP", f"KMTNet 1.6m #{_NUMBER[site]}", "Telescope Name"),
        line("LONGITUD", west, "Site Longitude [deg W]"),
        line("IMAGETYP", "OBJECT", "Type of observation"),
        line("EXPTIME", round(facts.exptime), "Exposure time [seconds]"),
        line("TSHOPEN", fraction, "Master IC reports shutter open time"),
        line("TSHSHUT", None, "Master IC reportsshutter close time"),
        line("DATASRC", "CT_CORRECTION", "CBBs do ADC, CTC, or SIM data sources"),
        *long_lines(
            "FILENAME", f"/KMTNetPL/PL/SENDER3/d_INPUT/MEF_FITS/{facts.id.night}/{filename}", "MEF Filename"
        ),
        line("PROJID", "KS4"),
        line("INSTRUME", "KMTS", "Instrument Name"),
        line("TIMESYS", "UTC", "Time System"),
        line("DATE-OBS", f"{whole:%Y-%m-%dT%H:%M:%S}", "UTC Date and Time at start of obs"),
        line("RADECSYS", "ICRS", "Telescope Coordinate System"),
        line("RA", sexagesimal(facts.pointing[0], hours=True), "Telescope RA"),
        line("DEC", sexagesimal(facts.pointing[1], hours=False), "Telescope DEC"),
        line("EQUINOX", "2000.000", "Coordinate System Equinox"),
        line("SECZ", "1.20", "Secant of ZD (Airmass) at start of obs"),
        line("FILTER", facts.band, "Filter Name in the beam"),
        line("CCDTEMP", "-103.16", "CCD Temperature"),
        line("RTD12"),
        line("DETSIZE", "[1:18892,1:19397]", "KMNT Mosaic size in Pixels"),
    ]
    if not single:
        lines.append(line("UT", f"{whole:%Y-%m-%d}T{fraction}", "Master IC reports shutter open time"))
    lines += [line("COLGAP", GAPS[0]), line("ROWGAP", GAPS[1]), line("MIDJD", float(round(mid_jd, 8)))]
    return lines


def strip_name(chip: str, position: int) -> str:
    """Return the label of the strip at a position, 0 leftmost."""
    return f"{chip}{STRIPS - position if chip in BACKWARDS else position + 1:02d}"


def wcs_lines(wcs: WCS, x0: int = 0) -> list[str]:
    """Return the plain TAN cards of a chip's header, for a strip that begins at column ``x0``."""
    w = wcs.wcs
    return [
        line("CTYPE1", "RA---TAN", "Coordinate Type"),
        line("CTYPE2", "DEC--TAN", "Coordinate Type"),
        line("CRVAL1", float(w.crval[0]), "Coordinate Reference Value"),
        line("CRVAL2", float(w.crval[1]), "Coordinate Reference Value"),
        line("CRPIX1", round(w.crpix[0]) - x0, "Coordinate Reference Pixel"),
        line("CRPIX2", round(w.crpix[1]), "Coordinate Reference Pixel"),
        line("CD1_1", float(w.cd[0, 0]), "Coordinate Transformation Matrix"),
        line("CD1_2", float(w.cd[0, 1]), "Coordinate Transformation Matrix"),
        line("CD2_1", float(w.cd[1, 0]), "Coordinate Transformation Matrix"),
        line("CD2_2", float(w.cd[1, 1]), "Coordinate Transformation Matrix"),
    ]


def strip_lines(chip: SimulatedChip, position: int, *, raw: bool) -> list[str]:
    """Return a strip's sections and WCS; CRPIX ignores the prescan, as in real files."""
    strip = chip.amplifiers[position]
    rows, width = chip.counts.shape[0], strip.x1 - strip.x0
    left = chip.corner[0] + strip.x0 + (0 if chip.chip in "MN" else FULL[0] + GAPS[0])
    low = chip.corner[1] + (FULL[1] + GAPS[1] if chip.chip in "MK" else 0)
    before = PRESCAN if raw else 0
    lines = [
        line("CCDNAME", f"KMTNet CCD {chip.chip}"),
        line("AMPNAME", strip_name(chip.chip, position)),
        line("CCDSEC", f"[{strip.x0 + 1}:{strip.x1},1:{rows}]", "CCD Data Section"),
        line("DATASEC", f"[{before + 1}:{before + width},1:{rows}]", "Data Section"),
        line("DETSEC", f"[{left + 1}:{left + width},{low + 1}:{low + rows}]", "Stripe Coords on Detector"),
    ]
    if raw:
        bias = PRESCAN + width
        lines.append(line("BIASSEC", f"[{bias + 1}:{bias + OVERSCAN},1:{rows}]", "Bias Overscan Section"))
        lines.append(line("IMFLIP", "-X,-Y" if chip.chip in BACKWARDS else "None", "Raw Stripe Flip Applied"))
    return [*lines, line("ALT", "0.000000"), *wcs_lines(chip.header_wcs, strip.x0)]
