"""``ks4diff calibrate``: master frames from a folder of raw ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def calibrate(
    rawdir: Annotated[Path, typer.Argument(metavar="RAWDIR", help="Folder with raw frames, of any depth.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Calibration folder; made if need be.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings: [masters] and [signature].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make master bias, flats, fringes and bad-pixel maps of every site, chip and band found in RAWDIR.

    Frames are told by IMAGETYP and exposure time. Exit code 2 when there is nothing to make masters from, 4
    when a frame could not be read (the others are used).

    Example: ks4diff calibrate raw/20250207 --out calibration
    """
    from ks4diff.pipeline.calibrate import CalibrationConfig, make_calibrations
    from ks4diff.pipeline.config import read_part

    settings = read_part(config, CalibrationConfig)
    report = make_calibrations(rawdir, out, settings)
    if as_json:
        lines = [line.to_dict() for line in report.masters]
        print(json.dumps({"masters": lines, "problems": list(report.problems)}))
    else:
        tell(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def tell(report: Any) -> None:
    """Print a line per master: what it is, from how many frames, and where."""
    print(f"{'site':<5} {'chip':<4} {'master':<9} {'band':<4} {'frames':>6}  {'note':<34} file")
    for line in report.masters:
        print(
            f"{line.site:<5} {line.chip:<4} {line.kind:<9} {line.band or '-':<4} {line.frames:>6}  "
            f"{line.note or '-':<34} {line.path or '-'}"
        )
    for problem in report.problems:
        print(f"could not be used: {problem}")
