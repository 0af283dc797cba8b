"""Measure delivery to a real broker: alerts a second, 10,000 end to end, and from packed to acknowledged.

Real-size alerts with 40 history rows, each of another object. CPU seconds are this process's, its sending
thread's with them; the broker's stand apart.

    python -m benchmarks.bench_delivery
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.bench_packets import N_MADE, alerts_of
from benchmarks.timing import machine
from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.kafka_sink import KafkaSink, message_of
from ks4diff.io.listen import tail
from ks4diff.io.outbox import Message, Outbox, State
from ks4diff.io.packets import alert_record
from ks4diff.io.sender import Sender
from ks4diff.io.sinks import ArchiveSink, TeeSink
from ks4diff.io.stream import AlertProducer
from ks4diff.products.alert import Alert
from tests.broker.broker import Broker, missing_tools
from tests.sample_alert import make_cutouts

LIMIT_RATE = 1000.0
BATCH, EXPOSURE = 200, 100
DEADLINE_S = 600.0


class Clock:
    """Wall seconds, this process's CPU seconds and the broker's, of one part after the other."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.cpu = 0.0

    @contextmanager
    def timed(self, what: str, count: int) -> Iterator[None]:
        """Time the body, and print how many of ``count`` it does a second."""
        before = self._now()
        yield
        wall, self.cpu, theirs = np.subtract(self._now(), before)
        print(
            f"  {what:<44} {wall:7.2f} s {count / wall:7.0f}/s   CPU {self.cpu:6.2f} s"
            f" {count / self.cpu:7.0f}/s   broker's CPU {theirs:6.2f} s",
            flush=True,
        )

    def _now(self) -> tuple[float, float, float]:
        fields = Path(f"/proc/{self._broker.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return time.perf_counter(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK")


def many(count: int) -> list[Alert]:
    """Return as many different alerts, of few different stamps."""
    made = alerts_of([make_cutouts(seed=k) for k in range(N_MADE)])
    names = ({"alert_id": f"{k:032x}", "candid": k, "object_id": f"KS4-26{k:07d}"} for k in range(count))
    return [replace(made[k % N_MADE], **name) for k, name in enumerate(names)]


def produce(messages: Sequence[Message], broker: Broker, clock: Clock) -> float:
    """Time ready packets through the producer alone; return how many a second of CPU."""
    producer = AlertProducer(broker.servers)
    producer.deliver(messages[:1], timeout_s=30.0)  # connected, and the topic made
    done = 0
    with clock.timed("ready packets, producer alone", len(messages) - 1):
        for first in range(1, len(messages), BATCH):
            outcomes = producer.deliver(messages[first : first + BATCH], timeout_s=60.0)
            done += sum(outcome.state is State.ACKNOWLEDGED for outcome in outcomes)
    producer.close()
    assert done == len(messages) - 1
    return done / clock.cpu


def through_outbox(messages: Sequence[Message], broker: Broker, clock: Clock, folder: Path) -> float:
    """Time ready packets into an outbox and out of it; return how many a second of CPU."""
    outbox = Outbox(folder / "outbox.db")
    with clock.timed("ready packets into the outbox", len(messages)):
        for first in range(0, len(messages), 50):
            outbox.add(messages[first : first + 50])
    sender = Sender(outbox, AlertProducer(broker.servers))
    with clock.timed("ready packets, outbox to acknowledged", len(messages)):
        assert sender.flush(DEADLINE_S).waiting == 0
    sender.close()
    return len(messages) / clock.cpu


def end_to_end(alerts: Sequence[Alert], broker: Broker, clock: Clock, folder: Path) -> None:
    """Time alerts from stamps in memory to records read back; print latencies too."""
    settings = KafkaConfig(topic="bench.whole")
    archive = ArchiveSink(lambda name: folder / name / "alerts.avro", database=folder / "ks4diff.db")
    outbox = Outbox(folder / "whole.db")
    sink = TeeSink(
        archive, KafkaSink(outbox, AlertProducer(broker.servers), settings=settings, archive=archive)
    )
    whole = Clock(broker)
    with whole.timed("end to end: packed, archived, outbox, Kafka", len(alerts)):
        for first in range(0, len(alerts), EXPOSURE):
            records = [alert_record(alert) for alert in alerts[first : first + EXPOSURE]]
            sink.emit(f"e{first}", records)
            sink.flush(DEADLINE_S)
    with closing(sqlite3.connect(folder / "whole.db")) as db:
        rows = db.execute("SELECT changed - created FROM outbox WHERE state = 'acknowledged'").fetchall()
    sink.close()
    assert len(rows) == len(alerts)
    took = 1000 * np.array(rows)
    print(
        f"  packed -> acknowledged, {EXPOSURE} alerts an exposure: median {np.median(took):.0f} ms,"
        f" 99 % {np.percentile(took, 99):.0f} ms, longest {took.max():.0f} ms"
    )
    with clock.timed("read back and decoded by `tail`", len(alerts)):
        options = {"from_beginning": True, "limit": len(alerts), "timeout_s": 60.0}
        got = {
            received.record["alertId"] for received in tail(broker.servers, topic="bench.whole", **options)
        }
    assert got == {alert.alert_id for alert in alerts}


def main() -> None:
    """Print rates and latencies; exit code 1 when ready packets are produced too slowly."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alerts", type=int, default=10_000)
    count = parser.parse_args().alerts
    problem = missing_tools()
    if problem:
        sys.exit(problem)
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
    alerts = many(count)
    messages = [message_of("e", alert_record(alert), KafkaConfig(topic="bench.ready")) for alert in alerts]
    print(f"{count} alerts of {np.median([len(message.payload) for message in messages]):.0f} bytes")
    broker = Broker()
    try:
        broker.start()
        clock = Clock(broker)
        with tempfile.TemporaryDirectory(prefix="ks4diff-bench-") as folder:
            rate = produce(messages, broker, clock)
            again = [replace(message, topic="bench.outbox") for message in messages]
            through_outbox(again, broker, clock, Path(folder))
            del messages, again
            end_to_end(alerts, broker, clock, Path(folder))
    finally:
        broker.close()
    print(f"ready packets: {rate:.0f} a second of one core (limit {LIMIT_RATE:.0f})")
    sys.exit(int(rate < LIMIT_RATE))


if __name__ == "__main__":
    main()
