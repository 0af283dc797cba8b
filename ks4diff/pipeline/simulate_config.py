"""The simulator's configuration: presets, a TOML file, and the command's own options on top."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

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
    return _build(SimulateConfig, _merged(values, overrides), "simulate")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = _merged(out[name], value) if both else value
    return out


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    """Return ``kind`` with the given values; tables become the dataclasses that they configure."""
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown key {name!r}; known: {', '.join(sorted(known))}")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}.{name} must be a table, not {value!r}")
            made[name] = _build(hints[name], value, f"{where}.{name}")
        else:
            made[name] = _checked(value, hints[name], f"{where}.{name}")
    try:
        return kind(**made)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return a value of the hinted type; integers serve as floats and lists as tuples."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
            raise ConfigError(f"{where} must be a list like {hint}, not {value!r}")
        return tuple(_checked(item, kinds[0], where) for item in value)
    if isinstance(value, bool) != (hint is bool) or not isinstance(
        value, int if hint is bool else (hint, int) if hint is float else hint
    ):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return float(value) if hint is float else value
