"""What a FITS header says about an image, read with tolerance: units, time, filter and names."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date

import numpy as np
from astropy.io import fits
from astropy.time import Time

log = logging.getLogger(__name__)

# Wide enough for coadds (DES stacks: gain 29) and photon counters, narrow enough to drop fillers
# such as 0, -1, 99999999 or 1e30.
_GAIN_RANGE = (1e-4, 1e6)
_READ_NOISE_RANGE = (1e-4, 1e4)
_SATURATION_RANGE = (1.0, 1e12)
_EXPTIME_RANGE = (1e-4, 1e7)
_MAGZERO_RANGE = (5.0, 50.0)
_MJD_RANGE = (15000.0, 100000.0)  # 1899 to 2132
_MJD_OF_ORDINAL_0 = -678576
_JD_OF_MJD_0 = 2400000.5
_CLOCK_CARDS = ("TIME-OBS", "UTSTART", "UT", "UTC-OBS")
_SCALES = ("utc", "tai", "tt", "tdb", "tcg", "tcb")


@contextmanager
def quiet_astropy(where: str) -> Iterator[None]:
    """Keep astropy's warnings and log lines from the user; they are logged at debug, named by ``where``.

    Real headers break the standard in harmless ways (valueless cards, CONTINUE without a string,
    old dates); each would be a warning of several lines per file.
    """
    astropy_log = logging.getLogger("astropy")
    level = astropy_log.level
    caught: list[warnings.WarningMessage] = []
    astropy_log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        astropy_log.setLevel(level)
        for item in caught:
            log.debug("%s: %s", where, one_line(item.message))


def one_line(message: object, limit: int = 160) -> str:
    """Return the text of ``message`` on one line of at most ``limit`` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def header_facts(headers: Sequence[fits.Header]) -> dict[str, float | str | None]:
    """Return the facts of one image, None where absent or nonsense.

    Parameters
    ----------
    headers
        The image's header, then those it inherits from (the primary header). A fact is looked for
        under all its names in the first header before the next one is asked.

    Returns
    -------
    dict
        ``gain`` (electrons per count), ``read_noise`` (electrons), ``saturation`` (counts), ``zeropoint``
        (AB, MAGZERO only: other keywords have other photometric systems), ``exptime`` (seconds),
        ``mjd_mid`` (UTC), ``filter``, ``site``, ``object``: the names of `RawChip`.

    """
    exptime = _first_number(headers, ("EXPTIME", "EXPOSURE"), _EXPTIME_RANGE)
    return {
        "gain": _per_amplifier(headers, ("GAIN", "EGAIN"), "GAIN", _GAIN_RANGE, np.mean),
        "read_noise": _per_amplifier(
            headers, ("RDNOISE", "READNOIS", "RON"), "RDNOISE", _READ_NOISE_RANGE, np.mean
        ),
        "saturation": _per_amplifier(
            headers, ("SATURATE", "SATLEVEL", "MAXLIN"), "SATURAT", _SATURATION_RANGE, np.min
        ),
        "zeropoint": _first_number(headers, ("MAGZERO",), _MAGZERO_RANGE),
        "exptime": exptime,
        "mjd_mid": _mjd_mid(headers, exptime),
        "filter": _first_text(headers, ("FILTER", "FILTERS", "BAND")),
        "site": _first_text(headers, ("OBSERVAT",)),
        "object": _first_text(headers, ("OBJECT",)),
    }


def card(header: fits.Header, name: str) -> object | None:
    """Return the value of a card; None when absent, without a value or beyond parsing."""
    try:
        value = header.get(name)
    except (fits.VerifyError, ValueError, KeyError) as error:
        log.debug("card %s cannot be parsed: %s", name, one_line(error))
        return None
    return None if isinstance(value, fits.card.Undefined) else value


def _number(header: fits.Header, name: str, allowed: tuple[float, float]) -> float | None:
    value = card(header, name)
    if isinstance(value, str):
        try:
            value = float(value.strip().upper().replace("D", "E"))  # Fortran writes 1.9D0
        except ValueError:
            if value.strip():
                log.debug("card %s = %r is not a number", name, value)
            return None
    if value is None or isinstance(value, bool | np.bool_ | complex):
        return None
    number = float(value)
    if not allowed[0] <= number <= allowed[1]:  # false for NaN too
        log.debug("card %s = %r is outside [%g, %g]: ignored", name, value, *allowed)
        return None
    return number


def _first_number(
    headers: Sequence[fits.Header], names: Sequence[str], allowed: tuple[float, float]
) -> float | None:
    for header in headers:
        for name in names:
            number = _number(header, name, allowed)
            if number is not None:
                return number
    return None


def _per_amplifier(headers, names, stem, allowed, combine) -> float | None:
    """Return a number under one of ``names``, else amplifiers A and B (``stem`` + letter) combined."""
    for header in headers:
        number = _first_number([header], names, allowed)
        if number is not None:
            return number
        amplifiers = [_number(header, stem + letter, allowed) for letter in "AB"]
        known = [number for number in amplifiers if number is not None]
        if known:
            return float(combine(known))
    return None


def _first_text(headers: Sequence[fits.Header], names: Sequence[str]) -> str | None:
    for header in headers:
        for name in names:
            value = card(header, name)
            text = "" if value is None or isinstance(value, bool) else " ".join(str(value).split())
            if text:
                return text
    return None


def _mjd_mid(headers: Sequence[fits.Header], exptime: float | None) -> float | None:
    """Return the UTC MJD of mid-exposure; of its start when the exposure time is unknown."""
    for header in headers:
        start = _mjd_start(header)
        if start is not None:
            middle = start + (exptime or 0.0) / 172800.0
            return _to_utc(middle, _first_text(headers, ("TIMESYS",)))
    return None


def _mjd_start(header: fits.Header) -> float | None:
    mjd = _number(header, "MJD-OBS", _MJD_RANGE)
    if mjd is not None and mjd % 1:
        return mjd
    # Some observatories write the date alone as MJD-OBS (CTIO 1.3 m): a time of day elsewhere is better.
    finer = _from_date(header)
    if finer is None:
        jd = _number(header, "JD", (_MJD_RANGE[0] + _JD_OF_MJD_0, _MJD_RANGE[1] + _JD_OF_MJD_0))
        finer = None if jd is None else jd - _JD_OF_MJD_0
    if mjd is None or (finer is not None and 0 <= finer - mjd < 1):
        return finer
    return mjd


def _from_date(header: fits.Header) -> float | None:
    """Return the MJD of DATE-OBS with its own time or a clock card's; None when either is missing."""
    text = str(card(header, "DATE-OBS") or "").strip()
    match = re.match(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ](.*))?$", text)
    if match:
        year, month, day = (int(match[k]) for k in (1, 2, 3))
        clock = match[4]
    else:
        # The FITS form before 1999, dd/mm/yy with years since 1900; some wrote 102 for 2002.
        match = re.match(r"(\d{1,2})/(\d{1,2})/(\d{2,3})$", text)
        if not match:
            return None
        day, month, year = int(match[1]), int(match[2]), 1900 + int(match[3])
        clock = None
    seconds = _seconds_of_day(clock)
    for name in _CLOCK_CARDS:
        if seconds is None:
            seconds = _seconds_of_day(str(card(header, name) or "").split("T")[-1])
    if seconds is None:
        log.debug("DATE-OBS = %r has no time of day", text)
        return None
    try:
        mjd = date(year, month, day).toordinal() + _MJD_OF_ORDINAL_0 + seconds / 86400.0
    except ValueError:
        log.debug("DATE-OBS = %r is not a date", text)
        return None
    return mjd if _MJD_RANGE[0] <= mjd <= _MJD_RANGE[1] else None


def _seconds_of_day(clock: str | None) -> float | None:
    match = re.match(r"\s*(\d{1,2}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)\s*(?:Z|UTC?)?\s*$", clock or "")
    if not match:
        return None
    hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3])
    if hours > 24 or minutes > 59 or seconds > 61:
        return None
    return 3600.0 * hours + 60.0 * minutes + seconds


def _to_utc(mjd: float, timesys: str | None) -> float:
    scale = (timesys or "utc").lower()
    if scale == "utc" or scale not in _SCALES:
        return mjd  # UT, UT1, GMT and unknown words: within a second of UTC
    return float(Time(mjd, format="mjd", scale=scale).utc.mjd)
