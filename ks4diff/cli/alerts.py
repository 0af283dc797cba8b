"""``ks4diff alerts``: read alerts from Kafka or a file, and look after the outbox."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.output import alert_line, json_record

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Read, resend and check alerts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

DEFAULT_TOPIC = "ks4.alerts.v1"  # that of io/sinks.py, repeated so that --help loads no database driver
_DEADLINE_S = 60.0

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
    as_json: JsonOption = False,
) -> None:
    """Send every alert of OUT's outbox that Kafka has not acknowledged, refused ones too.

    Exit code 3 when some are still undelivered.

    Example: ks4diff alerts resend out --kafka localhost:9092
    """
    from ks4diff.io.outbox import Outbox, read_status
    from ks4diff.io.sinks import send_outbox
    from ks4diff.io.stream import AlertProducer

    producer = AlertProducer(kafka)
    path = out / "outbox.db"
    read_status(path)  # an absent outbox is an error, not one to make
    outbox = Outbox(path)
    try:
        if not outbox.is_sender:
            log.warning("%s: another process is sending from this outbox", path)
        outbox.revive()
        summary = send_outbox(outbox, producer, deadline_s=deadline)
    finally:
        producer.close()
        outbox.close()
    counts = {"acknowledged": summary.acknowledged, "waiting": summary.waiting, "dead": summary.dead}
    _counts(counts, as_json=as_json)
    if summary.waiting or summary.dead:
        raise typer.Exit(3)


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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Avro container file, of any survey.")],
    as_json: JsonOption = False,
) -> None:
    """Print the alerts of an Avro file.

    Example: ks4diff alerts show out/alerts.avro
    """
    from ks4diff.io.packets import read_container

    container = read_container(file)
    log.info(
        "%s: %d records of schema %s", file, len(container.records), container.schema_name or "(unnamed)"
    )
    if not as_json:
        typer.echo(f"schema {container.schema_name or '-'}, {len(container.records)} alerts")
    for record in container.records:
        _show(record, as_json=as_json)


@app.command()
def schema() -> None:
    """Print the newest alert schema, nested records expanded, as JSON.

    Example: ks4diff alerts schema > ks4.avsc
    """
    from ks4diff.io.packets import schema_json

    typer.echo(schema_json())


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
    name = str(record.get("alertId") or record.get("candid") or "alert")
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:100]
