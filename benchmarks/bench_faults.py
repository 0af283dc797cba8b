"""Put delivery through schedules of faults (tests/faults.py), and count what was lost, which must be nothing.

Each schedule stops, freezes or kills a real broker, kills the sending process at random points, gives the
outbox little room, sets the clock, and holds what Kafka has in the end against the archive. A line for each,
a summary, and exit code 1 when a law was broken.

    python -m benchmarks.bench_faults --schedules 200
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import machine
from tests.broker.broker import Broker, missing_tools
from tests.faults import Schedule, Verdict, draw, run_schedule


def main() -> None:
    """Run the schedules, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    options = parser.parse_args()
    problem = missing_tools()
    if problem:
        sys.exit(problem)
    print(machine(), flush=True)
    met: list[tuple[Schedule, Verdict]] = []
    broker = Broker()
    try:
        broker.start()
        for seed in range(options.first, options.first + options.schedules):
            schedule = draw(seed)
            with tempfile.TemporaryDirectory(prefix="ks4diff-faults-") as folder:
                verdict = run_schedule(schedule, broker, Path(folder))
            met.append((schedule, verdict))
            told = f"{verdict.consumed} of {verdict.archived} alerts, {verdict.copies} copies"
            told += ", outbox was full" if verdict.was_full else ""
            ending = "; ".join(verdict.broken) or "holds"
            print(f"{schedule}: {verdict.kills} kills, {told}, {verdict.seconds:.1f} s: {ending}", flush=True)
    finally:
        broker.close()
    summary(met)
    sys.exit(any(verdict.broken for _, verdict in met))


def summary(met: list[tuple[Schedule, Verdict]]) -> None:
    """Print the sums."""
    schedules, verdicts = zip(*met, strict=True)
    hits = [kind for schedule in schedules for _, kind, _ in schedule.broker]
    print(f"\n{len(met)} schedules, {sum(bool(v.broken) for v in verdicts)} broken")
    print(
        f"alerts archived {sum(v.archived for v in verdicts)}, consumed {sum(v.consumed for v in verdicts)}"
    )
    copies = [v.copies for v in verdicts]
    print(f"raw duplicates {sum(copies)}, in {sum(n > 0 for n in copies)} schedules")
    print("broker " + ", ".join(f"{kind} {hits.count(kind)}" for kind in ("stop", "kill", "pause")))
    print(f"our process killed {sum(v.kills for v in verdicts)} times")
    rooms = [schedule.room for schedule in schedules]
    told = ", ".join(f"{room} {rooms.count(room)}" for room in ("quota", "disk", "file"))
    print(f"outbox with little room: {told}; full {sum(v.was_full for v in verdicts)} times")
    print(f"clock set {sum(schedule.clock[1] != 0 for schedule in schedules)} times")
    print(f"{sum(v.seconds for v in verdicts):.0f} s")


if __name__ == "__main__":
    main()
