"""What is taken for a detector's gain."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.products.chip import RawChip
from ks4diff.products.ids import ExposureId, Site
from ks4diff.stages.detector import with_known_gain

ID = ExposureId(Site.CTIO, "20250207", 4413)


def chip(**facts):
    return RawChip(data=np.ones((4, 5), np.float32), file="a.fits", hdu="0", chip="K", **facts)


def test_a_file_without_gain_has_its_chip_s():
    assert with_known_gain(chip(exposure=ID)).gain == 2.12
    assert with_known_gain(chip(exposure=ID, read_noise=9.0)).read_noise == 9.0


@pytest.mark.parametrize(
    "facts", [{"exposure": ID, "gain": 1.4}, {"exposure": None}, {"exposure": ID, "unit": "electron"}]
)
def test_what_is_known_or_of_no_survey_stays(facts):
    raw = chip(**facts)
    assert with_known_gain(raw) is raw
