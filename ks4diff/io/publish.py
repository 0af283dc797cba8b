"""Alerts sent once more, to a topic of one's choice, with the outbox's order and certainty."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.outbox import Outbox
from ks4diff.io.sinks import DeliverySummary, KafkaSink
from ks4diff.io.stream import AlertProducer

_BATCH = 100  # alerts: 4 MB


def publish(
    records: Iterable[dict[str, Any]],
    servers: str,
    *,
    topic: str,
    deadline_s: float,
    settings: KafkaConfig | None = None,
) -> DeliverySummary:
    """Send alerts to a topic (those of injected sources to its ``.test``); return how many arrived.

    They go by an outbox that is dropped at the end: what it then still holds is counted, and was not sent.
    Sending ends with the first alerts that are not acknowledged ``deadline_s`` after their batch began.

    Raises
    ------
    ConfigError
        When servers, settings or topic are malformed.

    """
    acknowledged, rest = 0, iter(records)
    with tempfile.TemporaryDirectory(prefix="ks4diff-") as folder:
        outbox, producer = Outbox(Path(folder) / "outbox.db"), AlertProducer(servers, settings)
        sink = KafkaSink(outbox, producer, topic=topic, settings=settings)
        try:
            while batch := list(islice(rest, _BATCH)):
                for exposure, group in groupby(batch, itemgetter("exposure")):
                    sink.emit(exposure, list(group))
                summary = sink.flush(deadline_s, patient=True)
                acknowledged += summary.acknowledged
                if summary.waiting:
                    break
            else:
                summary = sink.flush(0.0)
        finally:
            sink.close()
    return replace(summary, acknowledged=acknowledged)
