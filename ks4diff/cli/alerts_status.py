"""``ks4diff alerts status``: what waits in the outbox, and how far behind the readers of a topic are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ks4diff.cli.alerts_options import ConfigOption, JsonOption, TopicOption, source_of
from ks4diff.cli.alerts_show import print_counts
from ks4diff.products.errors import ConfigError


def status(
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder that a run wrote, with outbox.db.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="Also tell of the topic there.")
    ] = None,
    topic: TopicOption = None,
    config: ConfigOption = None,
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="This consumer group alone; else all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the alerts of OUT's outbox by state, and say why some are undelivered.

    With --kafka: how many messages a topic holds, and how many of them each consumer group has still to read.

    Example: ks4diff alerts status out
    """
    if out is None and kafka is None:
        raise ConfigError("name a run's folder, or --kafka, or both")
    found: dict[str, Any] = {}
    if out is not None:
        from ks4diff.io.outbox import read_status
        from ks4diff.io.owed import Owed

        box, owed = read_status(out / "outbox.db"), Owed(out / "ks4diff.db").records()
        found |= {**box.counts, "owed": owed, "reasons": box.reasons}
        if not as_json:
            print_counts(box.counts, as_json=False)
            if owed:
                typer.echo(f"{owed} in the archive, waiting for room in the outbox")
            for reason, count in box.reasons.items():
                typer.echo(f"{count} undelivered: {reason}")
    if kafka is not None:
        from ks4diff.io.places import topic_state

        _, topic, settings = source_of(kafka, topic, config)
        state = topic_state(kafka, topic, group=group, settings=settings)
        found |= {"topic": topic, "messages": state.messages, "lag": state.lag}
        if not as_json:
            typer.echo(f"topic {topic}: {state.messages} messages")
            for name, lag in state.lag.items():
                typer.echo(f"group {name}: {lag} still to read")
    if as_json:
        typer.echo(json.dumps(found))
