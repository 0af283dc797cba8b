"""Measure alert packets: bytes of a real-size alert with 40 history rows, and how many are packed a second.

Stamps are made-up noise with one source, and 703 real triplets of ZTF (../shared/realdata/derived, or
$KS4DIFF_SHARED/realdata) with the noise that each stamp shows; the rest is the sample alert's.

    python -m benchmarks.bench_packets
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace

import fastavro
import numpy as np

from benchmarks.acceptance_rows import shared_realdata
from benchmarks.timing import machine
from ks4diff.io.packets import alert_record, container_bytes, datum_bytes, message_bytes
from ks4diff.io.stamps import encode_stamp
from ks4diff.products.alert import Alert, Cutouts
from tests.sample_alert import make_alert, make_cutouts, make_history

LIMIT_CONTAINER, LIMIT_FRAMED, LIMIT_RATE = 50_000, 35_000, 300.0
HISTORY = {"detections": 15, "limits": 10, "forced": 15}  # 40 rows
N_MADE = 200
ROUNDS = 5


def real_cutouts() -> list[Cutouts]:
    """Return ZTF's stamps, each with its own noise, on the sky of the sample alert."""
    path = shared_realdata() / "derived" / "ztf_stamps_open.npz"
    with np.load(path, allow_pickle=False) as file:
        stamps = np.asarray(file["stamps"], dtype=np.float32)
    sample = make_cutouts()
    return [
        replace(
            sample,
            science=triplet[0],
            template=triplet[1],
            difference=triplet[2],
            noise=tuple(_noise(stamp) for stamp in triplet),
        )
        for triplet in stamps
    ]


def _noise(stamp: np.ndarray) -> float:
    """Return the spread of differences between neighbours, which stars hardly touch, as that of one pixel."""
    steps = np.diff(stamp, axis=1)
    steps = steps[np.isfinite(steps)]
    return float(1.4826 * np.median(np.abs(steps)) / np.sqrt(2)) if len(steps) else 1.0


def alerts_of(cutouts: Sequence[Cutouts]) -> list[Alert]:
    """Return one alert with 40 history rows for each triplet of stamps."""
    return [
        replace(make_alert(k), cutouts=stamps, history=make_history(k, **HISTORY))
        for k, stamps in enumerate(cutouts)
    ]


def rate(alerts: Sequence[Alert], wire: str) -> float:
    """Return alerts packed per second of one core, stamps included: the best of five rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        for alert in alerts:
            message_bytes(alert_record(alert), wire=wire)
        best = min(best, time.process_time() - start)
    return len(alerts) / best


def parts(alerts: Sequence[Alert]) -> list[tuple[str, float]]:
    """Return the milliseconds that each part of packing one alert takes, on average."""

    def took(work, things) -> float:
        start = time.process_time()
        for thing in things:
            work(thing)
        return 1000 * (time.process_time() - start) / len(things)

    records = [alert_record(alert) for alert in alerts]
    packed = [container_bytes([record]) for record in records]
    return [
        ("record, stamps included", took(alert_record, alerts)),
        ("of it three stamps", took(_three_stamps, alerts)),
        ("bare Avro", took(datum_bytes, records)),
        ("container", took(lambda record: container_bytes([record]), records)),
        (
            "read again, stamps not decoded",
            took(lambda data: list(fastavro.reader(io.BytesIO(data))), packed),
        ),
    ]


def _three_stamps(alert: Alert) -> None:
    stamps = (alert.cutouts.science, alert.cutouts.template, alert.cutouts.difference)
    for stamp, noise in zip(stamps, alert.cutouts.noise or (None,) * 3, strict=True):
        encode_stamp(stamp, noise=noise)


def report(name: str, alerts: Sequence[Alert]) -> bool:
    """Print one table; return whether every limit is kept."""
    records = [alert_record(alert) for alert in alerts]
    plain = [alert_record(replace(a, cutouts=replace(a.cutouts, noise=None))) for a in alerts[:50]]
    container = np.array([len(message_bytes(record)) for record in records])
    framed = np.array([len(message_bytes(record, wire="confluent")) for record in records])
    stamps = np.array([sum(len(r[c]["stampData"]) for c in r if c.startswith("cutout")) for r in records])
    rates = {wire: rate(alerts, wire) for wire in ("container", "confluent")}
    print(f"\n{name}: {len(alerts)} alerts, {sum(HISTORY.values())} history rows each")
    for what, size, limit in (("container", container, LIMIT_CONTAINER), ("Confluent", framed, LIMIT_FRAMED)):
        print(
            f"  {what:<10} median {np.median(size):7.0f}  99 % {np.percentile(size, 99):7.0f}"
            f"  largest {size.max():7d} bytes  (limit {limit})"
        )
    print(
        f"  {'stamps':<10} median {np.median(stamps):7.0f}; without rounding the container would be"
        f" {np.median([len(message_bytes(record)) for record in plain]):.0f} (first {len(plain)})"
    )
    for wire, value in rates.items():
        print(f"  packed as {wire:<10} {value:6.0f} alerts/s of one core  (limit {LIMIT_RATE:.0f})")
    for what, milliseconds in parts(alerts):
        print(f"    {what:<32} {milliseconds:6.3f} ms")
    return (
        container.max() <= LIMIT_CONTAINER
        and framed.max() <= LIMIT_FRAMED
        and min(rates.values()) >= LIMIT_RATE
    )


def main() -> None:
    """Print sizes and rates; exit code 1 when a limit is missed."""
    print(machine())
    kept = report("noise and one source", alerts_of([make_cutouts(seed=k) for k in range(N_MADE)]))
    kept = report("real stamps of ZTF", alerts_of(real_cutouts())) and kept
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
