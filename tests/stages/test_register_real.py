"""Registration and its sky positions on real frames that have a WCS of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.fits_image import read_chip
from ks4diff.stages.astrometry import chip_wcs
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.register import RegisterConfig, register, template_position

FLOWS = "SNflows+flows/photometry/2019so/SN2019so_20190201_{}.fits.gz"
SDSS = "steveschulze+Photometry/Example/SN2015bn_SDSS_r_wcs.fits.fz"


def plain_tpv(header, x, y):
    """Return (ra, dec) degrees of 0-based pixels by the formulas of TPV, up to third order, and of TAN."""
    dx, dy = x + 1 - header["CRPIX1"], y + 1 - header["CRPIX2"]
    xi = header["CD1_1"] * dx + header["CD1_2"] * dy
    eta = header["CD2_1"] * dx + header["CD2_2"] * dy

    def axis(name, a, b):
        r = np.hypot(a, b)
        terms = [1, a, b, r, a**2, a * b, b**2, a**3, a**2 * b, a * b**2, b**3, r**3]
        default = [0, 1] + 10 * [0]
        return sum(header.get(f"{name}_{k}", default[k]) * term for k, term in enumerate(terms))

    xi, eta = np.radians(axis("PV1", xi, eta)), np.radians(axis("PV2", eta, xi))
    ra0, dec0 = np.radians(header["CRVAL1"]), np.radians(header["CRVAL2"])
    down = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, down)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, down))
    return np.degrees(ra), np.degrees(dec)


def apart(one, other):
    """Return the distance, arcsec, of positions (ra, dec) degrees."""
    east = (one[0] - other[0]) * np.cos(np.radians(other[1]))
    return 3600 * np.hypot(east, one[1] - other[1])


@pytest.fixture
def sdss(realdata):
    return calibrate(read_chip(realdata / SDSS), CalibrateConfig())


def test_the_sdss_frame_reads_its_tpv(realdata, sdss):
    with fits.open(realdata / SDSS) as hdus:
        header = next(hdu.header for hdu in hdus if str(hdu.header.get("CTYPE1")).endswith("TPV"))
    assert any(header.get(f"PV1_{k}", 0) != 0 for k in range(4, 11))
    x, y = sdss.stars.x, sdss.stars.y
    assert len(x) > 20
    found = sdss.raw.wcs.all_pix2world(x, y, 0)
    assert apart(found, plain_tpv(header, x, y)).max() < 1e-4
    back = sdss.raw.wcs.all_world2pix(*found, 0)
    assert np.hypot(back[0] - x, back[1] - y).max() < 1e-3


def test_a_part_of_the_sdss_frame_finds_its_sky_by_stars_alone(sdss):
    corner, shape = (130, 60), (2250, 2200)
    data = sdss.raw.data[corner[1] : corner[1] + shape[0], corner[0] : corner[0] + shape[1]].copy()
    part = calibrate(replace(sdss.raw, data=data, wcs=None, flags=None), CalibrateConfig())
    found = register(part, sdss, RegisterConfig())
    wcs = chip_wcs(shape, found, sdss.raw.wcs)
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 2199, 9), np.linspace(0, 2249, 9)))
    landed = template_position(found, x, y)
    assert np.hypot(*(landed - np.stack([x, y]) - np.array(corner)[:, None])).max() < 0.03
    truth = sdss.raw.wcs.all_pix2world(x + corner[0], y + corner[1], 0)
    assert apart(wcs.all_pix2world(x, y, 0), truth).max() < 0.012


def test_v_and_r_agree_at_common_stars(realdata):
    v, r = (calibrate(read_chip(realdata / FLOWS.format(band)), CalibrateConfig()) for band in "VR")
    found = register(v, r, RegisterConfig())
    assert found.method == "wcs"
    i, j = found.pairs
    assert len(i) > 100
    one = v.raw.wcs.all_pix2world(v.stars.x[i], v.stars.y[i], 0)
    other = r.raw.wcs.all_pix2world(r.stars.x[j], r.stars.y[j], 0)
    clean = v.stars.clean[i] & r.stars.clean[j]
    distance = apart(one, other)
    assert np.median(distance) < 0.1
    assert np.sqrt((distance[clean] ** 2).mean()) < 0.1
