"""Names of KMTNet's fields, against the survey's own grid."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from ks4diff.io.tile_tables import read_distortions, read_field_grid
from ks4diff.products.fields import field_name, field_number, find_field_name, nearest_fields


@pytest.fixture(scope="module")
def grid():
    return read_field_grid()


@pytest.mark.realdata
def test_every_name_and_centre_is_the_survey_s(grid, realdata):
    table = Table.read(realdata / "jmk5040+KMTNet_ToO" / "kmtnet_grid.fits")
    assert [grid.name(n)[5:] for n in range(len(grid))] == [
        str(name).strip() for name in table["field_name2"]
    ]
    np.testing.assert_allclose(grid.ra, table["ra[deg]"], atol=1.1e-6)
    np.testing.assert_allclose(grid.dec, table["dec[deg]"], atol=1.1e-6)
    np.testing.assert_array_equal(grid.dithers, table["max_dith"])


def test_fields_with_a_template_are_the_first_2749(grid):
    assert len(grid) == 8335
    assert [grid.has_template(n) for n in (0, 2748, 2749, 8334)] == [True, True, False, False]
    assert sum(grid.has_template(n) for n in range(len(grid))) == 2749


@pytest.mark.parametrize(
    ("number", "ra", "dec", "name"),
    [
        (670, 22.5, -86.0, "0670.023-86"),  # KS4 rounds, halves up
        (2149, 114.782608, -50.0, "2149.115-50"),
        (2750, 2.9, -28.7, "2750.002-28"),  # the extension cuts
        (8000, 3.0, 0.5, "8000.003+00"),
        (8001, 3.0, -0.5, "8001.003-00"),
    ],
)
def test_names_follow_the_rule(number, ra, dec, name):
    assert field_name(number, ra, dec) == name


def test_a_name_finds_its_field(grid):
    assert field_number(grid, "2149.115-50") == 2149
    assert field_number(grid, "115-50") == 2149
    assert field_number(grid, "2148.115-50") is None
    assert field_number(grid, "NGC 253") is None
    assert find_field_name("ks4.2149.115-50.R.720sec.reduced.scaled.stack.fits") == "2149.115-50"
    assert find_field_name("G331903_9027") is None


@pytest.mark.parametrize(("ra", "dec"), [(0.01, -62.0), (359.99, -61.5), (200.0, -89.99), (120.3, 28.0)])
def test_nearest_fields_are_those_of_astropy(grid, ra, dec):
    centres = SkyCoord(grid.ra, grid.dec, unit="deg")
    true = SkyCoord(ra, dec, unit="deg").separation(centres).deg
    found = nearest_fields(grid, ra, dec, n=3)
    np.testing.assert_allclose([d for _, d in found], np.sort(true)[:3], atol=1e-9)


@pytest.mark.realdata
@pytest.mark.parametrize(("site", "stem"), [("CTIO", "_ctio"), ("SSO", "_sso"), ("any", "")])
def test_rounded_distortions_move_no_pixel_by_a_milliarcsecond(realdata, site, stem):
    from astropy.io import fits
    from astropy.wcs import WCS

    solution = read_distortions()[site, "K"]
    path = realdata / "jmk5040+KMTNet_ToO" / f"kmtnet_global{stem}.kk.ahead"
    cards = [
        line.split("/")[0].split("=") for line in path.read_text(encoding="utf-8").splitlines() if "=" in line
    ]
    wanted = ("CRPIX", "CD", "PV")
    true = fits.Header([(n.strip(), float(v)) for n, v in cards if n.startswith(wanted)])
    true["CTYPE1"], true["CTYPE2"] = "RA---TPV", "DEC--TPV"
    made = true.copy()
    made["CRPIX1"], made["CRPIX2"] = solution.crpix
    for n, name in enumerate(("CD1_1", "CD1_2", "CD2_1", "CD2_2")):
        made[name] = solution.cd.ravel()[n]
    for axis in (1, 2):
        for n, value in enumerate(solution.pv[axis - 1]):
            if n != 11 or value:
                made[f"PV{axis}_{n}"] = value
    corners = [[0, 0], [9215, 9231], [0, 9231], [4000, 5000]]
    for header in (true, made):
        header["CRVAL1"], header["CRVAL2"] = 100.0, -40.0
    apart = WCS(true).all_pix2world(corners, 0) - WCS(made).all_pix2world(corners, 0)
    assert np.abs(apart).max() * 3600 < 1e-3
