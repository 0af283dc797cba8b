"""``ks4diff subtract``: two FITS images of any instrument in, what changed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.output import alert_line, counted, json_record


def subtract(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    science: Annotated[
        Path, typer.Argument(metavar="SCIENCE", help="FITS image in which things may be new.")
    ],
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="FITS image of the same field before.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if need be.")
    ],
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings of the stages.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that share an image.")] = 2,
    threshold: Annotated[float | None, typer.Option(help="|S_corr| of a detection (5).")] = None,
    min_rb: Annotated[float | None, typer.Option(help="Real/bogus score that an alert needs.")] = None,
    science_hdu: Annotated[str | None, typer.Option(help="Number or name of the HDU.")] = None,
    reference_hdu: Annotated[str | None, typer.Option(help="Number or name of the HDU.")] = None,
    gain: Annotated[float | None, typer.Option(help="Electrons per count of both, over the headers.")] = None,
    saturation: Annotated[float | None, typer.Option(help="Saturation of both, counts.")] = None,
    zeropoint: Annotated[float | None, typer.Option(help="AB magnitude of one science count.")] = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="Also send the alerts there.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Kafka topic (ks4.alerts.v1).")] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="History: postgresql://... (SQLite in DIR).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Subtract REFERENCE from SCIENCE and write candidates, alerts, difference image, report and pictures.

    The images need no WCS: they are registered by their stars. Exit code 2 when the pair cannot be used, 3
    when alerts wait for a broker that is away.

    Example: ks4diff subtract new.fits old.fits --out result
    """
    from ks4diff.io.fits_image import read_chip
    from ks4diff.numerics.pools import set_threads
    from ks4diff.pipeline.deliver import run_pair
    from ks4diff.pipeline.rb import scoring_config

    settings = scoring_config(config, threshold=threshold, min_rb=min_rb)
    set_threads(threads)
    options = {"gain": gain, "saturation": saturation}
    first = read_chip(science, hdu=_hdu(science_hdu), zeropoint=zeropoint, **options)
    second = read_chip(reference, hdu=_hdu(reference_hdu), **options)
    outcome = run_pair(first, second, out, settings, kafka=kafka, topic=topic, database=database)
    tell(outcome, as_json=as_json)
    if outcome.undelivered:
        raise typer.Exit(3)


def tell(outcome: Any, *, as_json: bool) -> None:
    """Print a run's alerts, files and verdict to stdout, or its report as JSON."""
    if as_json:
        print(json.dumps(outcome.report.to_dict() | {"alerts": [json_record(r) for r in outcome.records]}))
        return
    chip = outcome.report.chips[0]
    for record in outcome.records:
        print(alert_line(record))
    reasons = f" ({'; '.join(chip.quality_reasons)})" if chip.quality_reasons else ""
    found = f"{counted(chip.n_alerts, 'alert')} of {counted(chip.n_candidates, 'candidate')}"
    print(f"{found}; quality {chip.quality}{reasons}")
    for path in outcome.files:
        print(path)
    if outcome.unassociated:
        print(f"exposures whose alerts wait for the history: {outcome.unassociated}; the next run goes on")
    if outcome.undelivered > outcome.unassociated:
        waiting = outcome.undelivered - outcome.unassociated
        print(f"undelivered messages, in the outbox: {waiting}; ks4diff alerts resend tries again")


def _hdu(text: str | None) -> int | str | None:
    """Return an HDU's number or name as `read_chip` wants it."""
    return int(text) if text is not None and text.isdecimal() else text
