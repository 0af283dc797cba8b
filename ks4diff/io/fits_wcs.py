"""The celestial WCS of an image, when the header has one that can be trusted."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, NoConvergence, WcsError

from ks4diff.io.fits_header import card, one_line

log = logging.getLogger(__name__)

_SCALE_RANGE_ARCSEC = (0.005, 300.0)
# What astropy.wcs raises on headers that contradict themselves or leave CTYPE without a value.
_WCS_ERRORS = (
    WcsError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    AssertionError,
    OSError,
    fits.VerifyError,
)


def celestial_wcs(
    header: fits.Header, shape: tuple[int, int], hdus: fits.HDUList | None = None
) -> WCS | None:
    """Return the celestial WCS of an image, or None when there is none that can be trusted.

    Parameters
    ----------
    header
        The image's own header.
    shape
        (rows, columns) of the image.
    hdus
        The open file; needed only by look-up-table distortions.

    Returns
    -------
    WCS or None
        Equatorial (ICRS or FK5 J2000), right ascension first. None when CTYPE is absent or of another
        system, when the image centre has no finite position, does not come back to its pixel within
        0.1 pixel, or has a scale outside 0.005 to 300 arcsec per pixel. A WCS that is present but refused
        is logged as a warning, since positions will be missing.

    """
    if not any(str(card(header, name) or "").strip() for name in ("CTYPE1", "CTYPE2")):
        return None
    try:
        wcs = WCS(_one_distortion(header), fobj=hdus, naxis=2)
        reason = _refusal(wcs, shape)
    except (*_WCS_ERRORS, NoConvergence) as error:
        wcs, reason = None, one_line(error)
    if reason:
        log.warning("WCS ignored: %s", reason)
        return None
    return wcs


def _one_distortion(header: fits.Header) -> fits.Header:
    """Return the header with the PV cards dropped when CTYPE says that the distortion is SIP.

    PTF files carry both, saying the same; wcslib refuses PV1_5 and above on a TAN-SIP axis.
    """
    if not str(card(header, "CTYPE1") or "").strip().endswith("-SIP"):
        return header
    extra = [name for name in header if re.fullmatch(r"PV[12]_\d+", name)]
    if extra:
        header = header.copy()
        for name in extra:
            del header[name]
    return header


def _refusal(wcs: WCS, shape: tuple[int, int]) -> str | None:
    """Return why ``wcs`` cannot be used for this image, or None."""
    ctypes = " ".join(wcs.wcs.ctype)
    if not wcs.has_celestial or wcs.wcs.lngtyp != "RA" or wcs.wcs.lng != 0:
        return f"CTYPE {ctypes} is not right ascension and declination"
    # FK4 is 0.6 degrees away from ICRS; FK5 J2000 agrees to 0.1 arcsec.
    old = wcs.wcs.radesys == "FK5" and math.isfinite(wcs.wcs.equinox) and wcs.wcs.equinox != 2000.0
    if wcs.wcs.radesys.strip() not in ("", "ICRS", "FK5") or old:
        return f"RADESYS {wcs.wcs.radesys} equinox {wcs.wcs.equinox:g} is not ICRS"
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = wcs.all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        return f"the image centre ({x:g}, {y:g}) has no sky position"
    step_ra = ((ra[1:] - ra[0] + 180) % 360 - 180) * math.cos(math.radians(dec[0]))
    scales = 3600 * np.hypot(step_ra, dec[1:] - dec[0])
    if not ((scales >= _SCALE_RANGE_ARCSEC[0]) & (scales <= _SCALE_RANGE_ARCSEC[1])).all():
        return f"pixel scale {scales[0]:.3g} x {scales[1]:.3g} arcsec at the image centre is absurd"
    back = wcs.all_world2pix(ra[:1], dec[:1], 0)
    if not max(abs(back[0][0] - x), abs(back[1][0] - y)) < 0.1:
        return f"the image centre maps back to ({back[0][0]:.1f}, {back[1][0]:.1f}), not ({x:g}, {y:g})"
    return None
