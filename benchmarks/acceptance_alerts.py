"""Alerts through a real Kafka broker: the same bytes out as in, and none lost when it is away."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.acceptance_rows import ROOT, Row
from ks4diff.io.listen import tail
from ks4diff.io.packets import datum_bytes, read_container
from tests.broker.broker import Broker, missing_tools

TOPIC = "ks4.alerts.acceptance"


def kafka_round_trip(_realdata: Path) -> list[Row]:
    """Send alerts to a real broker and read them back; resend what a broker that was away missed."""
    problem = missing_tools()
    if problem:
        return [Row("Kafka", "a real broker", problem, False)]
    broker = Broker()
    try:
        broker.start()
        with tempfile.TemporaryDirectory() as folder:
            return [
                *_read_back(Path(folder) / "a", broker.servers),
                *_resend(Path(folder) / "b", broker.servers),
            ]
    finally:
        broker.close()


def _read_back(out: Path, servers: str) -> list[Row]:
    code = ks4diff("demo", "--out", str(out), "--kafka", servers).returncode
    archived = read_container(out / "alerts.avro").records
    received = [
        alert.record for alert in tail(servers, topic="ks4.alerts.v1", from_beginning=True, timeout_s=10)
    ]
    same = sorted(map(datum_bytes, archived)) == sorted(map(datum_bytes, received))
    bytes_are = "equal" if same else "DIFFERENT"
    measured = f"{len(received)} of {len(archived)} read back, datum bytes {bytes_are}, exit {code}"
    return [
        Row(
            "demo alerts through Kafka",
            "each equals the archive's record",
            measured,
            same and archived != [] and code == 0,
        )
    ]


def _resend(out: Path, servers: str) -> list[Row]:
    sample = ROOT / "templates" / "sample"
    pair = [str(sample / "AKB13475I0096.fits"), str(sample / "AKB13475I0028.fits")]
    # a lower score limit gives more alerts, a topic of its own none but these
    command = ["subtract", *pair, "--out", str(out), "--min-rb", "0.2", "--topic", TOPIC]
    away = ks4diff(*command, "--kafka", f"127.0.0.1:{free_port()}")
    resent = ks4diff("alerts", "resend", str(out), "--kafka", servers)
    archived = {record["alertId"] for record in read_container(out / "alerts.avro").records}
    sent = tail(servers, topic=TOPIC, from_beginning=True, timeout_s=10)
    received = {alert.record["alertId"] for alert in sent}
    complete = (out / "report.json").exists()
    return [
        Row(
            "broker absent",
            "run finishes, exit code 3",
            f"exit {away.returncode}, report {'written' if complete else 'MISSING'}",
            away.returncode == 3 and complete,
        ),
        Row(
            "alerts resend",
            "delivers them later",
            f"{len(received & archived)} of {len(archived)} alerts, exit {resent.returncode}",
            received == archived != set() and resent.returncode == 0,
        ),
    ]


def ks4diff(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "ks4diff", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def free_port() -> int:
    """Return a loopback port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
