"""Identifiers are unique where they are spelt, positive, and the same for the same names."""

import itertools
from datetime import date, timedelta

import pytest

from ks4diff.products.alert_ids import candid, digest_of, exposure_number, row_of_candid
from ks4diff.products.ids import ExposureId, Site

NIGHTS = ["20150101", "20240229", "20261124", "20891231"]


def test_every_exposure_chip_and_row_has_its_own_number():
    exposures = [
        str(ExposureId(site, night, number))
        for site, night, number in itertools.product(Site, NIGHTS, (0, 1, 4413, 999_999))
    ]
    numbers = [
        candid(exposure, chip, row)
        for exposure, chip, row in itertools.product(exposures, "0KMNT", (0, 1, 0xFFFFF))
    ]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 2**62 for number in numbers)


def test_neighbouring_nights_differ():
    first = date(2026, 2, 25)
    nights = [(first + timedelta(days=k)).strftime("%Y%m%d") for k in range(400)]
    assert len({exposure_number(f"kmtc.{night}.000001") for night in nights}) == 400


def test_what_is_no_kmtnet_exposure_is_a_digest_that_no_spelt_one_has():
    spelt = exposure_number("kmts.20240423.012345")
    others = ["new-0a1b2c3d4e5f", "", "KMTS.20240423.012345", "kmts.20240431.012345", "kmts.19990423.012345"]
    numbers = [exposure_number(other) for other in others]
    assert len({spelt, *numbers}) == 6
    assert spelt < 2**38 <= min(numbers)
    assert max(numbers) < 2**39


@pytest.mark.parametrize("row", [0, 5, 0xFFFFF])
def test_the_row_comes_back(row):
    assert row_of_candid(candid("kmta.20261020.001234", "T", row)) == row


def test_the_same_always():
    """Frozen: consumers keep these numbers."""
    assert candid("kmts.20240423.012345", "K", 7) == FROZEN
    assert digest_of("a", "b") == digest_of("a", "b") != digest_of("ab") != digest_of("b", "a")
    assert len(digest_of("a")) == 32


FROZEN = (1 << 58) | (8879 << 43) | (12345 << 23) | (1 << 20) | 7
