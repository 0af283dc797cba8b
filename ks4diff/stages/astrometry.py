"""Sky positions and zero point of a chip, from the template that it was registered to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import fit_wcs_from_points

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
GRID = 24  # positions a side through which the WCS is fitted
SIP_DEGREE = 4  # one more than the registration's: a cubic of pixels seen through the tangent projection


def solved(chip: CalibratedChip, registration: Registration, template: RawChip, flux_scale: float) -> RawChip:
    """Return the chip with what the template knows of sky and flux and its own header does not.

    A KMTNet chip takes its WCS from the template always, its own being arcminutes wrong; another image only
    when it has none. Likewise the zero point, where the image has none: the template's, through the flux
    scale.
    """
    raw, shape = chip.raw, chip.image.shape
    wcs, zeropoint = raw.wcs, raw.zeropoint
    if template.wcs is not None and (wcs is None or raw.exposure is not None):
        wcs = chip_wcs(shape, registration, template.wcs)
    if zeropoint is None and template.zeropoint is not None:
        # resampling conserves surface brightness, so a flux in template counts shows in science pixels
        # divided by their area
        area = pixel_area(registration, shape)
        zeropoint = template.zeropoint + 2.5 * float(np.log10(flux_scale / area))
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


def chip_wcs(shape: tuple[int, int], registration: Registration, template: WCS) -> WCS:
    """Return the TAN-SIP WCS of an image of ``shape`` (rows, columns) registered to a template."""
    rows, columns = shape
    x, y = (
        axis.ravel()
        for axis in np.meshgrid(np.linspace(0, columns - 1, GRID), np.linspace(0, rows - 1, GRID))
    )
    ra, dec = template.all_pix2world(*template_position(registration, x, y), 0)
    middle = template.all_pix2world(*template_position(registration, [columns / 2], [rows / 2]), 0)
    centre = SkyCoord(middle[0][0], middle[1][0], unit="deg")
    sky = SkyCoord(ra, dec, unit="deg")
    wcs = fit_wcs_from_points((x, y), sky, proj_point=centre, projection="TAN", sip_degree=SIP_DEGREE)
    wcs.pixel_shape = (columns, rows)
    return wcs


def pixel_area(registration: Registration, shape: tuple[int, int]) -> float:
    """Return the area of the image's middle pixel in template pixels."""
    x, y = shape[1] / 2, shape[0] / 2
    corners = template_position(
        registration, np.array([x - 0.5, x + 0.5, x, x]), np.array([y, y, y - 0.5, y + 0.5])
    )
    along_x, along_y = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 2]
    return float(abs(along_x[0] * along_y[1] - along_x[1] * along_y[0]))
