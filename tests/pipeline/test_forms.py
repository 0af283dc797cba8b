"""One simulated sky in every form that KMTNet files come in: the same chips are read back from each."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.pipeline.simulate import simulate
from ks4diff.pipeline.simulate_config import simulate_config

CHIPS = ("K", "M")  # one whose amplifiers run backwards and one whose do not
# with overscan and bias still in, and as KASI preprocesses them
RAW = ("raw-mef", "raw-chip", "raw-pair")
TRIMMED = ("trimmed", "trimmed-nosec", "four", "single")


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return a function form -> {chip: RawChip} of one sky."""
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    known = {}

    def of(form):
        if form not in known:
            folder = tmp_path_factory.mktemp(form)
            # this form tells its chips by their order, so it needs all of them
            chips = ("K", "M", "N", "T") if form == "trimmed-nosec" else CHIPS
            drawn = {"form": form, "chips": chips, "size": [256, 192], "exposures": 1, "seed": 3, "band": "R"}
            simulate(simulate_config("tiny", None, drawn), folder)
            (files,) = find_exposures([folder / "raw"])
            assert set(CHIPS) <= set(files.chips)
            known[form] = {chip: read_exposure_chip(files, chip) for chip in CHIPS}
        return known[form]

    return of


@pytest.mark.parametrize(
    ("first", "other"), [(forms[0], form) for forms in (RAW, TRIMMED) for form in forms[1:]]
)
def test_the_same_sky_is_read_from_every_form(read, first, other):
    for chip in CHIPS:
        one, two = read(first)[chip], read(other)[chip]
        assert one.data.shape == (192, 256)
        assert one.data.std() > 5
        np.testing.assert_array_equal(one.data, two.data)
        for name in ("exposure", "filter", "site", "exptime", "unit"):
            assert getattr(one, name) == getattr(two, name), name
        assert one.mjd_mid == pytest.approx(two.mjd_mid, abs=1.1 / 86400)  # some headers have whole seconds
        assert one.pointing == pytest.approx(two.pointing, abs=1e-4)


def test_level_one_is_in_electrons_with_its_own_wcs(read):
    for chip in CHIPS:
        level1, adu = read("l1")[chip], read("four")[chip]
        assert level1.unit == "electron"
        assert level1.wcs.sip is not None
        lit = adu.data > 0
        ratio = np.median(level1.data[lit] / adu.data[lit])
        assert 1.3 < ratio < 2.4  # the gains of the real amplifiers
