"""How right and how fast association is: seasons whose truth is known, on SQLite and on PostgreSQL.

``python -m benchmarks.bench_history [--seasons N] [--sources N]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ks4diff.io.history import History
from ks4diff.pipeline.associate import associate_exposure
from ks4diff.pipeline.config import PipelineConfig
from tests.postgres.server import Server, missing_tools
from tests.seasons import Season, season

PLACES = ((359.95, -30.0), (150.0, -45.0), (77.0, -89.95), (0.0, 0.0), (210.0, 60.0))


def associated(drawn: Season, history: History, out: Path) -> list[float]:
    """Associate a season; return the seconds of each exposure."""
    seconds = []
    for one in drawn.exposures:
        start = time.perf_counter()
        associate_exposure(history, one, out, PipelineConfig())
        seconds.append(time.perf_counter() - start)
    return seconds


def judged(drawn: Season, history: History) -> dict[str, float]:
    """Count repeats on the right object, and lone sources that were split or merged."""
    with history.reading() as reader:
        names = {row["candid"]: row["object_id"] for row in reader.detections()}
    of_source, of_object = defaultdict(Counter), defaultdict(set)
    for one, truth in zip(drawn.exposures, drawn.truth, strict=True):
        for number, source in zip(one.table["candid"].tolist(), truth.tolist(), strict=True):
            if source >= 0:
                of_source[source][names[number]] += 1
                of_object[names[number]].add(source)
    merged = {name for name, sources in of_object.items() if len(sources) > 1}
    lone = [source for source in of_source if drawn.nearest[source] > 2]
    repeats = sum(found.total() - 1 for found in of_source.values())
    right = sum(found.most_common(1)[0][1] - 1 for found in of_source.values())
    return {
        "repeats": repeats,
        "right": right,
        "lone": len(lone),
        "split": sum(len(of_source[source]) > 1 for source in lone),
        "merged": sum(bool(merged & set(of_source[source])) for source in lone),
    }


def main() -> None:
    """Print a line per season, the sum, and the seconds of an exposure on each database."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seasons", type=int, default=5)
    parser.add_argument("--sources", type=int, default=1000)
    options = parser.parse_args()
    total: Counter = Counter()
    for k in range(options.seasons):
        ra, dec = PLACES[k % len(PLACES)]
        drawn = season(100 + k, n_sources=options.sources, ra=ra, dec=dec)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            history = History(None, out)
            seconds = associated(drawn, history, out)
            found = judged(drawn, history)
            size = (out / "ks4diff.db").stat().st_size
        total.update(found)
        rows = sum(len(one.table) for one in drawn.exposures)
        speed = f"{rows / sum(seconds):.0f} alerts/s, {size / rows:.0f} B a row"
        print(f"seed {100 + k} at {ra:g} {dec:+g}: {found}; {speed}")
    print(f"all: {total['right'] / total['repeats']:.5f} of {total['repeats']} repeats; {dict(total)}")
    if missing_tools():
        print(f"PostgreSQL: {missing_tools()}")
        return
    server = Server()
    try:
        server.start()
        drawn = season(1, n_sources=400, side_deg=0.4, nights=10)
        for url in (None, server.create("bench")):
            with tempfile.TemporaryDirectory() as folder:
                seconds = associated(drawn, History(url, Path(folder)), Path(folder))
            first, last = np.median(seconds[:10]), np.median(seconds[-10:])
            kind = "SQLite" if url is None else "PostgreSQL"
            alerts = len(drawn.exposures[5].table)
            print(f"{kind}: {first:.2f} s for an exposure of {alerts} alerts, {last:.2f} after 40")
    finally:
        server.close()


if __name__ == "__main__":
    main()
