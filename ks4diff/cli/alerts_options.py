"""Options that several of the ``ks4diff alerts`` commands have, and the cuts that they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ks4diff.products.errors import ConfigError

if TYPE_CHECKING:
    from ks4diff.io.kafka_settings import KafkaConfig

DEFAULT_TOPIC = "ks4.alerts.v1"  # that of io/sinks.py, repeated so that --help loads no database driver

KafkaOption = Annotated[
    str | None,
    typer.Option("--kafka", metavar="HOST:PORT[,...]", help="Kafka servers, if not the settings'."),
]
TopicOption = Annotated[
    str | None, typer.Option(help=f"Kafka topic, if not the settings' ({DEFAULT_TOPIC}).")
]
ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Settings: [kafka] has servers, TLS and SASL.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output, without the stamps.")]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that a run wrote, with outbox.db.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many alerts shown.")]
SaveOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Also save each as DIR/<alertId>.avro, its stamps as .png."),
]
MinRbOption = Annotated[float | None, typer.Option(help="Only alerts of at least this rb.")]
FilterOption = Annotated[
    str | None,
    typer.Option("--filter", metavar="EXPR", help='Only alerts of which this is true, as "scorr > 9".'),
]
ConeOption = Annotated[
    str | None,
    typer.Option("--cone", metavar="RA,DEC,RADIUS", help="Only alerts in this circle, degrees."),
]
EventOption = Annotated[
    str | None,
    typer.Option("--event", metavar="NAME", help="Only alerts that may belong to this event, as S190814bv."),
]


def source_of(
    kafka: str | None, topic: str | None, config: Path | None
) -> tuple[str | None, str, KafkaConfig]:
    """Return servers, topic and settings by options, environment and configuration, in this order.

    Raises
    ------
    ConfigError
        When one of them is malformed.

    """
    from ks4diff.io.kafka_settings import KafkaConfig, check_topic, servers_of

    settings = KafkaConfig()
    if config is not None:
        from ks4diff.pipeline.config import read_config

        settings = read_config(config).kafka
    topic = topic or settings.topic
    check_topic(topic)
    return servers_of(kafka, settings), topic, settings


def needed_source(kafka: str | None, topic: str | None, config: Path | None) -> tuple[str, str, KafkaConfig]:
    """Return what `source_of` does; ConfigError also when nothing names a server."""
    servers, topic, settings = source_of(kafka, topic, config)
    if servers is None:
        raise ConfigError("no Kafka servers: give --kafka HOST:PORT, or [kafka] servers in --config")
    return servers, topic, settings


def wanted_by(
    min_rb: float | None, expression: str | None, cone: str | None, event: str | None, **more: str | None
) -> Callable[[dict[str, Any]], bool]:
    """Return whether a record is wanted, by the options and further cuts of `AlertCuts`.

    Raises
    ------
    ConfigError
        When an expression or a cone is malformed.

    """
    from ks4diff.io.packets import field_names
    from ks4diff.products.alert_filter import parse_filter
    from ks4diff.stages.select import AlertCuts, parse_cone, wanted

    cuts = AlertCuts(
        min_rb=min_rb,
        expression=None if expression is None else parse_filter(expression, field_names()),
        cone=None if cone is None else parse_cone(cone),
        event=event,
        **more,
    )
    return lambda record: wanted(record, cuts)
