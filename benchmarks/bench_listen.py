"""How fast alerts are read back from a real Kafka: followed, filtered, and compared with the archive.

``python -m benchmarks.bench_listen [--alerts N]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ks4diff.io.listen import Choice, replay, tail
from ks4diff.io.packets import alert_record, field_names
from ks4diff.io.publish import publish
from ks4diff.io.seen import Seen
from ks4diff.io.sinks import ArchiveSink
from ks4diff.pipeline.verify import check_archive, check_kafka
from ks4diff.products.alert_filter import parse_filter
from ks4diff.stages.select import AlertCuts, parse_cone, wanted
from tests.broker.broker import Broker
from tests.sample_alert import make_alert, make_history

TOPIC = "bench.listen"
PER_EXPOSURE = 200


def timed(name: str, count: int, work: Callable[[], object]) -> None:
    """Print the alerts a second of processor time, and of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<44} {count / cpu:8.0f} a second of processor time, {count / wall:8.0f} of the clock")


def main() -> None:
    """Print a line per way to read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alerts", type=int, default=2000)
    count = parser.parse_args().alerts
    history = make_history(detections=15, limits=10, forced=15)
    records = [
        alert_record(make_alert(k, history=history, exposure=f"kmts.20240423.{k // PER_EXPOSURE:06d}"))
        for k in range(count)
    ]
    cuts = AlertCuts(
        min_rb=0.5,
        cone=parse_cone("123.4,-34.5,1"),
        expression=parse_filter("scorr > 9 and filter in ('R', 'I') and 'bleed' not in flags", field_names()),
    )
    timed("cuts (rb, cone and expression) alone", count, lambda: [wanted(one, cuts) for one in records])
    broker = Broker()
    try:
        broker.start()
        with tempfile.TemporaryDirectory() as folder:
            read_back(records, cuts, broker.servers, Path(folder))
    finally:
        broker.close()


def read_back(records: list, cuts: AlertCuts, servers: str, out: Path) -> None:
    """Archive and send the alerts, then read them in every way."""
    count = len(records)
    archive = ArchiveSink(lambda name: out / "20240423" / name / "alerts.avro", database=out / "ks4diff.db")
    for first in range(0, count, PER_EXPOSURE):
        part = records[first : first + PER_EXPOSURE]
        archive.emit(part[0]["exposure"], part)
    timed("sent by replay --to-topic", count, lambda: publish(records, servers, topic=TOPIC, deadline_s=60))
    everything = {"topic": TOPIC, "from_beginning": True, "limit": count, "timeout_s": 60.0}
    timed("tail", count, lambda: list(tail(servers, **everything)))
    seen = Seen(out / "seen.db")
    choice = Choice(wanted=lambda record: wanted(record, cuts), seen=seen)
    group = {"group": "bench", "choice": choice}
    timed("tail in a group, cuts, window on disk", count, lambda: list(tail(servers, **everything, **group)))
    seen.close()
    timed("replay", count, lambda: list(replay(servers, topic=TOPIC)))
    timed("verify: archive and index", count, lambda: check_archive(out))
    known = check_archive(out)
    timed("verify: Kafka", count, lambda: print(check_kafka(known, servers, TOPIC).missing))


if __name__ == "__main__":
    main()
