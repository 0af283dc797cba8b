"""``ks4diff subtract`` as a person or a script sees it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.cli.main import main
from ks4diff.numerics import pools
from tests import skies
from tests.broker.broker import free_port
from tests.pipeline.test_report import CHIP_KEYS, RUN_KEYS


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def ks4diff(*arguments):
    """Run a command in this process: a process of its own takes 3 s to start."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers, level = logging.root.handlers[:], logging.root.level
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["ks4diff", *map(str, arguments)])
        patch.setattr("ks4diff.pipeline.deliver.DELIVERY_DEADLINE_S", 1.0)
        # set-up replaces the root's handlers and closes them: pytest's own are kept away from it
        patch.setattr(logging.root, "handlers", [])
        try:
            main()
        except SystemExit as end:
            code = end.code
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments):
    """Return the one line with which a command ends that cannot be carried out."""
    done = ks4diff(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return (science, reference): the science image has a WCS and lies in a named extension as well."""
    folder = tmp_path_factory.mktemp("images")
    new = skies.Stars(x=np.array([101.2, 222.7]), y=np.array([88.3, 199.6]), flux=np.array([9000.0, 6000.0]))
    pair = skies.Scene(n_stars=900, new=new).make(111)
    science, reference = folder / "new.fits", folder / "old.fits"
    header = skies.sky_wcs().to_header(relax=True)
    header["GAIN"] = pair.science.gain
    decoy = fits.ImageHDU(np.zeros((64, 64), dtype=np.float32), name="DECOY")
    decoy.data[5, 7] = 1
    image = fits.ImageHDU(pair.science.data, header, name="SCI")
    fits.HDUList([fits.PrimaryHDU(pair.science.data, header), decoy, image]).writeto(science)
    fits.writeto(reference, pair.template.data, fits.Header({"GAIN": pair.template.gain}))
    return science, reference


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "plain"
    return out, ks4diff("subtract", *files, "--out", out)


def test_a_run_tells_its_alerts_files_and_verdict(run):
    out, done = run
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "2 alerts of" in done.stdout
    assert "; quality " in done.stdout
    assert str(out / "report.json") in done.stdout
    assert (out / "report.json").exists()


def test_places_come_from_the_header(run):
    out, _ = run
    table = fits.getdata(out / "candidates.fits", 1)
    wcs = skies.sky_wcs()
    for x, y in ((101.2, 88.3), (222.7, 199.6)):
        ra, dec = wcs.all_pix2world(x, y, 0)
        off = np.hypot((table["ra"] - ra) * np.cos(np.radians(dec)), table["dec"] - dec) * 3600
        assert off.min() < 0.3 * 0.4
    with fits.open(out / "difference.fits") as hdus:
        assert {hdu.name for hdu in hdus} >= {"DIFFERENCE", "SCORR", "MASK", "PSF"}
        assert hdus["DIFFERENCE"].header["CTYPE1"] == "RA---TAN"


def test_json_is_the_report(files, tmp_path):
    done = ks4diff("subtract", *files, "--out", tmp_path / "out", "--json", "--zeropoint", "26.4")
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    assert set(printed) >= RUN_KEYS
    assert set(printed["chips"][0]) >= CHIP_KEYS
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: printed[name] for name in written} == written
    assert len(printed["alerts"]) == printed["chips"][0]["n_alerts"] == 2
    # the zero point makes counts nanojansky and magnitudes
    assert printed["chips"][0]["flux_unit"] == "nJy"
    for alert in printed["alerts"]:
        measured = alert["candidate"]
        assert measured["fluxUnit"] == "nJy"
        assert measured["magpsf"] == pytest.approx(31.4 - 2.5 * np.log10(abs(measured["psfFlux"])), abs=1e-3)
    with fits.open(tmp_path / "out" / "candidates.fits") as hdus:
        assert hdus[1].columns["flux"].unit == "nJy"
        assert np.isfinite(hdus[1].data["mag"]).all()


@pytest.mark.parametrize("hdu", ["2", "SCI"])
def test_an_hdu_by_number_or_name(files, run, tmp_path, hdu):
    done = ks4diff("subtract", *files, "--out", tmp_path / "out", "--science-hdu", hdu)
    assert done.returncode == 0, done.stderr
    here, there = (fits.getdata(folder / "candidates.fits", 1) for folder in (tmp_path / "out", run[0]))
    np.testing.assert_array_equal(here["flux"], there["flux"])


def test_options_reach_the_stages(files, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text("[detect]\nthreshold = 30.0\n")
    base = ("subtract", *files, "--json", "--out")
    few, many = (
        json.loads(ks4diff(*base, tmp_path / "out", *options).stdout)
        for options in (("--config", config), ("--config", config, "--threshold", "4", "--min-rb", "1"))
    )
    assert few["chips"][0]["n_candidates"] <= 2 < many["chips"][0]["n_candidates"]
    # a score of 1 is all that passes
    assert {alert["candidate"]["rb"] for alert in many["alerts"]} <= {1.0}
    assert many["chips"][0]["dropped"]["rb_below_threshold"] > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "named"),
        [("[detect]\nthreshhold = 5", "threshhold"), ("[detect", "settings.toml"), (None, "settings.toml")],
    )
    def test_a_bad_configuration(self, files, tmp_path, text, named):
        config = tmp_path / "settings.toml"
        if text is not None:
            config.write_text(text)
        line = refused("subtract", *files, "--out", tmp_path / "out", "--config", config)
        assert len(line.splitlines()) == 1
        assert named in line
        assert not (tmp_path / "out").exists()

    def test_out_is_a_file(self, files, tmp_path):
        (tmp_path / "out").write_text("mine")
        line = refused("subtract", *files, "--out", tmp_path / "out")
        assert len(line.splitlines()) == 1
        assert "--out" in line
        assert (tmp_path / "out").read_text() == "mine"

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (("--science-hdu", "7"), "7"),
            (("--reference-hdu", "NOPE"), "NOPE"),
            (("--threshold", "1"), "threshold"),
            (("--min-rb", "nan"), "min_rb"),
            (("--gain", "-1"), "gain"),
            (("--kafka", "nowhere"), "nowhere"),
        ],
    )
    def test_options_out_of_range(self, files, tmp_path, options, named):
        line = refused("subtract", *files, "--out", tmp_path / "out", *options)
        assert len(line.splitlines()) == 1
        assert named in line
        assert not (tmp_path / "out").exists()

    def test_an_unusable_pair(self, files, tmp_path):
        fits.writeto(
            tmp_path / "empty.fits", np.random.default_rng(3).normal(0, 1, (80, 90)).astype(np.float32)
        )
        line = refused("subtract", tmp_path / "empty.fits", files[1], "--out", tmp_path / "out")
        assert len(line.splitlines()) == 1
        assert "empty.fits" in line
        assert not (tmp_path / "out").exists()

    def test_usage(self, files):
        assert "--out" in refused("subtract", *files)
        assert "--no-such" in refused("subtract", *files, "--out", "x", "--no-such")
        assert "REFERENCE" in refused("subtract", files[0], "--out", "x")


def test_in_a_process_of_its_own(files, run, tmp_path):
    command = [sys.executable, "-m", "ks4diff", "subtract", *map(str, files), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace(str(tmp_path / "out"), str(run[0])) == run[1].stdout


def test_without_a_broker_the_exit_code_says_so(files, tmp_path):
    done = ks4diff("subtract", *files, "--out", tmp_path / "out", "--kafka", f"127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "outbox" in done.stdout + done.stderr
    assert (tmp_path / "out" / "report.json").exists()


def test_inputs_are_left_as_they_were(files, tmp_path):
    before = [path.read_bytes() for path in files]
    assert ks4diff("subtract", *files, "--out", tmp_path / "out").returncode == 0
    assert [path.read_bytes() for path in files] == before


def test_the_number_of_threads_changes_nothing(files, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pools._Setting, "threads", 2)  # put back at the end
    done = ks4diff("subtract", *files, "--out", tmp_path, "--threads", 3)
    assert done.returncode == 0, done.stderr
    assert pools.n_threads() == 3
    tables = [fits.getdata(folder / "candidates.fits", 1) for folder in (tmp_path, run[0])]
    assert tables[0].tobytes() == tables[1].tobytes()
    assert "threads" in refused("subtract", *files, "--out", tmp_path, "--threads", 0)
