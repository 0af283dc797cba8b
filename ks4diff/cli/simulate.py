"""``ks4diff simulate``: a KMTNet-like night with known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.products.errors import ConfigError

FORM_HELP = "raw-mef, raw-chip, trimmed, trimmed-nosec, four, raw-pair, l1 or single."


def simulate(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the night; made if need be.")],
    preset: Annotated[str | None, typer.Option(help="tiny, bench-1, full, sparse or crowded.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of the simulator.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="CTIO, SAAO or SSO.")] = None,
    band: Annotated[str | None, typer.Option(help="B, V, R or I.")] = None,
    chips: Annotated[str | None, typer.Option(metavar="K,M,N,T", help="Chips to draw.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels of a chip, up to 9216x9232.")
    ] = None,
    form: Annotated[str | None, typer.Option(help=FORM_HELP)] = None,
    exposures: Annotated[int | None, typer.Option(metavar="N", help="Exposures of each field.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Draw exposures, KS4-like templates and a truth table with the S_corr to expect of each change.

    Writes OUT/raw/<night>, OUT/templates, OUT/truth and OUT/manifest.json. Needs GalSim: pip install
    'ks4diff[simulate]'.

    Example: ks4diff simulate sky --preset tiny --band R --form raw-mef --chips K,M,N,T
    """
    from ks4diff.pipeline.simulate import simulate as run
    from ks4diff.pipeline.simulate_config import simulate_config

    overrides: dict[str, Any] = {
        "site": site,
        "band": band,
        "form": form,
        "exposures": exposures,
        "seed": seed,
    }
    overrides["chips"] = chips.split(",") if chips else None
    overrides["size"] = _size(size) if size else None
    settings = simulate_config(preset, config, {k: v for k, v in overrides.items() if v is not None})
    made = run(settings, out)
    if as_json:
        print(json.dumps(json.loads((out / "manifest.json").read_text(encoding="utf-8"))))
        return
    for path in (*made.exposures, *made.templates):
        print(path)
    print(f"{made.sources} sources, {made.changing} of them changing; truth in {out / 'truth'}")


def _size(words: str) -> list[int]:
    parts = words.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--size is WIDTHxHEIGHT, not {words!r}")
    return [int(part) for part in parts]
