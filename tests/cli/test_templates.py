"""The templates commands: what they print, as words and as JSON, and their exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.products.errors import ConfigError, InputError
from tests.tiles import CENTRE, draw, star_sky, tan_wcs, write_tile

SHAPE = (300, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    wcs = tan_wcs(SHAPE)
    write_tile(folder / "ks4.R.stack.fits", draw(wcs, SHAPE, star_sky()), wcs)
    (folder / "broken.fits").write_text("SIMPLE")
    result = run("add", folder / "store", folder / "ks4.R.stack.fits", folder / "broken.fits")
    assert result.exit_code == 2
    assert "covered 1.000" in result.stdout
    assert "broken.fits: is not a FITS file" in result.stderr
    return folder


def run(*words):
    return CliRunner().invoke(app, ["templates", *map(str, words)])


def test_list_as_words_and_json(folder):
    result = run("list", folder / "store")
    assert "2149.115-50  400 x 300  ZP 30" in result.stdout
    (card,) = json.loads(run("list", folder / "store", "--json").stdout)
    assert (card["band"], card["shape"]) == ("R", [300, 400])
    assert json.loads(run("list", folder / "store", "--band", "I", "--json").stdout) == []


def test_cover_takes_negative_declinations(folder):
    result = run("cover", folder / "store", CENTRE[0], CENTRE[1], "--size", "0.02", "--json")
    answer = json.loads(result.stdout)
    assert answer["covered"]["R"] == pytest.approx(1.0)
    assert run("cover", folder / "store", "10", "-20").stdout == "no template tile here\n"


def test_cover_takes_an_exposure(folder):
    path = write_tile(folder / "exposure.fits", np.ones(SHAPE, "f4"), tan_wcs(SHAPE, offset=(-200, 0)))
    result = run("cover", folder / "store", path)
    assert "0.5000" in result.stdout
    assert isinstance(run("cover", folder / "store", folder / "none.fits").exception, InputError)
    assert isinstance(run("cover", folder / "store", "1", "2", "3").exception, ConfigError)


def test_check_says_what_is_wrong(folder, tmp_path):
    assert ": ok" in run("check", folder / "store").stdout
    wcs = tan_wcs(SHAPE)
    path = write_tile(tmp_path / "a.fits", draw(wcs, SHAPE, star_sky()), wcs)
    assert run("add", tmp_path / "store", path, "--json").exit_code == 0
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert run("check", tmp_path / "store", "--quick").exit_code == 0
    result = run("check", tmp_path / "store", "--json")
    assert result.exit_code == 2
    assert "checksum" in json.loads(result.stdout)[0]["problem"]


def test_build_from_one_exposure(folder, tmp_path):
    exposure = folder / "ks4.R.stack.fits"
    result = run("build", tmp_path / "store", exposure, "--band", "R", "--out", tmp_path / "t.fits", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["used"] == {"ks4.R.stack.fits": "WCS"}
    assert (tmp_path / "t.fits").exists()


def test_options_of_one_file_are_refused_for_two(folder):
    result = run("add", folder / "store", folder / "a.fits", folder / "b.fits", "--field", "2149.115-50")
    assert isinstance(result.exception, ConfigError)


def test_fetch_needs_a_service(folder):
    result = run("fetch", folder / "store", "--ra", "1", "--dec", "-30", "--filter", "R")
    assert isinstance(result.exception, ConfigError)
    assert "no image service" in str(result.exception)


@pytest.mark.parametrize("command", ["add", "list", "check", "cover", "build", "fetch"])
def test_every_command_has_an_example(command):
    assert f"Example: ks4diff templates {command}" in " ".join(run(command, "--help").stdout.split())
