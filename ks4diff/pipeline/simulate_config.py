"""The simulator's configuration: presets, a TOML file, and the command's own options on top."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ks4diff.pipeline.config import build_config
from ks4diff.products.errors import ConfigError
from ks4diff.stages.sim.config import SimulateConfig

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # seconds: for tests and for a first look
        "size": [512, 384],
        "chips": ["K"],
        "exposures": 2,
        "dither": False,
        "sky": {"density_deg2": 40_000.0, "hostless_mpix": 20.0, "hosted_mpix": 20.0},
        "template": {"margin_pix": 32},
    },
    # frozen: benchmarks/bench-1.sha256; a change here is a new preset, bench-2
    "bench-1": {
        "seed": 20261001,
        "size": [2048, 2048],
        "chips": ["K", "N"],
        "exposures": 2,
        "dither": False,
        "fields": ["1354.115-38", "1571.306-40"],
        "detector": {"cosmic_rays_mpix": 50.0, "trails": 0.5},
    },
    "full": {"size": [9216, 9232], "exposures": 4, "template": {"tile_pix": 22000}},
    "sparse": {"sky": {"density_deg2": 500.0}},
    "crowded": {"sky": {"density_deg2": 100_000.0, "star_fraction": 0.9, "star_slope": 0.3}},
}


def simulate_config(preset: str | None, path: Path | None, overrides: dict[str, Any]) -> SimulateConfig:
    """Return the preset's configuration with the file's values and then ``overrides`` on top.

    Raises
    ------
    ConfigError
        When the preset or a key is unknown, a value has the wrong type or cannot be drawn.

    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    values: dict[str, Any] = PRESETS[preset] if preset else {}
    if path is not None:
        try:
            values = _merged(values, tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    return build_config(SimulateConfig, _merged(values, overrides), "simulate")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = _merged(out[name], value) if both else value
    return out
