"""``ks4diff alerts``: read alerts from Kafka or a file, and look after the outbox."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.output import alert_line, counted, json_record
from ks4diff.products.errors import InputError

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Read, resend and check alerts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

DEFAULT_TOPIC = "ks4.alerts.v1"  # that of io/sinks.py, repeated so that --help loads no database driver
_DEADLINE_S = 60.0
_NAMED_BY = ("alertId", "messageId", "candid", "diaSourceId")  # what a file of a record is called by

KafkaOption = Annotated[str, typer.Option("--kafka", metavar="HOST:PORT[,...]", help="Kafka servers.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output, without the stamps.")]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that a run wrote, with outbox.db.")]


@app.command()
def tail(
    kafka: KafkaOption,
    topic: Annotated[str, typer.Option(help="Kafka topic.")] = DEFAULT_TOPIC,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning/--latest", help="From the oldest alert kept, or the next to come."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many alerts shown.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Stop when nothing has come for this many seconds.")
    ] = None,
    min_rb: Annotated[float | None, typer.Option(help="Show only alerts of at least this rb.")] = None,
    as_json: JsonOption = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also save each shown alert as DIR/<alertId>.avro.")
    ] = None,
) -> None:
    """Print alerts as they come from Kafka, each once, one line each.

    Example: ks4diff alerts tail --kafka localhost:9092 --from-beginning --limit 10
    """
    from ks4diff.io import listen
    from ks4diff.io.atomic import atomic_write_bytes
    from ks4diff.io.sinks import check_topic

    check_topic(topic)
    shown = 0
    received = listen.tail(kafka, topic=topic, from_beginning=from_beginning, timeout_s=timeout)
    try:
        for alert in received:
            if not _good_enough(alert.record, min_rb):
                continue
            if save is not None:
                atomic_write_bytes(save / f"{_file_stem(alert.record)}.avro", alert.payload)
            place = {"topic": alert.topic, "partition": alert.partition, "offset": alert.offset}
            _show(alert.record, as_json=as_json, kafka=place)
            shown += 1
            if shown == limit:
                break
    except KeyboardInterrupt:
        pass  # how a tail without bounds is ended
    finally:
        received.close()
    log.info("%d alerts shown", shown)


@app.command()
def resend(
    out: OutArgument,
    kafka: KafkaOption,
    deadline: Annotated[float, typer.Option(min=1, help="Give up after this many seconds.")] = _DEADLINE_S,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="History that the run was given, if one was.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings of the run.")] = None,
    topic: Annotated[str, typer.Option(help="Topic of alerts that waited for the history.")] = DEFAULT_TOPIC,
    as_json: JsonOption = False,
) -> None:
    """Send every alert of OUT's outbox that Kafka has not acknowledged, refused ones too.

    Before that, exposures that wait for a history that was away are put into it. Exit code 3 when some are
    still undelivered.

    Example: ks4diff alerts resend out --kafka localhost:9092
    """
    from ks4diff.io.outbox import Outbox, read_status
    from ks4diff.io.sinks import KafkaSink, check_topic, send_outbox
    from ks4diff.io.spool import Spool
    from ks4diff.io.stream import AlertProducer

    check_topic(topic)
    producer = AlertProducer(kafka)
    path, spool = out / "outbox.db", Spool(out)
    if not spool.waiting():
        read_status(path)  # an absent outbox is an error, not one to make
    outbox = Outbox(path)
    try:
        if not outbox.is_sender:
            log.warning("%s: another process is sending from this outbox", path)
        if spool.waiting():
            _put_in(out, (database, config), KafkaSink(outbox, producer, topic=topic))
        outbox.revive()
        summary = send_outbox(outbox, producer, deadline_s=deadline)
    finally:
        producer.close()
        outbox.close()
    counts = {"acknowledged": summary.acknowledged, "waiting": summary.waiting, "dead": summary.dead}
    _counts(counts, as_json=as_json)
    if spool.waiting():
        print(f"exposures whose alerts wait for the history: {spool.waiting()}", file=sys.stderr)
    if summary.waiting or summary.dead or spool.waiting():
        raise typer.Exit(3)


def _put_in(out: Path, settings: tuple[str | None, Path | None], sink: Any) -> None:
    """Put what waits into the history, its alerts into the archive and ``sink``."""
    from ks4diff.io.history import History
    from ks4diff.io.sinks import ArchiveSink, TeeSink
    from ks4diff.pipeline.config import read_config
    from ks4diff.pipeline.ledger import Ledger, begin
    from ks4diff.pipeline.run import exposure_folder

    database, config = settings
    archive = ArchiveSink(
        lambda name: exposure_folder(out, name) / "alerts.avro", database=out / "ks4diff.db"
    )
    ledger = Ledger(
        history=History(database, out),
        out=out,
        config=read_config(config),
        deliver=TeeSink(archive, sink).emit,
        report_of=lambda one: exposure_folder(out, one.exposure) / "report.json",
    )
    begin(ledger)


@app.command()
def status(out: OutArgument, as_json: JsonOption = False) -> None:
    """Count the alerts of OUT's outbox by state, and say why some are undelivered.

    Example: ks4diff alerts status out
    """
    from ks4diff.io.outbox import read_status

    found = read_status(out / "outbox.db")
    if as_json:
        typer.echo(json.dumps({**found.counts, "reasons": found.reasons}))
        return
    _counts(found.counts, as_json=False)
    for reason, count in found.reasons.items():
        typer.echo(f"{count} undelivered: {reason}")


@app.command()
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
            _show(record, as_json=as_json)
            if save is not None and "messageId" not in record:
                _draw(record, save)


@app.command()
def schema(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Such as 1.0; the newest when left out.")
    ] = None,
    exposure: Annotated[
        bool, typer.Option("--exposure", help="Of the message that an exposure is done, not of alerts.")
    ] = False,
) -> None:
    """Print a schema of ours, nested records expanded, as JSON.

    Example: ks4diff alerts schema > ks4.avsc
    """
    from ks4diff.io.packets import schema_json

    typer.echo(schema_json(version, exposure=exposure))


def _draw(record: dict[str, Any], folder: Path) -> None:
    """Draw an alert's three stamps; one without any, or with damaged ones, is logged."""
    from ks4diff.io.foreign import cutouts
    from ks4diff.io.pictures import write_triplet

    stem = _file_stem(record)
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


def _show(record: dict[str, Any], *, as_json: bool, **extra: Any) -> None:
    typer.echo(json.dumps(json_record({**record, **extra})) if as_json else alert_line(record))
    sys.stdout.flush()  # a pipe's reader should see an alert when it comes, not 8 kB later


def _counts(counts: dict[str, int], *, as_json: bool) -> None:
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(json.dumps(counts) if as_json else text)


def _good_enough(record: dict[str, Any], min_rb: float | None) -> bool:
    if min_rb is None:
        return True
    candidate = record.get("candidate")
    rb = candidate.get("rb") if isinstance(candidate, dict) else None
    return rb is not None and rb >= min_rb


def _file_stem(record: dict[str, Any]) -> str:
    """Return a file name that no packet can turn into a path elsewhere."""
    name = str(next((record[key] for key in _NAMED_BY if record.get(key) is not None), "alert"))
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:100]
