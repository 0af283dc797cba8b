"""The command and the files of a simulated night; the frozen skies; every artefact kind together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.pipeline.simulate import simulate
from ks4diff.pipeline.simulate_config import PRESETS, simulate_config
from ks4diff.products.errors import ConfigError

pytest.importorskip("galsim")

FROZEN = Path(__file__).resolve().parents[2] / "benchmarks" / "frozen_skies.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return simulate(simulate_config("tiny", None, {}), tmp_path_factory.mktemp("tiny"))


class TestFrozen:
    def test_the_tiny_sky_is_what_was_frozen(self, tiny):
        """A change here changes every benchmark: make a new preset instead."""
        known = json.loads(FROZEN.read_text(encoding="utf-8"))["tiny"]
        assert {name: value for name, value in tiny.checksums.items() if "/kmt" in name} == known

    def test_bench_1_is_recorded(self):
        names = json.loads(FROZEN.read_text(encoding="utf-8"))["bench-1"]
        config = simulate_config("bench-1", None, {})
        assert len(names) == 2 * config.exposures * len(config.fields) * len(config.chips)


class TestFiles:
    def test_what_is_written_can_be_read(self, tiny):
        exposures = find_exposures(tiny.folder / "raw")
        assert [str(e.id) for e in exposures] == ["kmtc.20250207.004413", "kmtc.20250207.004414"]
        assert exposures[0].missing == ("M", "N", "T")
        chip = read_exposure_chip(exposures[0], "K")
        assert chip.data.shape == (384, 512)
        assert len(chip.amplifiers) == 8
        assert chip.filter == "R"

    def test_truth_lies_where_the_true_wcs_says(self, tiny):
        path = next(p for p in tiny.truths if p.name.startswith("kmtc"))
        with fits.open(path) as hdus:
            header = hdus[0].header.copy()
            del header["NAXIS"]  # an image it is not
            wcs, rows = WCS(header), hdus["SOURCES"].data
            x, y = wcs.wcs_world2pix(rows["ra"], rows["dec"], 0)
            assert np.abs(x - rows["x"]).max() < 1e-3
            assert np.abs(y - rows["y"]).max() < 1e-3
            assert {"hostless", "hosted", "star", "galaxy"} <= set(rows["kind"])
            assert (rows["in_template"] == (rows["template_mag"] < 90)).all()
            kinds = set(hdus["ARTEFACTS"].data["kind"])
            assert {"cosmic_ray", "hot_pixel"} <= kinds
            assert hdus["PSF"].data.shape[2:] == (49, 49)
            np.testing.assert_allclose(hdus["PSF"].data.sum(axis=(2, 3)), 0.98, atol=0.02)

    def test_transients_on_galaxies_know_their_host(self, tiny):
        with fits.open(next(p for p in tiny.truths if p.name.startswith("kmtc"))) as hdus:
            rows = hdus["SOURCES"].data
            hosted = rows[np.isin(rows["kind"], ["hosted", "nuclear"])]
            assert len(hosted) > 2
            for row in hosted:
                host = rows[rows["id"] == row["host"]]
                if len(host):
                    apart = np.hypot(host["x"] - row["x"], host["y"] - row["y"])[0]
                    assert apart < (1e-4 if row["kind"] == "nuclear" else 40)

    def test_the_template_has_the_header_of_the_survey(self, tiny):
        with fits.open(tiny.templates[0]) as hdus:
            header = hdus[0].header
            assert (header["MAGZERO"], header["FILTER"], header["FIELD1"]) == (30.0, "R", "1354")
            assert header["EXPTIME"] == 480
            assert header["CD2_2"] * 3600 == pytest.approx(0.4)
            assert 1e5 < header["SATURATE"] < 5e5
            assert "GAIN" not in header
            assert hdus[0].data.dtype == ">f4"

    def test_stars_have_their_magnitude_and_place_in_the_template(self, tiny):
        with fits.open(tiny.templates[0]) as hdus:
            wcs, data = WCS(hdus[0].header), hdus[0].data.astype(float)
        with fits.open(next(p for p in tiny.truths if p.name.startswith("kmtc"))) as hdus:
            rows = hdus["SOURCES"].data
        stars = rows[(rows["kind"] == "star") & (rows["mag"] > 15) & (rows["mag"] < 19)]
        x, y = wcs.wcs_world2pix(stars["ra"], stars["dec"], 0)
        offset = np.arange(-12, 13)
        found = []
        for a, b, star in zip(x, y, stars, strict=True):
            i, j = round(a), round(b)
            if not (20 < i < data.shape[1] - 20 and 20 < j < data.shape[0] - 20):
                continue
            near = np.hypot(rows["x"] - star["x"], rows["y"] - star["y"]) < 20
            if (10 ** (-0.4 * (rows["mag"][near] - star["mag"]))).sum() > 1.02:
                continue
            cut = data[j - 12 : j + 13, i - 12 : i + 13]
            ring = np.hypot(offset[None] + i - a, offset[:, None] + j - b)
            light = (cut[ring < 10] - np.median(cut[ring > 11])).sum()
            centre = (cut * (ring < 5) * offset[None]).sum() / (cut * (ring < 5)).sum() + i - a
            found.append((30 - 2.5 * np.log10(light) - star["mag"], centre))
        found = np.array(found)
        assert len(found) >= 4
        # the aureole beyond 10 pixels is some 3 % of the light, illumination another 2 %
        assert abs(np.median(found[:, 0])) < 0.08
        assert abs(np.median(found[:, 1])) < 0.05


class TestCommand:
    def test_options_reach_the_files(self, tmp_path):
        words = ["simulate", str(tmp_path), "--preset", "tiny", "--size", "256x128", "--chips", "M,T"]
        words += ["--site", "SSO", "--band", "I", "--exposures", "1", "--form", "raw-mef", "--seed", "3"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert "of them changing" in done.output
        (exposure,) = find_exposures(tmp_path / "raw")
        assert exposure.missing == ("K", "N")
        chip = read_exposure_chip(exposure, "T")
        assert (chip.site, chip.filter, chip.data.shape) == ("SSO", "I", (128, 256))
        assert chip.data.min() > 500  # the bias is still there

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"band": "g"}, "band must be one of B, V, R, I"),
            ({"size": [500, 300]}, "8 equal amplifiers"),
            ({"chips": ["K", "K"]}, "chips must be different"),
            ({"sky": {"densty": 3}}, "unknown key 'densty'"),
            ({"seed": "one"}, "seed must be int"),
            ({"template": {"combine": "sum"}}, "combine must be median or mean"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_by_name(self, changes, words):
        with pytest.raises(ConfigError, match=words):
            simulate_config(None, None, changes)

    def test_every_preset_is_valid(self):
        for preset in PRESETS:
            simulate_config(preset, None, {})

    def test_a_file_lies_over_the_preset_and_options_over_the_file(self, tmp_path):
        path = tmp_path / "c.toml"
        path.write_text('seed = 7\nband = "V"\n[sky]\nhosted_mpix = 5\n')
        config = simulate_config("tiny", path, {"band": "B"})
        assert (config.seed, config.band, config.sky.hosted_mpix) == (7, "B", 5.0)
        assert config.sky.hostless_mpix == PRESETS["tiny"]["sky"]["hostless_mpix"]
