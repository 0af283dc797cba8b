"""``ks4diff alerts tail``: alerts as they come."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.alerts_options import DEFAULT_TOPIC, JsonOption, KafkaOption
from ks4diff.cli.alerts_show import file_stem, print_alert

log = logging.getLogger(__name__)


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
                atomic_write_bytes(save / f"{file_stem(alert.record)}.avro", alert.payload)
            place = {"topic": alert.topic, "partition": alert.partition, "offset": alert.offset}
            print_alert(alert.record, as_json=as_json, kafka=place)
            shown += 1
            if shown == limit:
                break
    except KeyboardInterrupt:
        pass  # how a tail without bounds is ended
    finally:
        received.close()
    log.info("%d alerts shown", shown)


def _good_enough(record: dict[str, Any], min_rb: float | None) -> bool:
    if min_rb is None:
        return True
    candidate = record.get("candidate")
    rb = candidate.get("rb") if isinstance(candidate, dict) else None
    return rb is not None and rb >= min_rb
