"""``ks4diff alerts tail``: alerts as they come from Kafka."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ks4diff.cli.alerts_options import (
    ConeOption,
    ConfigOption,
    EventOption,
    FilterOption,
    JsonOption,
    KafkaOption,
    LimitOption,
    MinRbOption,
    SaveOption,
    TopicOption,
    needed_source,
    wanted_by,
)
from ks4diff.cli.alerts_show import print_alert, save_alert

log = logging.getLogger(__name__)


def tail(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    kafka: KafkaOption = None,
    topic: TopicOption = None,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning/--latest", help="From the oldest alert kept, or the next to come."),
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Go on where this group was, and share the topic within it."),
    ] = None,
    seen: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Drop copies of alerts shown before a restart too: kept here."),
    ] = None,
    limit: LimitOption = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Stop when nothing has come for this many seconds.")
    ] = None,
    min_rb: MinRbOption = None,
    expression: FilterOption = None,
    cone: ConeOption = None,
    event: EventOption = None,
    as_json: JsonOption = False,
    save: SaveOption = None,
    config: ConfigOption = None,
) -> None:
    """Print alerts as they come from Kafka, each once, one line each.

    With --group, an alert's place is committed once it is printed and saved. How many are still to come is
    told on stderr.

    Example: ks4diff alerts tail --kafka localhost:9092 --group mine --filter "rb > 0.9 and scorr > 9"
    """
    from ks4diff.io import listen
    from ks4diff.io.seen import Seen

    servers, topic, settings = needed_source(kafka, topic, config)
    logging.getLogger(listen.__name__).setLevel(logging.INFO)
    choice = listen.Choice(
        wanted=wanted_by(min_rb, expression, cone, event), seen=None if seen is None else Seen(seen)
    )
    received = listen.tail(
        servers,
        topic=topic,
        from_beginning=from_beginning,
        group=group,
        limit=limit,
        timeout_s=timeout,
        choice=choice,
        settings=settings,
    )
    shown = 0
    try:
        for alert in received:
            if save is not None:
                save_alert(alert.record, alert.payload, save)
            place = {"topic": alert.topic, "partition": alert.partition, "offset": alert.offset}
            print_alert(alert.record, as_json=as_json, kafka=place)
            shown += 1
    except KeyboardInterrupt:
        pass  # how a tail without bounds is ended
    finally:
        received.close()
    log.info("%d alerts shown", shown)
