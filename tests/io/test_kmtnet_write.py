"""One simulated sky in every form of KMTNet's files: it reads back to the same chips and facts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.kmtnet_write import FORMS, write_exposure
from ks4diff.products.errors import ConfigError
from ks4diff.products.exposure import FileForm
from ks4diff.products.ids import CHIPS, ExposureId, Site
from ks4diff.products.image import PixelFlag
from ks4diff.products.simulated import (
    OVERSCAN,
    PRESCAN,
    ExposureFacts,
    SimulatedAmplifier,
    SimulatedChip,
)

ROWS, WIDTH = 64, 32
ROWS_OF = {
    "raw-mef": FileForm.RAW_MEF,
    "raw-chip": FileForm.RAW_CHIP,
    "trimmed": FileForm.TRIMMED_AMPS,
    "trimmed-nosec": FileForm.TRIMMED_AMPS,
    "four": FileForm.FOUR_CHIPS,
    "raw-pair": FileForm.RAW_PAIR,
    "l1": FileForm.L1_CHIPS,
    "single": FileForm.SINGLE_CHIP,
}
ARTEFACT = [("kind", "S16"), ("x0", "i4"), ("x1", "i4"), ("y0", "i4"), ("y1", "i4")]


def made_chip(name):
    """Return a chip with stars across its seams, so that their order can be told."""
    rng = np.random.default_rng(ord(name))
    y, x = np.mgrid[:ROWS, : 8 * WIDTH]
    sky = rng.normal(300, 6, (ROWS, 8 * WIDTH))
    for _ in range(60):
        x0, y0 = rng.uniform(0, 8 * WIDTH), rng.uniform(0, ROWS)
        sky += rng.uniform(500, 9000) * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 6)
    strips = tuple(
        SimulatedAmplifier(
            x0=k * WIDTH, x1=(k + 1) * WIDTH, gain=1.5 + 0.1 * k, read_noise=7.0, bias=1700 + 20 * k
        )
        for k in range(8)
    )
    bias = np.array([[s.bias - 0.01 * r for r in range(ROWS)] for s in strips], dtype=np.float32)
    level = np.repeat(bias.T, WIDTH, axis=1)
    noise = rng.normal(0, 3, (8, ROWS, OVERSCAN + PRESCAN)) + bias[:, :, None]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (
        (115.25, -50.125),
        {"M": (9445, -466), "K": (-231, -466), "N": (9445, 9698), "T": (-231, 9698)}[name],
    )
    wcs.wcs.cd = [[-0.00011122222222222, 0], [0, 0.000111222222222222]]
    wcs.wcs.set()
    struck = np.zeros(sky.shape, bool)
    struck[30, 20] = True
    artefacts = np.array([(b"saturated", 3, 6, 10, 20), (b"bad_column", 40, 41, 0, ROWS)], dtype=ARTEFACT)
    return SimulatedChip(
        chip=name,
        corner=(0, 0),
        counts=np.rint(sky + level).astype(np.uint16),
        bias=bias,
        overscan=np.rint(noise[:, :, :OVERSCAN]).astype(np.uint16),
        prescan=np.rint(noise[:, :, OVERSCAN:]).astype(np.uint16),
        amplifiers=strips,
        true_cards={},
        header_wcs=wcs,
        truth={"artefacts": artefacts, "struck": struck},
        facts={},
    )


@pytest.fixture(scope="module")
def sky():
    return {name: made_chip(name) for name in CHIPS}


FACTS = ExposureFacts(
    id=ExposureId(Site.CTIO, "20250207", 4413),
    object="115-50",
    band="R",
    exptime=120.0,
    start_mjd=60713.15,  # 2025-02-07 03:36:00
    pointing=(115.25, -50.125),
)


def read_back(folder, facts, chips, form, compress=""):
    files = write_exposure(folder, facts, chips, form, compress)
    exposures = find_exposures(folder)
    assert len(exposures) == 1
    return files, exposures[0]


class TestEveryForm:
    @pytest.mark.parametrize("form", FORMS)
    def test_reads_back_to_the_same_chips(self, sky, form, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, list(sky.values()), form)
        assert exposure.form is ROWS_OF[form]
        assert exposure.missing == ()
        for name, chip in sky.items():
            got = read_exposure_chip(exposure, name)
            if form.startswith("raw"):
                expected = chip.counts.astype(np.float32)
            else:
                expected = chip.electrons() if form == "l1" else chip.trimmed()
            np.testing.assert_array_equal(got.data, expected)

    @pytest.mark.parametrize("form", ["raw-mef", "raw-chip"])
    def test_overscan_stays_with_its_amplifier(self, sky, form, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, list(sky.values()), form)
        for name, chip in sky.items():
            for amplifier, expected in zip(
                read_exposure_chip(exposure, name).amplifiers, chip.overscan, strict=True
            ):
                # columns of a turned chip may come in either order
                np.testing.assert_array_equal(np.sort(amplifier.overscan, axis=1), np.sort(expected, axis=1))

    @pytest.mark.parametrize("form", FORMS)
    def test_reads_back_to_the_same_facts(self, sky, form, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, list(sky.values()), form)
        got = read_exposure_chip(exposure, "N")
        assert exposure.id == FACTS.id
        assert (got.filter, got.site, got.exptime, got.object) == ("R", "CTIO", 120.0, "115-50")
        assert got.mjd_mid == pytest.approx(60713.15 + 60 / 86400, abs=1e-6)
        np.testing.assert_allclose(got.pointing, FACTS.pointing, atol=1e-4)
        assert got.unit == ("electron" if form == "l1" else "adu")

    @pytest.mark.parametrize("form", ["raw-mef", "trimmed", "four", "single", "l1"])
    def test_the_header_wcs_survives(self, sky, form, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, list(sky.values()), form)
        for name, chip in sky.items():
            got = read_exposure_chip(exposure, name).wcs.all_pix2world([100], [50], 0)
            np.testing.assert_allclose(got, chip.header_wcs.all_pix2world([100], [50], 0), atol=1e-9)

    @pytest.mark.parametrize("compress", [".gz", ".fz"])
    @pytest.mark.parametrize("form", ["raw-mef", "trimmed", "l1"])
    def test_packed_files_hold_the_same(self, sky, form, compress, tmp_path):
        files, exposure = read_back(tmp_path, FACTS, list(sky.values()), form, compress)
        assert all(path.name.endswith(compress) for path in files)
        chip = sky["K"]
        expected = {"raw-mef": chip.counts, "trimmed": chip.trimmed(), "l1": chip.electrons()}[form]
        np.testing.assert_array_equal(read_exposure_chip(exposure, "K").data, expected)


class TestDetails:
    def test_a_mask_comes_with_level_one(self, sky, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, list(sky.values()), "l1")
        flags = read_exposure_chip(exposure, "M").flags
        assert flags[12, 4] == PixelFlag.SATURATED
        assert flags[12, 40] == PixelFlag.BAD_PIXEL
        assert flags[30, 20] == PixelFlag.COSMIC_RAY
        assert flags[50, 10] == 0

    @pytest.mark.parametrize("form", ["raw-mef", "raw-chip", "trimmed", "four", "single", "l1"])
    def test_missing_chips_are_missing(self, sky, form, tmp_path):
        _, exposure = read_back(tmp_path, FACTS, [sky["K"], sky["T"]], form)
        assert exposure.missing == ("M", "N")
        assert read_exposure_chip(exposure, "T").data.shape == (ROWS, 8 * WIDTH)

    @pytest.mark.parametrize("form", ["trimmed-nosec", "raw-pair"])
    def test_forms_that_need_more_chips_say_so(self, sky, form, tmp_path):
        with pytest.raises(ConfigError, match="needs"):
            write_exposure(tmp_path, FACTS, [sky["K"]], form)

    def test_an_unknown_form_is_refused(self, sky, tmp_path):
        with pytest.raises(ConfigError, match="form must be one of raw-mef"):
            write_exposure(tmp_path, FACTS, [sky["K"]], "jpeg")

    def test_the_traps_of_real_headers_are_there(self, sky, tmp_path):
        (path,) = write_exposure(tmp_path, FACTS, list(sky.values()), "raw-mef")
        text = path.read_bytes()[:20000].decode("latin-1")
        for trap in (
            "EXTEND  =                    F",
            "GAINDL                 ",
            "CONTINUE  ''",
            "INSTRUME= 'KMTS    '",
            "EQUINOX = '2000.000'",
            "LONGITUD= '70:48:14'",
            "DATE-OBS= '2025-02-07T03:36:00'",
        ):
            assert trap in text, trap

    @pytest.mark.parametrize(("site", "letter"), [(Site.SAAO, "s"), (Site.SSO, "a")])
    def test_other_sites(self, sky, site, letter, tmp_path):
        facts = replace(FACTS, id=ExposureId(site, "20250207", 7))
        files, exposure = read_back(tmp_path, facts, [sky["K"]], "trimmed")
        assert files[0].name == f"kmt{letter}.20250207.000007.fits"
        assert exposure.id == facts.id

    def test_equal_input_gives_equal_bytes(self, sky, tmp_path):
        for compress in ("", ".gz"):
            one, other = (
                write_exposure(tmp_path / part, FACTS, [sky["K"]], "trimmed", compress)[0].read_bytes()
                for part in ("a", "b")
            )
            assert one == other
