"""``ks4diff forced``: the light curve at any position, from the differences that are kept."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def forced(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    ra: Annotated[float, typer.Option(metavar="DEG", help="ICRS right ascension, degrees.")],
    dec: Annotated[float, typer.Option(metavar="DEG", help="ICRS declination, degrees.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; may have moved.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="History: postgresql://... (SQLite in DIR).")
    ] = None,
    band: Annotated[str | None, typer.Option("--filter", metavar="B|V|R|I", help="This band alone.")] = None,
    raw: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Exposures: subtract again what is not kept. Needs --templates."),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Template store of the run, for --raw.")
    ] = None,
    calibrations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Masters of the run, for --raw.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of the run, for --raw.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the light curve as JSON.")] = False,
) -> None:
    """Measure the PSF flux at a position in every kept difference, detected or not.

    Fluxes are nJy, science minus template, by time. With flags a flux is not to be trusted. With --raw and
    --templates, differences that are not kept any more are made again for this one measurement.

    Example: ks4diff forced --ra 150.1163 --dec -29.8841 --out result --raw raw --templates store
    """
    from ks4diff.io.history import History
    from ks4diff.pipeline.forced import light_curve
    from ks4diff.products.errors import ConfigError, HistoryUnavailable, InputError

    if out is None and database is None:
        raise ConfigError("name the run's folder by --out, or its history by --database")
    if not (math.isfinite(ra) and abs(dec) <= 90):
        raise ConfigError(f"--ra {ra:g} --dec {dec:g} is no position on the sky (degrees)")
    if (raw is None) != (templates is None):
        raise ConfigError("--raw and --templates go together")
    history = History(database, Path() if out is None else out)
    history.require()
    with tempfile.TemporaryDirectory(prefix="ks4diff-") as folder:
        again = None if raw is None else _again(raw, templates, calibrations, config, Path(folder))
        try:
            curve = light_curve(history, out, ra % 360, dec, again=again)
        except HistoryUnavailable as away:
            raise InputError(str(away)) from None
    points = [asdict(point) for point in curve.fluxes if band is None or point.filter == band]
    if as_json:
        shape = {"ra": ra % 360, "dec": dec, "unit": "nJy", "n_not_kept": curve.n_not_kept, "points": points}
        print(json.dumps(shape))
    else:
        _print_table(points)
    if curve.n_not_kept:
        print(f"exposures that covered it and are not kept any more: {curve.n_not_kept}", file=sys.stderr)


def _again(
    raw: list[Path], templates: Path, calibrations: Path | None, config: Path | None, folder: Path
) -> Any:
    from ks4diff.io.templates import TemplateStore
    from ks4diff.pipeline.config import read_config
    from ks4diff.pipeline.resubtract import subtract_again
    from ks4diff.pipeline.run import Edges

    edges = Edges(templates=TemplateStore(templates), calibrations=calibrations)
    return subtract_again(raw, edges, folder, read_config(config))


def _print_table(points: list[dict[str, Any]]) -> None:
    print(f"{'mjd':>13} {'exposure':<22} {'chip':<4} {'band':<4} {'nJy':>11} {'error':>9} {'S/N':>7}  mag")
    for point in points:
        flux, error = point["flux"], point["flux_err"]
        mag = f"{31.4 - 2.5 * math.log10(flux):.3f}" if flux > 5 * error else f">{point['diffmaglim']:.2f}"
        flags = ",".join(point["flags"])
        print(
            f"{point['mjd']:13.6f} {point['exposure']:<22} {point['chip']:<4} {point['filter']:<4} "
            f"{flux:11.1f} {error:9.1f} {flux / error:7.1f}  {mag}  {flags}".rstrip()
        )
