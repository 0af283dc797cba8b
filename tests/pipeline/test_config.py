"""One configuration: what it takes, what it refuses by name, and its digest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ks4diff.pipeline.config import PipelineConfig, read_config
from ks4diff.products.errors import ConfigError


def read(tmp_path, text, *args, **options):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return read_config(path, *args, **options)


def test_no_file_gives_the_defaults():
    assert read_config(None) == PipelineConfig()


def test_values_reach_their_stage(tmp_path):
    text = (
        "min_rb = 0.7\n[detect]\nthreshold = 6\n[register]\ndepths = [20, 40]\n"
        "[subtract]\nastrometric_noise = false\n[calibrate.background]\nbackground_mesh_pix = 80\n"
    )
    config = read(tmp_path, text)
    assert config.min_rb == 0.7
    assert config.detect.threshold == 6.0
    assert isinstance(config.detect.threshold, float)
    assert config.register.depths == (20, 40)
    assert config.subtract.astrometric_noise is False
    assert config.calibrate.background.background_mesh_pix == 80
    assert config.calibrate.stars == PipelineConfig().calibrate.stars


def test_options_win_over_the_file(tmp_path):
    text = "min_rb = 0.7\n[detect]\nthreshold = 6\nseparation_fwhm = 2.0\n"
    config = read(tmp_path, text, {"detect": {"threshold": 7.5}}, min_rb=0.2)
    assert (config.min_rb, config.detect.threshold, config.detect.separation_fwhm) == (0.2, 7.5, 2.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[detekt]\nthreshold = 5", "detekt"),
        ("[detect]\nthreshhold = 5", "threshhold"),
        ("[calibrate.stars]\nmin_star = 5", "min_star'"),
        ('[detect]\nthreshold = "5"', "detect.threshold"),
        ("[detect]\nthreshold = true", "detect.threshold"),
        ("[calibrate.stars]\nmin_stars = 8.5", "calibrate.stars.min_stars"),
        ("[subtract]\nastrometric_noise = 1", "subtract.astrometric_noise"),
        ("[register]\ndepths = 30", "register.depths"),
        ("[register]\ndepths = [30, 'x']", "register.depths"),
        ("detect = 5", "detect must be a table"),
        ("[detect]\nthreshold = 1.0", "threshold must be at least 2"),
        ("[detect]\nthreshold = nan", "threshold must be at least 2"),
        ("[calibrate.background]\nplateau_fraction = 1.5", "plateau_fraction"),
        ("min_rb = nan", "min_rb"),
        ("min_rb = 1.5", "min_rb"),
        ("min_rb = 'high'", "min_rb"),
        ("[detect\nthreshold = 5", "settings.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, named):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert named in str(refused.value)
    assert "settings.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match=path.name):
            read_config(path)


def test_an_option_over_a_section_that_is_no_table(tmp_path):
    with pytest.raises(ConfigError, match="detect"):
        read(tmp_path, "detect = 3", {"detect": {"threshold": 5.0}})


class TestDigest:
    def test_equal_for_equal_values_in_any_process(self, tmp_path):
        code = "from ks4diff.pipeline.config import PipelineConfig; print(PipelineConfig().digest())"
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert there.stdout.strip() == PipelineConfig().digest()
        assert read(tmp_path, "[detect]\nthreshold = 5").digest() == PipelineConfig().digest()
        assert len(PipelineConfig().digest()) == 64

    def test_sensitive_to_every_part(self):
        config = PipelineConfig()
        changed = [
            replace(config, min_rb=0.6),
            replace(config, detect=replace(config.detect, threshold=5.5)),
            replace(config, register=replace(config.register, depths=(30, 60))),
            replace(
                config,
                calibrate=replace(config.calibrate, psf=replace(config.calibrate.psf, max_stars=81)),
            ),
        ]
        assert len({config.digest(), *(other.digest() for other in changed)}) == 5
