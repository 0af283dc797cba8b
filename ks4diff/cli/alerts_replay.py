"""``ks4diff alerts replay``: alerts of the past once more, from the archive or from Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    source_of,
    wanted_by,
)
from ks4diff.cli.alerts_show import print_alert, print_counts, save_alert
from ks4diff.products.errors import ConfigError

if TYPE_CHECKING:
    from ks4diff.io.kafka_settings import KafkaConfig

_UNIX_MJD = 40587.0  # 1970-01-01
Record = dict[str, Any]
_Span = tuple[float | None, float | None]  # seconds since 1970


def replay(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder that a run wrote; without it: from Kafka.")
    ] = None,
    kafka: KafkaOption = None,
    topic: TopicOption = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="UTC", help="As 2025-02-07T03:30; of mid-exposures (*).")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="UTC", help="Not included.")] = None,
    night: Annotated[str | None, typer.Option(metavar="YYYYMMDD", help="Only this night.")] = None,
    exposure: Annotated[str | None, typer.Option(metavar="NAME", help="Only this exposure.")] = None,
    object_id: Annotated[
        str | None, typer.Option("--object", metavar="NAME", help="Only this object.")
    ] = None,
    min_rb: MinRbOption = None,
    expression: FilterOption = None,
    cone: ConeOption = None,
    event: EventOption = None,
    limit: LimitOption = None,
    rate: Annotated[float | None, typer.Option(min=1e-3, help="At most this many alerts a second.")] = None,
    to_topic: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Send them there in place of printing them.")
    ] = None,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds until sending gives up.")] = 60.0,
    as_json: JsonOption = False,
    save: SaveOption = None,
    config: ConfigOption = None,
) -> None:
    """Print archived alerts in order of time, or those that Kafka holds, once more; or send them to a topic.

    No consumer's place is changed. (*) From Kafka, --from and --to are the times at which it took the alerts.
    Exit code 3 when alerts did not reach --to-topic.

    Example: ks4diff alerts replay out --night 20250207 --filter "rb > 0.9" --to-topic ks4.replay
    --kafka localhost:9092
    """
    from ks4diff.io.kafka_settings import check_topic

    servers, topic, settings = source_of(kafka, topic, config)
    if servers is None and (out is None or to_topic is not None):
        raise ConfigError("name a run's folder to read, or --kafka; --to-topic needs --kafka")
    if out is None and to_topic == topic:
        raise ConfigError(f"--to-topic {topic}: is the topic itself")
    more = {"night": night, "exposure": exposure, "object_id": object_id}
    wanted = wanted_by(min_rb, expression, cone, event, **more)
    span = (_utc(since, "--from"), _utc(until, "--to"))
    found = (
        _of_archive(out, object_id, span) if out is not None else _of_kafka(servers, topic, span, settings)
    )
    records = _paced(islice(filter(wanted, found), limit), rate)
    if to_topic is not None:
        from ks4diff.io.publish import publish

        check_topic(to_topic)
        summary = publish(records, servers, topic=to_topic, deadline_s=deadline, settings=settings)
        counts = {"acknowledged": summary.acknowledged, "waiting": summary.waiting, "dead": summary.dead}
        print_counts(counts, as_json=as_json)
        if summary.waiting or summary.dead:
            raise typer.Exit(3)
        return
    for record in records:
        if save is not None:
            from ks4diff.io.packets import container_bytes

            save_alert(record, container_bytes([record]), save)
        print_alert(record, as_json=as_json)


def _of_archive(out: Path, object_id: str | None, span: _Span) -> Iterator[Record]:
    from ks4diff.io.archive import archived

    since, until = (None if time is None else time / 86400 + _UNIX_MJD for time in span)
    return archived(out, object_id=object_id, since=since, until=until)


def _of_kafka(servers: str, topic: str, span: _Span, settings: KafkaConfig) -> Iterator[Record]:
    from ks4diff.io import listen

    since, until = span
    return (
        alert.record
        for alert in listen.replay(servers, topic=topic, since=since, until=until, settings=settings)
    )


def _paced(records: Iterator[Record], rate: float | None) -> Iterator[Record]:
    start = time.monotonic()
    for number, record in enumerate(records):
        if rate is not None:
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
        yield record


def _utc(text: str | None, option: str) -> float | None:
    """Return seconds since 1970."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected UTC as 2025-02-07T03:30") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
