"""``ks4diff demo``: the main job on the real pair of images that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ks4diff.cli.subtract import tell

SCIENCE, REFERENCE = "AKB13475I0096.fits", "AKB13475I0028.fits"


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")] = Path(
        "demo-out"
    ),
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="Also send the alerts there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find the microlensing event MOA-2013-BLG-475 in two frames of the SAAO 1.0 m telescope.

    Example: ks4diff demo --out demo-out
    """
    from ks4diff.io.fits_image import read_chip
    from ks4diff.io.share import shared_path
    from ks4diff.pipeline.config import PipelineConfig
    from ks4diff.pipeline.deliver import run_pair

    sample = shared_path("templates/sample")
    outcome = run_pair(
        read_chip(sample / SCIENCE), read_chip(sample / REFERENCE), out, PipelineConfig(), kafka=kafka
    )
    tell(outcome, as_json=as_json)
    if outcome.undelivered:
        raise typer.Exit(3)
