"""Exposures of one visit: what another should show and does not."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from ks4diff.products.candidates import FLAG_BIT, Candidates, empty_table
from ks4diff.stages.visit import Glimpse, VisitConfig, flag_absent

ROWS, COLUMNS = 90, 130
NJY_PER_COUNT = 4.0


def wcs_at(x, y):
    """Return a TAN WCS whose reference lies on the 0-based pixel (x, y)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [114.0, -50.0]
    wcs.wcs.crpix = [x + 1, y + 1]
    wcs.wcs.cdelt = [-1.1e-4, 1.1e-4]
    return wcs


def candidate(*, flux=4000.0, error=100.0, sharpness=1.0):
    table = empty_table(1)
    table["ra"], table["dec"] = wcs_at(40, 30).all_pix2world([40], [30], 0)
    table["flux"], table["flux_err"], table["is_positive"] = flux, error, flux > 0
    table["sharpness"], table["sharpness_err"] = sharpness, 0.1
    return Candidates(table=table, cutouts=np.zeros((1, 3, 63, 63), np.float32), flux_unit="nJy")


def glimpse(*, flux_njy=0.0, error_njy=100.0, at=(70, 25), flags=0):
    """Return another exposure, dithered, in which the candidate's place is pixel ``at``."""
    flux = np.zeros((ROWS, COLUMNS), np.float32)
    flux[at[1], at[0]] = flux_njy / NJY_PER_COUNT
    mask = np.zeros((ROWS, COLUMNS), np.uint16)
    mask[at[1], at[0]] = flags
    errors = np.full((ROWS, COLUMNS), error_njy / NJY_PER_COUNT, np.float32)
    return Glimpse(flux=flux, flux_err=errors, flags=mask, wcs=wcs_at(*at), unit=NJY_PER_COUNT)


def raised(candidates, *glimpses):
    (flags,) = flag_absent(candidates, glimpses, VisitConfig()).table["flags"]
    return {name for name, bit in FLAG_BIT.items() if flags & bit}


def test_what_both_show_is_not_flagged():
    assert raised(candidate(), glimpse(flux_njy=3800)) == set()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_one_shows_alone_is_told_in_either_sign(sign):
    assert raised(candidate(flux=sign * 4000), glimpse(flux_njy=0)) == {"alone"}
    assert raised(candidate(flux=sign * 4000), glimpse(flux_njy=-sign * 4000)) == {"alone"}
    assert raised(candidate(flux=sign * 4000), glimpse(flux_njy=sign * 4000)) == set()


def test_only_a_sharp_one_is_a_cosmic_ray():
    assert raised(candidate(sharpness=3.0), glimpse()) == {"alone", "cosmic_ray"}
    assert raised(candidate(sharpness=3.0), glimpse(flux_njy=4000)) == set()
    assert raised(candidate(sharpness=1.3), glimpse()) == {"alone"}


def test_an_exposure_that_could_not_show_it_says_nothing():
    assert raised(candidate(), glimpse(error_njy=600)) == set()  # too shallow
    assert raised(candidate(), glimpse(flags=4)) == set()  # masked there
    assert raised(candidate(), glimpse(at=(-5, 40))) == set()  # off the chip
    assert raised(candidate()) == set()


def test_one_exposure_that_lacks_it_is_enough():
    assert raised(candidate(), glimpse(flux_njy=4000), glimpse(flux_njy=0)) == {"alone"}


def test_a_candidate_without_a_position_is_left_alone():
    nowhere = candidate()
    nowhere.table["ra"] = np.nan
    assert raised(nowhere, glimpse()) == set()


def test_the_input_is_not_modified():
    before = candidate()
    copy = before.table.copy()
    flag_absent(before, [glimpse()], VisitConfig())
    assert (before.table == copy).all()
