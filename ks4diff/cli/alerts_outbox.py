"""``ks4diff alerts resend`` and ``withdraw``: a run's outbox, emptied and added to."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.alerts_options import (
    ConfigOption,
    JsonOption,
    KafkaOption,
    OutArgument,
    TopicOption,
    needed_source,
)
from ks4diff.cli.alerts_show import print_counts

log = logging.getLogger(__name__)

_DEADLINE_S = 60.0
DeadlineOption = Annotated[float, typer.Option(min=1, help="Give up after this many seconds.")]


def resend(
    out: OutArgument,
    kafka: KafkaOption = None,
    deadline: DeadlineOption = _DEADLINE_S,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="History that the run was given, if one was.")
    ] = None,
    config: ConfigOption = None,
    topic: TopicOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every alert of OUT's outbox that Kafka has not acknowledged, refused ones too.

    Before that, what waits for a history that was away, or for room in the outbox, is put into it. Exit code
    3 when some are still undelivered.

    Example: ks4diff alerts resend out --kafka localhost:9092
    """
    from ks4diff.io.outbox import read_status
    from ks4diff.io.spool import Spool

    where = _where(kafka, topic, config)
    spool = Spool(out)
    if not spool.waiting():
        read_status(out / "outbox.db")  # an absent outbox is an error, not one to make
    with closing(_open(out, where)) as sink:
        if spool.waiting():
            _put_in(out, database, config, sink)
        sink.revive()
        summary = sink.flush(deadline, patient=True)
    counts = {"acknowledged": summary.acknowledged, "waiting": summary.waiting, "dead": summary.dead}
    print_counts(counts, as_json=as_json)
    if spool.waiting():
        print(f"exposures whose alerts wait for the history: {spool.waiting()}", file=sys.stderr)
    if summary.waiting or summary.dead or spool.waiting():
        raise typer.Exit(3)


def withdraw(
    out: OutArgument,
    alert_id: Annotated[str, typer.Argument(metavar="ALERTID", help="Of the alert to take back.")],
    reason: Annotated[str, typer.Option(help="Why, for people.")],
    kafka: KafkaOption = None,
    config: ConfigOption = None,
    topic: TopicOption = None,
    deadline: DeadlineOption = _DEADLINE_S,
) -> None:
    """Take an alert back: archive a withdrawal of it in OUT, and send that to the alert's topic.

    Exit code 3 when it is still undelivered.

    Example: ks4diff alerts withdraw out 00c6...9b21 --reason "ghost of a bright star" --kafka localhost:9092
    """
    import time

    from ks4diff.io.withdrawals import archive_withdrawal
    from ks4diff.pipeline.pair import UNIX_EPOCH_MJD

    where = _where(kafka, topic, config)
    withdrawn = archive_withdrawal(
        out / "ks4diff.db", alert_id, reason, when=time.time() / 86400 + UNIX_EPOCH_MJD
    )
    with closing(_open(out, where)) as sink:
        sink.queue(withdrawn.exposure, withdrawn.records, withdrawn.path)
        summary = sink.flush(deadline, patient=True)
    print(withdrawn.alert_id)
    if summary.waiting or summary.dead:
        print(f"undelivered, in the outbox: {summary.waiting + summary.dead}", file=sys.stderr)
        raise typer.Exit(3)


def _where(kafka: str | None, topic: str | None, config: Path | None) -> dict[str, Any]:
    """Return servers, topic and settings that a sink is opened with."""
    from ks4diff.io.sinks import check_destination

    servers, topic, settings = needed_source(kafka, topic, config)
    check_destination(servers, topic, settings)
    return {"servers": servers, "topic": topic, "settings": settings}


def _open(out: Path, where: dict[str, Any]) -> Any:
    from ks4diff.io.sinks import open_kafka
    from ks4diff.pipeline.run import exposure_folder

    return open_kafka(lambda name: exposure_folder(out, name) / "alerts.avro", out, **where)


def _put_in(out: Path, database: str | None, config: Path | None, sink: Any) -> None:
    """Put what waits into the history, its alerts into the archive and ``sink``."""
    from ks4diff.io.history import History
    from ks4diff.io.sinks import TeeSink
    from ks4diff.pipeline.config import read_config
    from ks4diff.pipeline.ledger import Ledger, begin
    from ks4diff.pipeline.run import exposure_folder

    ledger = Ledger(
        history=History(database, out),
        out=out,
        config=read_config(config),
        sink=TeeSink(sink.archive, sink),
        report_of=lambda one: exposure_folder(out, one.exposure) / "report.json",
    )
    begin(ledger)
