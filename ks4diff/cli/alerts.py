"""``ks4diff alerts``: read alerts from Kafka or a file, and look after the outbox."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli import alerts_listen, alerts_replay, alerts_show, alerts_status, alerts_verify
from ks4diff.cli.alerts_options import DEFAULT_TOPIC, JsonOption, KafkaOption, OutArgument
from ks4diff.cli.alerts_show import print_counts

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Read, resend and check alerts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

_DEADLINE_S = 60.0

app.command("tail")(alerts_listen.tail)
app.command("replay")(alerts_replay.replay)
app.command("show")(alerts_show.show)
app.command("verify")(alerts_verify.verify)
app.command("status")(alerts_status.status)


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
    print_counts(counts, as_json=as_json)
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
