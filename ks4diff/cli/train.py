"""``ks4diff train``: draw a training set, train a real/bogus model, measure and package it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.products.errors import ConfigError, InputError


def train(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    harvest: Annotated[
        Path, typer.Argument(metavar="HARVEST", help="Folder of training sets; made if need be.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the model.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of skies, harvest and fit.")
    ] = None,
    fields: Annotated[
        int | None, typer.Option(metavar="N", help="Fields to draw; a sixth is of SSO.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Fields drawn at the same time.")] = 1,
    draw: Annotated[
        bool, typer.Option(help="Draw fields that are missing; else use those there are.")
    ] = True,
    also: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="More harvested fields, to train on only.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model's card as JSON.")] = False,
) -> None:
    """Train a real/bogus model on simulated fields and write arrays, card, golden vectors and a page.

    Fields are drawn, sources added, templates subtracted and candidates tagged by what they are known to be.
    A field takes minutes and is kept in HARVEST; an interrupted run goes on where it was. Equal seeds and
    settings give equal models. Needs pip install 'ks4diff[train]'.

    Example: ks4diff train harvest --out models/ks4rb-1.2.0 --fields 240 --processes 8
    """
    try:
        from ks4diff.training.train import harvest_all, harvested, train_config
        from ks4diff.training.train import train as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing: pip install 'ks4diff[train]'") from None

    overrides: dict[str, Any] = {"fields": fields, "seed": seed}
    settings = train_config(config, {k: v for k, v in overrides.items() if v is not None})
    extra = [path for folder in also or () for path in _fields(folder)]
    paths = harvest_all(harvest, settings, processes) if draw else harvested(harvest, settings)
    model = run(paths, out, settings, extra=extra)
    if as_json:
        print(json.dumps(dict(model.card)))
        return
    print(f"{model.version}: threshold {model.threshold:.4f}, page in {out / 'card.md'}")


def _fields(folder: Path) -> list[Path]:
    """Return the files of a harvested set's fields."""
    found = sorted(folder.glob("field*.npz"))
    if not found:
        raise InputError(f"{folder}: holds no harvested field")
    return found
