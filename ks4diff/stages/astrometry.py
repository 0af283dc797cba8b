"""Sky positions and zero point of a chip, from the template that it was registered to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
from astropy.wcs import WCS, Sip

from ks4diff.numerics import polynomial
from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.products.registration import Registration
from ks4diff.stages.register import template_position

PIXEL_ARCSEC = 0.3952  # KASI's level-1 design; headers say 0.400
CHIP_CENTRE_DEG = {  # east and north of the mosaic's centre, from the same (CTIO 2026)
    "M": (0.533, 0.562),
    "K": (-0.533, 0.562),
    "N": (0.533, -0.562),
    "T": (-0.533, -0.562),
}
FULL_SIZE = (9216, 9232)  # columns, rows of a KMTNet chip
# CRPIX of raw headers once the strips are assembled: all chips' point at the mosaic's centre
HEADER_CRPIX = {"M": (9445, -466), "K": (-231, -466), "N": (9445, 9698), "T": (-231, 9698)}
HEADER_SCALE_DEG = 0.00011122  # of raw headers, degrees per pixel; solved ones have 0.00010978
GRID = 24  # positions a side through which the WCS is fitted
SIP_DEGREE = 7  # as the registration of a KMTNet chip


class TpvSolution(Protocol):
    """A chip's known distortion: CRPIX, CD [2, 2] in degrees per pixel, PV coefficients by axis and term."""

    crpix: tuple[float, float]
    cd: np.ndarray
    pv: tuple[tuple[float, ...], tuple[float, ...]]


def solved(chip: CalibratedChip, registration: Registration, template: RawChip, per_count: float) -> RawChip:
    """Return the chip with what the template knows of sky and flux and its own header does not.

    A KMTNet chip takes its WCS from the template always, its own being arcminutes wrong; another image only
    when it has none. Likewise the zero point, where the image has none: the template's, through
    ``per_count``, a star's science counts per template count: the median over the chip.
    """
    raw, shape = chip.raw, chip.image.shape
    wcs, zeropoint = raw.wcs, raw.zeropoint
    if template.wcs is not None and (wcs is None or raw.exposure is not None):
        wcs = chip_wcs(shape, registration, template.wcs)
    if zeropoint is None and template.zeropoint is not None:
        zeropoint = template.zeropoint + 2.5 * float(np.log10(per_count))
    return replace(raw, wcs=wcs, zeropoint=zeropoint)


def nominal_wcs(raw: RawChip) -> WCS | None:
    """Return the WCS that a KMTNet chip should have by the telescope's pointing, None without one.

    A plain TAN of the true scale and the chips' places in the mosaic; the pointing errs by up to 2
    arcminutes, the chips are turned by up to 0.8 degrees and the field is distorted by up to 54 arcseconds in
    the corners.
    """
    if raw.pointing is None or raw.chip not in CHIP_CENTRE_DEG:
        return None
    rows, columns = raw.data.shape
    east, north = CHIP_CENTRE_DEG[raw.chip]
    pixel = PIXEL_ARCSEC / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = list(raw.pointing)
    wcs.wcs.cdelt = [-pixel, pixel]
    # columns grow to the west, rows to the north
    wcs.wcs.crpix = [(columns + 1) / 2 + east / pixel, (rows + 1) / 2 - north / pixel]
    wcs.pixel_shape = (columns, rows)
    return wcs


def first_wcs(
    raw: RawChip, solutions: Mapping[tuple[str, str], TpvSolution], name: str = "wcs"
) -> WCS | None:
    """Return the best WCS that a KMTNet chip has before its stars are seen, None when it has none.

    The chip's known distortion about the claimed pointing: wrong by the pointing's 2 arcminutes and the
    camera's angle, but hardly by anything else. A WCS that the file's own solver made stays, and so does
    that of other instruments. The site "any" serves those without a solution of their own. ``name`` becomes
    WCSNAME, by which `register` tells where its first guess came from.
    """
    solved_before = raw.wcs is not None and not _is_raw_header(raw.wcs)
    solution = solutions.get((str(raw.site), raw.chip), solutions.get(("any", raw.chip)))
    if raw.exposure is None or solved_before or solution is None:
        return raw.wcs if raw.wcs is not None else nominal_wcs(raw)
    pointing = raw.pointing if raw.wcs is None else tuple(raw.wcs.wcs.crval)
    if pointing is None:
        return None
    x0, y0 = _corner(raw)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TPV", "DEC--TPV"]
    wcs.wcs.crval = list(pointing)
    wcs.wcs.crpix = [solution.crpix[0] - x0, solution.crpix[1] - y0]
    wcs.wcs.cd = solution.cd
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set_pv([(axis, k, v) for axis in (1, 2) for k, v in enumerate(solution.pv[axis - 1])])
    wcs.wcs.name = name
    wcs.wcs.set()
    wcs.pixel_shape = raw.data.shape[::-1]
    return wcs


def _is_raw_header(wcs: WCS) -> bool:
    """Return whether this is the plain TAN of a raw header or of one rewritten before any solution."""
    # a TPV solution's own ctype says TAN once wcslib has set it up; written out again it has its name
    plain = wcs.sip is None and all(
        str(wcs.to_header(relax=True).get(name, "")).endswith("TAN") for name in ("CTYPE1", "CTYPE2")
    )
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    # 1.2 %: the survey's own intermediate files say 0.00011
    return plain and abs(scale / HEADER_SCALE_DEG - 1) < 0.0122


def _corner(raw: RawChip) -> tuple[float, float]:
    """Return the pixel of the full chip at which a cut-out starts: by its CRPIX, else it is in the middle."""
    rows, columns = raw.data.shape
    room = (FULL_SIZE[0] - columns, FULL_SIZE[1] - rows)
    if raw.wcs is not None:
        corner = [
            float(known - own) for known, own in zip(HEADER_CRPIX[raw.chip], raw.wcs.wcs.crpix, strict=True)
        ]
        if all(-64 <= at <= free + 64 for at, free in zip(corner, room, strict=True)):
            return corner[0], corner[1]
    return room[0] / 2, room[1] / 2


def chip_wcs(shape: tuple[int, int], registration: Registration, template: WCS) -> WCS:
    """Return the TAN-SIP WCS of an image of ``shape`` (rows, columns) registered to a template.

    Within 0.005 px of the registration's polynomial seen through the template's WCS, corners included. Its
    local correction is followed as far as `SIP_DEGREE` allows: of 0.05 px in one cell alone 0.04 px are
    lost, and where neighbours go opposite ways up to twice the correction.
    """
    rows, columns = shape
    # Chebyshev nodes: a polynomial through equal steps is worst in the corners
    t = 0.5 - 0.5 * np.cos(np.pi * np.arange(GRID) / (GRID - 1))
    x, y = (axis.ravel() for axis in np.meshgrid(t * (columns - 1), t * (rows - 1)))
    middle = np.array([(columns - 1) / 2, (rows - 1) / 2])
    sky = template.all_pix2world(*template_position(registration, x, y), 0)
    crval = np.concatenate(
        template.all_pix2world(*template_position(registration, middle[:1], middle[1:]), 0)
    )
    # in units of half the image, whose powers are of order one; without a constant, CRPIX being at CRVAL
    unit = max(rows, columns) / 2
    design = polynomial.design((x - middle[0]) / unit, (y - middle[1]) / unit, SIP_DEGREE)[:, 1:]
    terms, *_ = np.linalg.lstsq(design, _tangent(*sky, crval).T, rcond=None)
    cd = terms[:2].T / unit
    sip = np.zeros((2, SIP_DEGREE + 1, SIP_DEGREE + 1))
    for (i, j), term in zip(polynomial.exponents(SIP_DEGREE)[3:], terms[2:], strict=True):
        sip[:, i, j] = np.linalg.solve(cd, term) / unit ** (i + j)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval = crval
    wcs.wcs.crpix = middle + 1
    wcs.wcs.cd = cd
    wcs.wcs.radesys = "ICRS"
    wcs.sip = Sip(sip[0], sip[1], None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    wcs.pixel_shape = (columns, rows)
    return wcs


def _tangent(ra: np.ndarray, dec: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return float64 [2, n], degrees east and north on the tangent plane at ``centre`` (ra, dec)."""
    plane = WCS(naxis=2)
    plane.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    plane.wcs.crval = centre
    plane.wcs.cdelt = [1.0, 1.0]
    return np.stack(plane.wcs_world2pix(ra, dec, 0)) + 1.0
