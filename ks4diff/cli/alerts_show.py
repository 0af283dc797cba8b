"""``ks4diff alerts show``, and how every command prints and saves an alert."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.alerts_options import JsonOption
from ks4diff.cli.output import alert_line, counted, json_record
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

_NAMED_BY = ("alertId", "messageId", "candid", "diaSourceId")  # what a file of a record is called by


def show(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Avro containers or messages of any survey.")
    ],
    as_json: JsonOption = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw each alert's stamps to DIR/<identifier>.png.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="AVSC", help="Schema of messages that carry none and are not ours, as Rubin's."),
    ] = None,
) -> None:
    """Print the alerts of Avro files, of ours or of another survey, one line each.

    Example: ks4diff alerts show out/alerts.avro --save pictures
    """
    from ks4diff.io.packets import load_foreign_schema, read_container

    parsed = None if schema is None else load_foreign_schema(schema)
    for file in files:
        container = read_container(file, schema=parsed)
        name = container.schema_name or "-"
        log.info("%s: %d records of schema %s", file, len(container.records), name)
        if not as_json:
            typer.echo(f"schema {name}, {counted(len(container.records), 'record')}")
        for record in container.records:
            print_alert(record, as_json=as_json)
            if save is not None and "messageId" not in record:
                draw_alert(record, save)


def save_alert(record: dict[str, Any], payload: bytes, folder: Path) -> None:
    """Save a packet as it came, and its three stamps as a picture beside it.

    Raises
    ------
    InputError
        When the folder cannot be written.

    """
    from ks4diff.io.atomic import atomic_write_bytes

    try:
        atomic_write_bytes(folder / f"{file_stem(record)}.avro", payload)
        if "messageId" not in record:
            draw_alert(record, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def draw_alert(record: dict[str, Any], folder: Path) -> None:
    """Draw an alert's three stamps; one without any, or with damaged ones, is logged."""
    from ks4diff.io.foreign import cutouts
    from ks4diff.io.pictures import write_triplet

    stem = file_stem(record)
    try:
        stamps = cutouts(record)
    except InputError as error:
        log.warning("%s: %s; no picture", stem, error)
        return
    if stamps is None:
        log.warning("%s: no stamps, no picture", stem)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_triplet(folder / f"{stem}.png", stamps, caption=_caption(record))


def _caption(record: dict[str, Any]) -> str:
    from ks4diff.io.foreign import digest

    seen = digest(record)
    parts = [seen.object, seen.band, seen.mag and f"{seen.mag:.2f}", seen.mjd and f"MJD {seen.mjd:.4f}"]
    parts += [
        None if seen.ra is None or seen.dec is None else f"{seen.ra:.5f} {seen.dec:+.5f}",
        None if seen.score is None else f"{seen.score_name} {seen.score:.2f}",
    ]
    return "  ".join(str(part) for part in parts if part)


def print_alert(record: dict[str, Any], *, as_json: bool, **extra: Any) -> None:
    """Print a record as a line, or as JSON with ``extra`` in it."""
    typer.echo(json.dumps(json_record({**record, **extra})) if as_json else alert_line(record))
    sys.stdout.flush()  # a pipe's reader should see an alert when it comes, not 8 kB later


def print_counts(counts: dict[str, int], *, as_json: bool) -> None:
    """Print numbers by their names."""
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(json.dumps(counts) if as_json else text)


def file_stem(record: dict[str, Any]) -> str:
    """Return a file name that no packet can turn into a path elsewhere."""
    name = str(next((record[key] for key in _NAMED_BY if record.get(key) is not None), "alert"))
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:100]
