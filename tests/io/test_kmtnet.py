"""One sky written in every KMTNet form reads back the same; every trap of real headers is passed."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip, recognise
from ks4diff.products.errors import InputError, UnwantedExposure
from ks4diff.products.exposure import FileForm
from ks4diff.products.image import PixelFlag
from tests import kmtnet_files as kf

STEM = f"kmta.{kf.STEM}"
MJD = 57793 + (16 * 3600 + 34 * 60 + 45.72 + 15) / 86400


@pytest.fixture(scope="module")
def skies():
    return kf.skies()


def each_chip(folder, make, suffix=".fits"):
    for chip in kf.ORDER:
        make(folder / f"KMTN{chip.lower()}.{kf.STEM}{suffix}", chip)


def singles(folder, skies):
    for chip in kf.ORDER:
        kf.single_chip(folder / f"{STEM}.{chip.lower() * 2}.fits", chip, skies[chip])


def pairs(folder, skies, suffix=".fits"):
    for pair in ("MK", "NT"):
        kf.raw_pair(folder / f"KMTA.{kf.STEM}.{pair}{suffix}", skies, pair)


FORMS = {
    "raw": (FileForm.RAW_MEF, lambda f, s: kf.raw_mef(f / f"{STEM}.fits", s)),
    "raw gz": (FileForm.RAW_MEF, lambda f, s: kf.raw_mef(f / f"{STEM}.fits.gz", s)),
    "raw bscale": (FileForm.RAW_MEF, lambda f, s: kf.raw_mef(f / f"x{STEM}.fits", s, bscale=True)),
    "raw chips": (
        FileForm.RAW_CHIP,
        lambda f, s: each_chip(f, lambda path, chip: kf.raw_chip(path, chip, s[chip])),
    ),
    "raw chips interleaved": (
        FileForm.RAW_CHIP,
        lambda f, s: each_chip(f, lambda path, chip: kf.raw_chip(path, chip, s[chip], interleaved=True)),
    ),
    "trimmed": (FileForm.TRIMMED_AMPS, lambda f, s: kf.trimmed_amps(f / f"{STEM}.fits", s)),
    "trimmed bare": (
        FileForm.TRIMMED_AMPS,
        lambda f, s: kf.trimmed_amps(f / f"{STEM}.fits", s, ccdsec=False, names=False),
    ),
    "trimmed bare backwards": (
        FileForm.TRIMMED_AMPS,
        lambda f, s: kf.trimmed_amps(f / f"{STEM}.fits", s, ccdsec=False, names=False, backwards="KN"),
    ),
    "trimmed named": (
        FileForm.TRIMMED_AMPS,
        lambda f, s: kf.trimmed_amps(f / f"{STEM}.fits", s, ccdsec=False, backwards="KN"),
    ),
    "four": (FileForm.FOUR_CHIPS, lambda f, s: kf.four_chips(f / f"{STEM}.fits", s)),
    "four bare": (FileForm.FOUR_CHIPS, lambda f, s: kf.four_chips(f / f"{STEM}.fits", s, names=False)),
    "pair": (FileForm.RAW_PAIR, pairs),
    "pair gz": (FileForm.RAW_PAIR, lambda f, s: pairs(f, s, ".fits.gz")),
    "level 1": (FileForm.L1_CHIPS, lambda f, s: kf.level_one(f / f"{STEM}.ceu.l1ccd.mef.fits", s)),
    "single": (FileForm.SINGLE_CHIP, singles),
}


@pytest.fixture(params=FORMS, scope="module")
def case(request, tmp_path_factory, skies):
    folder = tmp_path_factory.mktemp("form")
    form, make = FORMS[request.param]
    make(folder, skies)
    return form, find_exposures(folder)


class TestOneSkyInEveryForm:
    def test_is_one_whole_exposure(self, case):
        form, (files,) = case
        assert files.form is form
        assert (files.missing, files.partial, files.image_type) == ((), (), "OBJECT")
        assert str(files.id) == STEM
        assert all(recognise(path) is form for path in files.chips.values())

    @pytest.mark.parametrize("chip", kf.ORDER)
    def test_every_chip_is_the_same(self, case, skies, chip):
        raw = read_exposure_chip(case[1][0], chip)
        np.testing.assert_array_equal(raw.data, skies[chip])
        assert raw.data.dtype == np.float32
        assert raw.data.dtype.isnative
        assert raw.data.flags.c_contiguous
        assert raw.flags is None
        assert (raw.chip, raw.filter, raw.site, raw.exptime) == (chip, "I", "SSO", 30)
        assert (raw.object, str(raw.exposure)) == ("f=0.00", STEM)
        assert raw.mjd_mid == pytest.approx(MJD, abs=1e-8)
        assert raw.pointing == pytest.approx((kf.RA, kf.DEC))
        borders = sorted({a.x0 for a in raw.amplifiers} | {a.x1 for a in raw.amplifiers})
        assert borders == list(range(0, 8 * 32 + 1, 32))

    @pytest.mark.parametrize("chip", kf.ORDER)
    def test_the_wcs_is_that_of_the_assembled_chip(self, case, skies, chip):
        form, (files,) = case
        raw = read_exposure_chip(files, chip)
        if form in (FileForm.RAW_CHIP, FileForm.RAW_PAIR) or raw.wcs is None:
            assert raw.wcs is None
            assert form in (FileForm.RAW_CHIP, FileForm.RAW_PAIR, FileForm.TRIMMED_AMPS)
            return
        half = (skies[chip].shape[1] + kf.GAPS[0] // 2, skies[chip].shape[0] + kf.GAPS[1] // 2)
        expected = (half[0] - 1 if chip in "MN" else -kf.GAPS[0] // 2 - 1, None)
        assert raw.wcs.wcs.crpix[0] == expected[0]
        x, y = raw.wcs.wcs.crpix[0] - 1, raw.wcs.wcs.crpix[1] - 1
        assert np.allclose(raw.wcs.wcs_pix2world(x, y, 0), (kf.RA, kf.DEC))


def whole(tmp_path, make, *args, **kwargs):
    make(tmp_path / f"{STEM}.fits", *args, **kwargs)
    (files,) = find_exposures(tmp_path)
    return files


class TestRaw:
    def test_overscan_stays_beside_its_rows(self, tmp_path, skies):
        for folder, make in (("mef", kf.raw_mef), ("chip", None)):
            (tmp_path / folder).mkdir()
            if make:
                make(tmp_path / folder / f"{STEM}.fits", skies)
            else:
                kf.raw_chip(tmp_path / folder / f"KMTNk.{kf.STEM}.fits", "K", skies["K"])
            (files,) = find_exposures(tmp_path / folder)
            raw = read_exposure_chip(files, "K")
            rows = np.arange(48) if make else np.arange(48)[::-1]
            for k, amplifier in enumerate(raw.amplifiers):
                assert amplifier.overscan.shape == (48, kf.OVERSCAN)
                number = k if make else 7 - k
                np.testing.assert_array_equal(amplifier.overscan[:, 0], kf.BIAS + rows + number)
            assert [a.name for a in raw.amplifiers] == [f"K{n:02d}" for n in range(8, 0, -1)]

    def test_bzero_alone_makes_counts_unsigned(self, tmp_path, skies):
        files = whole(tmp_path, kf.raw_mef, skies)
        assert read_exposure_chip(files, "M").data.min() > 1000

    @pytest.mark.parametrize("threads", [1, 3])
    def test_threads_change_nothing(self, tmp_path, skies, threads):
        files = whole(tmp_path, kf.raw_mef, skies)
        np.testing.assert_array_equal(read_exposure_chip(files, "N", threads=threads).data, skies["N"])

    def test_a_missing_amplifier_has_no_data(self, tmp_path, skies):
        raw = read_exposure_chip(whole(tmp_path, kf.raw_mef, skies, drop=("N02",)), "N")
        gap = raw.flags != 0
        assert gap[:, 6 * 32 : 7 * 32].all()
        assert gap.sum() == 32 * 48
        assert set(np.unique(raw.flags)) == {0, PixelFlag.NO_DATA}
        assert (raw.data[gap] == 0).all()
        np.testing.assert_array_equal(raw.data[~gap], skies["N"][~gap])

    def test_zeros_in_place_of_a_ccd_are_a_missing_chip(self, tmp_path, skies):
        files = whole(tmp_path, kf.raw_mef, skies, blank_chip="T")
        assert files.missing == ("T",)
        with pytest.raises(InputError, match=r"no file with chip T"):
            read_exposure_chip(files, "T")

    def test_compressed_tiles(self, tmp_path, skies):
        plain = kf.raw_mef(tmp_path / "plain.fits", skies)
        kf.tile_compressed(plain, tmp_path / f"{STEM}.fits.fz")
        plain.unlink()
        (files,) = find_exposures(tmp_path)
        assert files.form is FileForm.RAW_MEF
        for chip in kf.ORDER:
            np.testing.assert_array_equal(read_exposure_chip(files, chip).data, skies[chip])

    def test_big_amplifiers_need_no_constants(self, tmp_path):
        skies = kf.skies(width=256, rows=128)
        raw = read_exposure_chip(whole(tmp_path, kf.raw_mef, skies), "K")
        np.testing.assert_array_equal(raw.data, skies["K"])

    def test_overscan_of_the_pair(self, tmp_path, skies):
        pairs(tmp_path, skies)
        (files,) = find_exposures(tmp_path)
        raw = read_exposure_chip(files, "T")
        assert len(raw.amplifiers) == 16
        assert [(a.name, a.y0, a.y1) for a in raw.amplifiers[:3]] == [
            ("T01B", 0, 24),
            ("T01T", 24, 48),
            ("T02B", 0, 24),
        ]
        assert all((a.overscan == kf.BIAS).all() and a.overscan.shape == (24, 48) for a in raw.amplifiers)


class TestOrderWithoutSections:
    def test_ramps_join(self, tmp_path):
        y, x = np.mgrid[:40, :256]
        ramps = {chip: (100 + x + 300 * y).astype(np.float32) for chip in kf.ORDER}
        files = whole(tmp_path, kf.trimmed_amps, ramps, ccdsec=False, names=False, backwards="KT")
        for chip in kf.ORDER:
            np.testing.assert_array_equal(read_exposure_chip(files, chip).data, ramps[chip])

    def test_stars_decide_against_levels_and_gains(self, tmp_path):
        skies = kf.skies(width=64, rows=400, seed=8)
        rng = np.random.default_rng(4)
        for sky in skies.values():
            for k in range(8):
                sky[:, k * 64 : (k + 1) * 64] *= rng.uniform(0.8, 1.2)
        files = whole(tmp_path, kf.trimmed_amps, skies, ccdsec=False, names=False, backwards="MN")
        for chip in kf.ORDER:
            np.testing.assert_array_equal(read_exposure_chip(files, chip).data, skies[chip])

    def test_noise_leaves_the_order_of_the_file(self, tmp_path):
        rng = np.random.default_rng(2)
        noise = {
            chip: (rng.normal(500, 9, (200, 256)) + np.repeat(rng.normal(0, 30, 8), 32)).astype(np.float32)
            for chip in kf.ORDER
        }
        files = whole(tmp_path, kf.trimmed_amps, noise, ccdsec=False, names=False)
        for chip in kf.ORDER:
            np.testing.assert_array_equal(read_exposure_chip(files, chip).data, noise[chip])


class TestLevelOne:
    def test_electrons_sip_and_masks(self, tmp_path, skies):
        mask = np.zeros(skies["M"].shape, "u1")
        mask[3, :8] = [1, 2, 4, 8, 16, 32, 64, 3]
        kf.level_one(tmp_path / f"{STEM}.ceu.l1ccd.mef.fits", skies)
        kf.mask_file(tmp_path / f"{STEM}.ceu.l1ccd.mask.mef.fits", {"M": mask, "K": mask})
        (files,) = find_exposures(tmp_path)
        assert sorted(files.masks) == ["K", "M"]
        raw = read_exposure_chip(files, "M")
        assert (raw.unit, raw.gain) == ("electron", 1.0)
        assert raw.wcs.sip is not None
        assert raw.wcs.sip.a[2, 0] == 1e-6
        flag = PixelFlag
        expected = [
            flag.BAD_PIXEL,
            flag.SATURATED,
            flag.SATURATED,
            flag.CROSSTALK,
            flag.SEAM,
            0,
            flag.COSMIC_RAY,
        ]
        assert raw.flags[3, :8].tolist() == [*expected, flag.BAD_PIXEL | flag.SATURATED]
        assert np.count_nonzero(raw.flags) == 7
        assert read_exposure_chip(files, "T").flags is None

    def test_masks_in_the_same_file(self, tmp_path, skies):
        mask = np.ones(skies["M"].shape, "u1")
        files = whole(tmp_path, kf.level_one, skies, masks={"N": mask})
        assert (read_exposure_chip(files, "N").flags == PixelFlag.BAD_PIXEL).all()

    def test_a_mask_of_another_size_is_refused(self, tmp_path, skies):
        files = whole(tmp_path, kf.level_one, skies, masks={"N": np.ones((40, 40), "u1")})
        with pytest.raises(InputError, match="mask of 40 x 40 pixels for 256 x 48"):
            read_exposure_chip(files, "N")


class TestHeaderTraps:
    @pytest.mark.parametrize(
        ("changes", "attribute", "value"),
        [
            ({"OBJECT": "absent"}, "object", None),
            ({"FILTER": "absent"}, "filter", None),
            ({"EXPTIME": "60.0"}, "exptime", 60),
            ({"RA": "absent"}, "pointing", None),
            ({"RA": "00:00:00.0", "DEC": "+00:00:00"}, "pointing", None),
            ({"RA": "25:61:00", "DEC": "+10:00:00"}, "pointing", None),
            ({"RA": 177.5, "DEC": -33.0}, "pointing", (177.5, -33.0)),
            ({"RA": 11.8333, "DEC": -33.0}, "pointing", (177.4995, -33.0)),
            ({"RA": "00:30:00", "DEC": "-00:30:00"}, "pointing", (7.5, -0.5)),
            ({"UT": "absent"}, "mjd_mid", MJD - 0.72 / 86400),
            ({"UT": "16:34:45.72"}, "mjd_mid", MJD),
            ({"UT": "nonsense", "EXPTIME": 0}, "mjd_mid", MJD - 15.72 / 86400),
        ],
    )
    def test_odd_cards(self, tmp_path, skies, changes, attribute, value):
        raw = read_exposure_chip(whole(tmp_path, kf.four_chips, skies, **changes), "K")
        found = getattr(raw, attribute)
        assert found == (pytest.approx(value, abs=1e-8) if isinstance(value, float | tuple) else value)

    @pytest.mark.parametrize("name", ["g", "r", "i", "Rc", "CLEAR"])
    def test_other_filters_are_refused_by_name(self, tmp_path, skies, name):
        files = whole(tmp_path, kf.trimmed_amps, skies, FILTER=name)
        with pytest.raises(UnwantedExposure, match=f"FILTER '{name}' is none of B, V, R, I"):
            read_exposure_chip(files, "M")

    def test_calibration_frames_may_have_any_filter(self, tmp_path, skies):
        files = whole(tmp_path, kf.raw_mef, skies, FILTER="g", IMAGETYP="BIAS")
        assert files.image_type == "BIAS"
        assert read_exposure_chip(files, "M").filter == "g"

    def test_placeholder_coordinates_are_no_wcs(self, tmp_path, skies, monkeypatch):
        monkeypatch.setattr(kf, "RA", 0.0)
        monkeypatch.setattr(kf, "DEC", 0.0)
        assert read_exposure_chip(whole(tmp_path, kf.four_chips, skies), "M").wcs is None

    def test_stale_sections_of_trimmed_files_are_passed_over(self, tmp_path, skies):
        # kf.trimmed_amps keeps the raw DATASEC and BIASSEC, as KASI's trimmed files may
        raw = read_exposure_chip(whole(tmp_path, kf.trimmed_amps, skies), "N")
        assert all(a.overscan is None for a in raw.amplifiers)

    def test_gain_per_amplifier(self, tmp_path, skies):
        files = whole(tmp_path, kf.four_chips, skies, GAIN=1.7, RDNOISE=7.0)
        assert (read_exposure_chip(files, "M").gain, read_exposure_chip(files, "M").read_noise) == (1.7, 7.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda p, s: kf.four_chips(p, s | {"K": s["K"][:8]}), "at least 32 a side"),
            (lambda p, s: kf.write(p, [(kf.empty_primary(), None)]), "no 2-D image HDU"),
            (lambda p, s: kf.single_chip(p, "K", s["K"], DETID="absent"), "of which chip"),
            (
                lambda p, s: kf.four_chips(p, s, OBSERVAT="absent", ORIGIN="absent", FILENAME="a"),
                "site unknown",
            ),
        ],
    )
    def test_one_line_names_the_file(self, tmp_path, skies, make, words):
        path = tmp_path / "image.fits"
        make(path, skies)
        with pytest.raises(InputError, match=words) as caught:
            find_exposures([path])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_overlapping_amplifiers(self, tmp_path, skies):
        path = kf.raw_mef(tmp_path / f"{STEM}.fits", skies)
        path.write_bytes(path.read_bytes().replace(b"[33:64,1:48]' ", b"[1:32,1:48]'  "))
        with pytest.raises(InputError, match=r"CCDSEC of M0. and M0. overlap"):
            recognise(path)

    def test_ccdsec_of_another_size(self, tmp_path, skies):
        path = kf.raw_mef(tmp_path / f"{STEM}.fits", skies)
        path.write_bytes(path.read_bytes().replace(b"[33:64,1:48]'", b"[33:65,1:48]'"))
        with pytest.raises(InputError, match=r"CCDSEC \[33:65,1:48\] is not 32 x 48"):
            recognise(path)
