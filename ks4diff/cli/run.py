"""``ks4diff run``: KMTNet exposures against the template store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.output import alert_line, counted


def run(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    exposures: Annotated[
        list[Path], typer.Argument(metavar="EXPOSURE...", help="Files or folders of exposures.")
    ],
    templates: Annotated[Path, typer.Option(metavar="STORE", help="Template store (ks4diff templates add).")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if need be.")
    ],
    calibrations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Masters that ks4diff calibrate made.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings of the stages.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that share an image.")] = 2,
    threshold: Annotated[float | None, typer.Option(help="|S_corr| of a detection (5).")] = None,
    min_rb: Annotated[float | None, typer.Option(help="Real/bogus score that an alert needs.")] = None,
    save_images: Annotated[
        bool, typer.Option("--save-images", help="Keep each chip's difference.fits.")
    ] = False,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="Also send the alerts there.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Kafka topic (ks4.alerts.v1).")] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="History: postgresql://... (SQLite in DIR).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON, one a line.")] = False,
) -> None:
    """Subtract the template from every chip of each exposure; write candidates, alerts and a report.

    Exit code 4 when a chip failed, 3 when alerts wait for a broker, 2 when there is nothing to do.

    Example: ks4diff run raw/kmtc.20250207.004413.fits --templates store --out result
    """
    from ks4diff.io.sinks import check_destination, open_sink
    from ks4diff.io.templates import TemplateStore
    from ks4diff.numerics.pools import set_threads
    from ks4diff.pipeline.rb import scoring_config
    from ks4diff.pipeline.run import Edges, exposure_folder, exposures_of, run_exposures
    from ks4diff.products.errors import InputError

    settings = scoring_config(config, threshold=threshold, min_rb=min_rb)
    set_threads(threads)
    where = {"kafka": kafka, "topic": topic, "settings": settings.kafka}
    check_destination(kafka, topic, settings.kafka)
    found = exposures_of(exposures)
    if not found:
        raise InputError(f"{', '.join(map(str, exposures))}: no complete KMTNet exposure")
    edges = Edges(
        templates=TemplateStore(templates),
        calibrations=calibrations,
        save_images=save_images,
        database=database,
    )
    sink = open_sink(lambda name: exposure_folder(out, name) / "alerts.avro", out, **where)
    failed, last = 0, None
    try:
        for outcome in run_exposures(found, edges, out, settings, sink):
            _tell(outcome, as_json=as_json)
            failed += sum(chip.status == "failed" for chip in outcome.report.chips)
            last = outcome
    finally:
        sink.close()
    if failed:
        raise typer.Exit(4)
    if last is not None and _waits(last):
        raise typer.Exit(3)


def _waits(outcome: Any) -> bool:
    """Say what has not been delivered after the last exposure; return whether there is any."""
    undelivered = outcome.delivery.waiting + outcome.delivery.dead
    if outcome.waiting:
        print(f"exposures whose alerts wait for the history: {outcome.waiting}", file=sys.stderr)
    if undelivered:
        print(f"undelivered, in the outbox: {undelivered}", file=sys.stderr)
    return bool(undelivered or outcome.waiting)


def _tell(outcome: Any, *, as_json: bool) -> None:
    """Print one exposure's alerts and a line per chip, or its report as one line of JSON."""
    report = outcome.report
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    for record in outcome.records:
        print(alert_line(record))
    for chip in report.chips:
        if chip.status == "ok":
            found = f"{counted(chip.n_alerts, 'alert')} of {counted(chip.n_candidates, 'candidate')}"
            reasons = "; ".join(chip.quality_reasons)
            print(f"{report.exposure} {chip.chip}: {found}; quality {chip.quality} {reasons}".rstrip())
        else:
            print(f"{report.exposure} {chip.chip}: {chip.status}: {chip.reason}")
