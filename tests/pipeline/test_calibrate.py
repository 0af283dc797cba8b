"""From raw frames to a calibration folder: what the camera did must come back, to the frames' noise."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.cli.main import main
from ks4diff.io.calibrations import load_masters, read_crosstalk
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.pipeline.calibrate import CalibrationConfig, make_calibrations
from ks4diff.products.errors import ConfigError, InputError
from ks4diff.products.image import PixelFlag
from ks4diff.stages.masters import MastersConfig, bad_pixels, combine_mean, combine_median
from ks4diff.stages.signature import SignatureConfig, remove_signature
from tests.kmtnet_files import (
    OVERSCAN,
    PRESCAN,
    STRIPS,
    empty_primary,
    image_cards,
    label,
    line,
    stored,
    strip_cards,
    write,
)

WIDTH, ROWS, GAIN, READ_NOISE = 72, 420, 1.8, 4.0
SHAPE = (ROWS, STRIPS * WIDTH)
CHIP = "K"
NIGHT = "20170209"
HOT_COLUMN, DARK_COLUMN, HOT_PIXEL, DULL_PIXEL = 100, 333, (50, 60), (200, 410)
DEAD = 2


class Truth:
    """The camera that made the frames."""

    def __init__(self):
        rng = np.random.default_rng(11)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        self.bias = 6 * np.sin(x / 15) + 4 * np.exp(-y / 60)
        self.bias[:, HOT_COLUMN] += 60
        self.bias[HOT_PIXEL] += 3000
        gains = np.repeat(rng.uniform(0.85, 1.15, STRIPS), WIDTH)
        self.flat = (
            gains * rng.normal(1, 0.009, SHAPE) * (1 - 0.1 * ((x / 576 - 0.5) ** 2 + (y / 420 - 0.5) ** 2))
        )
        self.flat[:, DARK_COLUMN] *= 0.9
        self.flat[DULL_PIXEL] *= 0.3
        self.dead = np.zeros(SHAPE, dtype=bool)
        self.dead[:, DEAD * WIDTH : (DEAD + 1) * WIDTH] = True
        live = self.flat[~self.dead]
        self.flat /= np.median(live)
        self.fringe = np.sin(x / 9 + y / 14 + 2e-4 * x * y)

    def frame(self, path, light, seed, hits=0, **cards):
        """Write a raw MEF with one chip; ``light`` counts per pixel of response 1."""
        rng = np.random.default_rng(seed)
        signal = rng.poisson(np.maximum(light * self.flat, 0) * GAIN) / GAIN
        signal[self.dead] = 0
        data = 1700 + 2.0 * np.sin(np.arange(ROWS) / 80)[:, None] + signal + rng.normal(0, READ_NOISE, SHAPE)
        data += np.where(self.dead, 0, self.bias)
        for _ in range(hits):
            data[rng.integers(ROWS), rng.integers(SHAPE[1])] += 5000
        hdus = [(empty_primary(**{"EXPTIME": 0} | cards), None)]
        for k in range(STRIPS):
            level = 1700 + 2.0 * np.sin(np.arange(ROWS) / 80)[:, None]
            over = level + rng.normal(0, READ_NOISE, (ROWS, OVERSCAN))
            part = data[:, k * WIDTH : (k + 1) * WIDTH]
            raw = np.hstack([np.full((ROWS, PRESCAN), 1650.0), part, over])
            pixels = stored(np.clip(np.rint(raw), 0, 65535))
            extra = [*strip_cards(CHIP, k, WIDTH, ROWS), line("BZERO", 32768)]
            hdus.append(([*image_cards(pixels, label(CHIP, k)), *extra], pixels))
        return write(path, hdus)

    def stars(self, seed):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[-8:9, -8:9]
        sky = np.zeros((ROWS + 40, SHAPE[1] + 40))
        for _ in range(120):
            row, column = rng.integers(8, ROWS + 30), rng.integers(8, SHAPE[1] + 30)
            sky[row - 8 : row + 9, column - 8 : column + 9] += np.exp(rng.uniform(3, 9)) * np.exp(
                -(x**2 + y**2) / 5
            )
        return sky[20:-20, 20:-20]


N_BIAS, N_FLAT, N_SCIENCE = 7, 7, 10


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def rawdir(tmp_path_factory, truth):
    folder = tmp_path_factory.mktemp("raw")
    number = 100

    def path():
        nonlocal number
        number += 1
        return folder / f"kmta.{NIGHT}.{number:06d}.fits"

    for k in range(N_BIAS):
        truth.frame(path(), 0.0, k, hits=20, IMAGETYP="BIAS")
    for k in range(N_FLAT):
        level = 8000 if k % 2 else 24000
        truth.frame(path(), level, 50 + k, IMAGETYP="FLAT", EXPTIME=10, FILTER="I")
    truth.frame(path(), 400.0, 70, IMAGETYP="FLAT", EXPTIME=1, FILTER="I")  # too faint
    for k in range(2):
        truth.frame(path(), 20000.0, 80 + k, IMAGETYP="FLAT", EXPTIME=10, FILTER="R")  # too few
    for k in range(N_SCIENCE):
        light = 900 * (1 + 0.02 * truth.fringe) + truth.stars(300 + k)
        truth.frame(path(), light, 200 + k, hits=10, IMAGETYP="OBJECT", EXPTIME=120, FILTER="I")
    truth.frame(path(), 900.0, 90, IMAGETYP="OBJECT", EXPTIME=10, FILTER="I")  # a focus frame
    truth.frame(path(), 900.0, 91, IMAGETYP="BIAS", EXPTIME=60)  # no bias
    return folder


@pytest.fixture(scope="module")
def made(rawdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration")
    return out, make_calibrations(rawdir, out, CalibrationConfig())


@pytest.fixture(scope="module")
def masters(made):
    return load_masters(made[0], "SSO", CHIP, "I", NIGHT)


def good(truth, masters):
    return ~truth.dead & ~masters.bad


class TestMasterFrames:
    def test_bias_comes_back_to_its_noise(self, truth, masters):
        error = (masters.bias - truth.bias)[good(truth, masters)]
        noise = np.hypot(READ_NOISE, 0.3) / np.sqrt(N_BIAS)  # 0.3: rounding to integers
        assert np.std(error) == pytest.approx(noise, rel=0.1)
        assert abs(np.mean(error)) < 0.1 * noise
        assert np.abs(error).max() < 7 * noise

    def test_flat_comes_back_to_its_noise(self, truth, masters):
        ratio = (masters.flat / truth.flat)[good(truth, masters)]
        assert np.median(ratio) == pytest.approx(1, abs=1e-3)
        single = 0.5 / np.sqrt(24000 * GAIN) + 0.5 / np.sqrt(8000 * GAIN)
        assert np.std(ratio) < 1.4 * single / np.sqrt(N_FLAT)
        assert np.std(ratio) > 0.7 * single / np.sqrt(N_FLAT)

    def test_fringe_comes_back(self, truth, masters):
        use = good(truth, masters)
        use[:20], use[-20:], use[:, :20], use[:, -20:] = False, False, False, False
        slope = (masters.fringe * truth.fringe)[use].sum() / (truth.fringe[use] ** 2).sum()
        assert slope == pytest.approx(0.02, rel=0.15)  # smoothing and the mesh take some
        assert np.corrcoef(masters.fringe[use], truth.fringe[use])[0, 1] > 0.95

    def test_bad_pixels_are_those_that_are_bad(self, truth, masters):
        assert masters.bad[:, HOT_COLUMN].all()
        assert masters.bad[:, DARK_COLUMN].all()
        assert masters.bad[HOT_PIXEL]
        assert masters.bad[DULL_PIXEL]
        others = masters.bad & ~truth.dead
        others[:, [HOT_COLUMN, DARK_COLUMN]] = False
        assert others.sum() <= 6

    def test_the_table_names_what_was_made_and_what_was_not(self, made):
        _, report = made
        lines = {(m.kind, m.band): m for m in report.masters}
        assert {(k, m.frames) for k, m in lines.items() if m.path} == {
            (("bias", None), N_BIAS),
            (("flat", "I"), N_FLAT),
            (("fringe", "I"), N_SCIENCE),
            (("badpix", None), 0),
        }
        assert lines["flat", "R"].note == "not made: 2 usable frames, 3 are needed"
        assert report.problems == ()
        assert report.exit_code == 0
        assert {m.chip for m in report.masters} == {CHIP}

    def test_files_tell_where_they_come_from(self, made):
        header = fits.getheader(made[0] / "SSO" / CHIP / f"flat-I.{NIGHT}.fits")
        assert (header["KIND"], header["SITE"], header["CHIP"], header["FILTER"]) == (
            "flat",
            "SSO",
            CHIP,
            "I",
        )
        assert header["NCOMBINE"] == N_FLAT
        assert header["FRAME001"] == f"kmta.{NIGHT}.000108"
        assert header["SOFTWARE"].startswith("ks4diff ")

    def test_nothing_else_is_left_in_the_folder(self, made):
        left = sorted(p.relative_to(made[0]).as_posix() for p in made[0].rglob("*") if p.is_file())
        names = ("badpix", "bias", "flat-I", "fringe-I")
        assert left == [f"SSO/{CHIP}/{name}.{NIGHT}.fits" for name in names]
        assert not list(made[0].glob(".scratch*"))

    def test_a_second_run_gives_the_same_bytes(self, rawdir, made, tmp_path):
        make_calibrations(rawdir, tmp_path, CalibrationConfig())
        for path in made[0].rglob("*.fits"):
            assert path.read_bytes() == (tmp_path / path.relative_to(made[0])).read_bytes()


def test_a_science_frame_is_clean_with_its_masters(rawdir, truth, masters):
    exposure = next(e for e in find_exposures(rawdir) if e.image_type == "OBJECT")
    raw = read_exposure_chip(exposure, CHIP)
    light = truth.stars(300)
    chip = remove_signature(raw, masters, SignatureConfig())
    plain = remove_signature(raw, None, SignatureConfig())
    assert ((chip.flags & PixelFlag.DEAD_AMPLIFIER) != 0)[truth.dead].all()
    clear = (light < 0.3) & (chip.flags == 0)
    noise = np.sqrt(900 / GAIN + READ_NOISE**2)
    assert 1.4826 * np.median(np.abs(chip.data[clear] - 900)) < 1.12 * noise
    assert 1.4826 * np.median(np.abs(plain.data[clear] - 900)) > 1.2 * noise
    means = [
        chip.data[:, s : s + WIDTH][clear[:, s : s + WIDTH]].mean() for s in range(0, 576, WIDTH) if s != 144
    ]
    assert np.ptp(means) < 0.15 * noise


class TestTheFolder:
    def test_the_latest_master_up_to_the_night_is_taken(self, made, tmp_path):
        source = made[0] / "SSO" / CHIP / f"bias.{NIGHT}.fits"
        for night in ("20170101", "20170301", "20170401"):
            target = tmp_path / "SSO" / CHIP / f"bias.{night}.fits"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        found = [load_masters(tmp_path, "SSO", CHIP, "I", n).sources for n in ("20170310", "20160101", None)]
        assert [s[0] for s in found] == [
            f"SSO/{CHIP}/bias.{n}.fits" for n in ("20170301", "20170101", "20170401")
        ]
        assert load_masters(tmp_path, "SSO", "M", "I", None).bias is None

    def test_a_damaged_master_is_refused(self, made, tmp_path):
        target = tmp_path / "SSO" / CHIP / f"bias.{NIGHT}.fits"
        target.parent.mkdir(parents=True)
        data = bytearray((made[0] / "SSO" / CHIP / f"bias.{NIGHT}.fits").read_bytes())
        data[50_000] ^= 0x10
        target.write_bytes(data)
        with pytest.raises(InputError, match=r"bias.*damaged"):
            load_masters(tmp_path, "SSO", CHIP, "I", NIGHT)

    def test_a_folder_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="no such calibration folder"):
            load_masters(tmp_path / "none", "SSO", CHIP, "I", NIGHT)

    def test_a_crosstalk_table_goes_by_chip(self, tmp_path):
        text = (
            "# measured\nsite,chip,source,victim,coefficient\nSSO,K,1,3,2e-4\n,,2,4,-1e-4\nCTIO,K,1,5,1e-3\n"
        )
        (tmp_path / "crosstalk.csv").write_text(text)
        matrix = load_masters(tmp_path, "SSO", "K", "I", NIGHT).crosstalk
        assert {(int(v), int(s)): matrix[v, s] for v, s in np.argwhere(matrix)} == {
            (2, 0): 2e-4,
            (3, 1): -1e-4,
        }
        assert read_crosstalk(tmp_path / "crosstalk.csv", "SSO", "M").sum() == -1e-4

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("SSO,K,1,9,1e-4", "line 2: amplifiers must differ and be 1 to 8"),
            ("SSO,K,1,1,1e-4", "line 2: amplifiers must differ"),
            ("SSO,K,1,3,nan", "line 2: coefficient nan"),
            ("SSO,K,1,3,2", "line 2: coefficient 2 is beyond 0.1"),
            ("SSO,K,1", "line 2: not two amplifiers"),
        ],
    )
    def test_a_wrong_table_is_one_line(self, tmp_path, row, message):
        path = tmp_path / "crosstalk.csv"
        path.write_text(f"site,chip,source,victim,coefficient\n{row}\n")
        with pytest.raises(InputError, match=message):
            read_crosstalk(path, "SSO", "K")


class TestCombining:
    def test_a_cosmic_ray_is_outvoted(self):
        rng = np.random.default_rng(1)
        stack = rng.normal(10, 2, (5, 40, 50)).astype(np.float32)
        before = stack.copy()
        stack[2, 7, 8] += 500
        hit = stack.copy()
        assert combine_mean(stack, 4.0)[7, 8] == pytest.approx(before[[0, 1, 3, 4], 7, 8].mean(), rel=1e-5)
        assert combine_median(stack, 4.0)[7, 8] == pytest.approx(np.median(before[[0, 1, 3, 4], 7, 8]))
        np.testing.assert_array_equal(stack, hit)

    def test_holes_are_left_out_and_named(self):
        stack = np.ones((4, 3, 3), np.float32)
        stack[:3, 0, 0] = np.nan
        assert combine_median(stack, 4.0)[0, 0] == 1
        assert np.isnan(combine_median(stack, 4.0, least=2)[0, 0])
        stack[:, 1, 1] = np.nan
        assert np.isnan(combine_mean(stack, 4.0)[1, 1])

    def test_a_pixel_that_is_not_linear_is_bad(self):
        rng = np.random.default_rng(2)
        ratio = rng.normal(1, 0.004, (100, 130)).astype(np.float32)
        ratio[40, 50] = 0.9
        bad = bad_pixels(None, None, ratio, (), MastersConfig())
        assert np.argwhere(bad).tolist() == [[40, 50]]


class TestTheCommand:
    @pytest.fixture
    def run(self, monkeypatch, capsys):
        def command(*words):
            monkeypatch.setattr(sys, "argv", ["ks4diff", "calibrate", *map(str, words)])
            with pytest.raises(SystemExit) as ended:
                main()
            return ended.value.code, *capsys.readouterr()

        return command

    def test_it_prints_what_it_made(self, rawdir, tmp_path, run):
        few = tmp_path / "raw"
        few.mkdir()
        for path in sorted(rawdir.glob("*.fits"))[:3]:
            (few / path.name).write_bytes(path.read_bytes())
        code, out, _ = run(few, "--out", tmp_path / "out", "--json")
        assert code == 0
        lines = json.loads(out)["masters"]
        assert [(m["kind"], m["frames"]) for m in lines] == [("bias", 3), ("badpix", 0)]
        assert Path(lines[0]["path"]).is_file()
        code, out, _ = run(few, "--out", tmp_path / "out")
        assert code == 0
        assert out.splitlines()[1].split()[:5] == ["SSO", CHIP, "bias", "-", "3"]

    def test_nothing_to_do_is_bad_input(self, tmp_path, run):
        code, _, error = run(tmp_path, "--out", tmp_path / "out")
        assert code == 2
        assert "no bias, flat or science frame" in error
        assert not (tmp_path / "out").exists()

    def test_a_setting_that_is_not_known_is_refused(self, rawdir, tmp_path, run):
        (tmp_path / "a.toml").write_text("[masters]\nclip = 3\n[match]\n")
        code, _, error = run(rawdir, "--out", tmp_path / "out", "--config", tmp_path / "a.toml")
        assert code == 2
        assert "unknown key 'clip'" in error


def test_a_frame_that_cannot_be_read_is_told_and_the_others_serve(rawdir, tmp_path, monkeypatch):
    def broken(exposure, chip):
        if exposure.id.number == 102:
            raise InputError("kmta.20170209.000102.fits: cannot be read")
        return read_exposure_chip(exposure, chip)

    monkeypatch.setattr("ks4diff.pipeline.calibrate.read_exposure_chip", broken)
    config = CalibrationConfig(masters=MastersConfig(flat_least_frames=99, fringe_least_frames=99))
    report = make_calibrations(rawdir, tmp_path, config)
    assert report.masters[0].frames == N_BIAS - 1
    assert report.problems == ("kmta.20170209.000102.fits: cannot be read",)
    assert report.exit_code == 4


def test_frames_of_another_size_do_not_mix(rawdir, tmp_path, monkeypatch):
    def odd(exposure, chip):
        raw = read_exposure_chip(exposure, chip)
        return replace(raw, data=raw.data[:-1], amplifiers=()) if exposure.id.number == 105 else raw

    monkeypatch.setattr("ks4diff.pipeline.calibrate.read_exposure_chip", odd)
    config = CalibrationConfig(masters=MastersConfig(flat_least_frames=99, fringe_least_frames=99))
    report = make_calibrations(rawdir, tmp_path, config)
    assert report.masters[0].frames == N_BIAS - 1
    assert "another size" in report.problems[0]


def test_an_output_that_cannot_be_a_folder_is_refused(rawdir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        make_calibrations(rawdir, tmp_path / "file" / "below", CalibrationConfig())
