"""KMTNet exposures through the whole pipeline, on a simulated sky whose truth is known."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io.fits_tables import read_candidates
from ks4diff.io.packets import read_container, without_times
from ks4diff.pipeline import run as pipeline_run
from ks4diff.products.candidates import FLAG_BIT
from ks4diff.stages.astrometry import PIXEL_ARCSEC
from ks4diff.stages.footprint import chip_footprint, enclosing_box
from ks4diff.stages.sim.geometry import FULL_SIZE, shifted, tangent_plane

NJY_ZEROPOINT = 31.4
SIZE = "896x960"
CHIPS = ("M", "K")


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Return a folder with a simulated visit of two R exposures of two chips, its store and its truth."""
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    folder = tmp_path_factory.mktemp("sky")
    night = ["--preset", "tiny", "--band", "R", "--form", "raw-mef", "--seed", "5", "--exposures", "2"]
    assert_done(["simulate", str(folder), *night, "--chips", ",".join(CHIPS), "--size", SIZE])
    tiles = sorted(map(str, folder.glob("templates/*/*.fits")))
    assert_done(["templates", "add", str(folder / "store"), *tiles])
    return folder


@pytest.fixture(scope="module")
def done(sky, tmp_path_factory):
    """Return the output folder of a run over that visit."""
    out = tmp_path_factory.mktemp("out")
    assert_done(
        ["run", str(sky / "raw"), "--templates", str(sky / "store"), "--out", str(out), "--save-images"]
    )
    return out


def assert_done(words, code=0):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result


def exposure_folder(out):
    return sorted(out.glob("*/*/report.json"))[0].parent


def truth_of(sky, chip):
    path = sorted(sky.glob(f"truth/kmt*.{chip}.truth.fits"))[0]
    table = fits.getdata(path, "SOURCES")
    inside = (table["x"] > 20) & (table["x"] < 876) & (table["y"] > 20) & (table["y"] < 940)
    return table[inside & np.isfinite(table["expected_scorr"])]


@pytest.mark.parametrize("towards_deg", range(0, 360, 45))
@pytest.mark.parametrize("turn_deg", [-1.0, 1.0])
def test_a_chip_whose_header_is_wrong_lies_on_the_template_that_is_read(towards_deg, turn_deg):
    place, (columns, rows) = (115.3, -38.2), FULL_SIZE
    tile = tangent_plane(place, 0.4 / 3600)
    way = np.radians(towards_deg)
    true = tangent_plane(shifted(place, np.cos(way) / 30, np.sin(way) / 30), PIXEL_ARCSEC / 3600)
    turn = np.radians(turn_deg)
    true.wcs.cd = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]] @ true.wcs.cd
    claimed = tangent_plane(place, PIXEL_ARCSEC / 3600)
    for wcs in (true, claimed):
        wcs.wcs.crpix = (columns + 1) / 2, (rows + 1) / 2
    needed, read = (
        enclosing_box(tile, chip_footprint(wcs, (rows, columns)), margin)
        for wcs, margin in ((true, 0), (claimed, pipeline_run.POINTING_ERROR_PIX))
    )
    assert read.x0 <= needed.x0
    assert read.y0 <= needed.y0
    assert read.x1 >= needed.x1
    assert read.y1 >= needed.y1


class TestARun:
    def test_leaves_what_the_contract_names(self, done):
        folder = exposure_folder(done)
        report = json.loads((folder / "report.json").read_text())
        assert report["exposure"] == folder.name
        assert report["night"] == folder.parent.name
        assert {c["chip"]: c["status"] for c in report["chips"]} == {
            "M": "ok",
            "K": "ok",
            "N": "skipped",
            "T": "skipped",
        }
        for chip in CHIPS:
            assert (folder / chip / "candidates.fits").exists()
            assert (folder / chip / "difference.fits").exists()
        alerts = read_container(folder / "alerts.avro").records
        assert len(alerts) == sum(c["n_alerts"] for c in report["chips"]) > 0

    @pytest.mark.parametrize("chip", CHIPS)
    def test_finds_what_changed_where_and_as_bright_as_it_is(self, sky, done, chip):
        table = read_candidates(exposure_folder(done) / chip / "candidates.fits").table
        truth = truth_of(sky, chip)
        truth = truth[np.abs(truth["expected_scorr"]) > 10]
        # two that went off in one galaxy, 3 px apart, are one candidate between them
        apart = np.hypot(truth["x"][:, None] - truth["x"], truth["y"][:, None] - truth["y"])
        truth = truth[(apart + 99 * np.eye(len(truth))).min(axis=0) > 8]
        assert len(truth) >= 10
        distance = np.hypot(table["x"][:, None] - truth["x"], table["y"][:, None] - truth["y"])
        nearest = distance.argmin(axis=0)
        found = distance.min(axis=0) < 1.5
        assert found.mean() >= 0.9
        table, truth = table[nearest[found]], truth[found]
        # the header was arcseconds wrong; the template's sky is right to a small part of a pixel
        ra = (table["ra"] - truth["ra"]) * np.cos(np.radians(truth["dec"])) * 3600
        dec = (table["dec"] - truth["dec"]) * 3600
        assert np.abs(np.median(ra)) < 0.05
        assert np.abs(np.median(dec)) < 0.05
        assert np.median(np.hypot(ra, dec)) < 0.15
        # new sources alone: a variable's truth is its own magnitude, not its change
        new = np.isin(truth["kind"], ["hostless"]) & (np.abs(truth["expected_scorr"]) > 20)
        true_njy = 10 ** (0.4 * (NJY_ZEROPOINT - truth["mag"][new]))
        assert np.median(table["flux"][new] / true_njy) == pytest.approx(1, abs=0.06)

    @pytest.mark.parametrize("chip", CHIPS)
    def test_tells_cosmic_rays_by_the_other_exposure(self, sky, done, chip):
        table = read_candidates(exposure_folder(done) / chip / "candidates.fits").table
        truth = truth_of(sky, chip)
        truth = truth[np.abs(truth["expected_scorr"]) > 3]
        distance = np.hypot(table["x"][:, None] - truth["x"], table["y"][:, None] - truth["y"]).min(axis=1)
        real = distance < 2
        hit = (table["flags"] & FLAG_BIT["cosmic_ray"]) != 0
        sharp = (table["flags"] & FLAG_BIT["sharp"]) != 0
        assert real.sum() >= 15
        assert not (hit & real).any()
        # what is sharp and no source is a cosmic ray or a hot pixel: the other exposure says so
        assert (hit & sharp & ~real).sum() > 0.7 * (sharp & ~real).sum() > 10

    def test_leaves_nothing_parked(self, done):
        assert sorted(path.name for path in done.iterdir() if path.name.startswith(".")) == []

    def test_is_the_same_twice(self, sky, done, tmp_path):
        assert_done(["run", str(sky / "raw"), "--templates", str(sky / "store"), "--out", str(tmp_path)])
        for name in ("M/candidates.fits", "K/candidates.fits"):
            first, second = exposure_folder(done) / name, exposure_folder(tmp_path) / name
            assert first.read_bytes() == second.read_bytes()
        folders = (exposure_folder(done), exposure_folder(tmp_path))
        alerts = [read_container(folder / "alerts.avro").records for folder in folders]
        assert without_times(alerts[0]) == without_times(alerts[1]) != []


class TestWhatGoesWrong:
    def test_no_template_in_the_band_is_a_stated_skip(self, sky, tmp_path):
        store = tmp_path / "store"
        tiles = sorted(map(str, sky.glob("templates/*/*.fits")))
        assert_done(["templates", "add", str(store), *tiles, "--band", "V"])
        assert_done(["run", str(sky / "raw"), "--templates", str(store), "--out", str(tmp_path / "out")])
        report = json.loads((exposure_folder(tmp_path / "out") / "report.json").read_text())
        assert {c["status"] for c in report["chips"]} == {"skipped"}
        assert "no R template" in next(c["reason"] for c in report["chips"] if c["chip"] == "M")

    def test_a_bug_in_one_chip_fails_that_chip_alone(self, sky, tmp_path, monkeypatch):
        real = pipeline_run.process_chip

        def broken(files, chip, edges, config):
            if chip == "M":
                raise ZeroDivisionError("planted")
            return real(files, chip, edges, config)

        monkeypatch.setattr(pipeline_run, "process_chip", broken)
        words = ["run", str(sky / "raw"), "--templates", str(sky / "store"), "--out", str(tmp_path)]
        assert_done(words, code=4)
        chips = {
            c["chip"]: c for c in json.loads((exposure_folder(tmp_path) / "report.json").read_text())["chips"]
        }
        assert chips["M"]["status"] == "failed"
        assert "ZeroDivisionError: planted" in chips["M"]["reason"]
        assert chips["K"]["status"] == "ok"

    def test_a_file_cut_short_is_left_alone(self, sky, tmp_path):
        raw = sorted(sky.glob("raw/*/*.fits"))[0]
        cut = tmp_path / raw.name
        shutil.copy(raw, cut)
        with cut.open("r+b") as file:
            file.truncate(raw.stat().st_size // 2)
        words = ["run", str(cut), "--templates", str(sky / "store"), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, words)
        assert "no complete KMTNet exposure" in str(result.exception)
        assert not (tmp_path / "out").exists()
