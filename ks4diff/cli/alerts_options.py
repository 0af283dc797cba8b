"""Options that several of the ``ks4diff alerts`` commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_TOPIC = "ks4.alerts.v1"  # that of io/sinks.py, repeated so that --help loads no database driver

KafkaOption = Annotated[str, typer.Option("--kafka", metavar="HOST:PORT[,...]", help="Kafka servers.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output, without the stamps.")]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that a run wrote, with outbox.db.")]
