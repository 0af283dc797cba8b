"""Schedules of faults between the archive and Kafka, drawn from a seed, and the laws that hold under all.

A child process does what `ks4diff run` does with exposures once they are searched (queue, history, archive,
outbox, broker, report), while its broker is stopped, killed or frozen, it is killed itself, its outbox has
little room, and its clock jumps. ``tests/io/test_faults.py`` runs 20 schedules,
``benchmarks/bench_faults.py`` 200.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import tempfile
import time
import traceback
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from ks4diff.io.history import History
from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.kafka_sink import KafkaSink
from ks4diff.io.outbox import Outbox, read_status
from ks4diff.io.owed import Owed
from ks4diff.io.packets import read_container, without_times
from ks4diff.io.sinks import ArchiveSink, TeeSink
from ks4diff.io.stream import AlertProducer
from ks4diff.pipeline.ledger import Ledger, begin, close_exposure
from ks4diff.products.sightings import ExposureSightings
from tests.sample_alert import make_cutouts
from tests.seasons import CONFIG, MJD, at, run_report, sightings

EXPOSURES, OBJECTS = 8, 6
FILE_LIMIT = 400_000  # bytes; ks4diff.db has 200 kB
STEPS = 2 * EXPOSURES  # before each exposure is written down, and before each flush
DAY = 86400.0


@dataclass(frozen=True)
class Schedule:
    """What happens, and when: steps are those of the first child that reaches them."""

    seed: int
    broker: tuple[tuple[int, str, float], ...]  # step, "stop", "kill" or "pause", seconds until it is back
    kills: tuple[tuple[int, float], ...]  # step, seconds after it: SIGKILL of the child
    room: str  # "", "quota", "disk" (a small file system) or "file" (RLIMIT_FSIZE)
    clock: tuple[int, float]  # step and seconds by which the wall clock jumps
    delivery_timeout_s: float
    wire: str

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"seed {self.seed}: broker {self.broker}, kills {self.kills}, room {self.room or 'enough'}, "
            f"clock {self.clock[1] / DAY:+.3f} d at {self.clock[0]}, {self.wire}"
        )


def draw(seed: int, *, restarts: float = 0.4) -> Schedule:
    """Return the schedule of a seed; ``restarts`` of all have a broker that ends."""
    rng = np.random.default_rng((7, seed))
    rooms = ["", "", "quota", "file"] + (["disk"] if can_mount() else [])
    room = str(rng.choice(rooms))
    broker = []
    if rng.random() < restarts:
        broker.append((int(rng.integers(0, STEPS)), str(rng.choice(["stop", "kill"])), 0.2 + rng.random()))
    elif room or rng.random() < 0.7:
        for _ in range(rng.integers(1, 3)):
            broker.append((int(rng.integers(0, STEPS)), "pause", float(rng.uniform(0.3, 4.0))))
    if room:  # an outbox that is emptied never fills
        broker[0] = (int(rng.integers(0, 4)), broker[0][1], 2.0 + broker[0][2])
    kills = [
        (int(rng.integers(0, STEPS)), float(rng.exponential(0.08)))
        for _ in range(rng.choice([0, 1, 1, 2, 3]))
    ]
    offset = float(rng.choice([0.0, 0.0, -400 * DAY, -7200.0, 7200.0, 400 * DAY]))
    return Schedule(
        seed=seed,
        broker=tuple(sorted(broker)),
        kills=tuple(sorted(kills)),
        room=room,
        clock=(int(rng.integers(0, STEPS)), offset),
        delivery_timeout_s=float(rng.choice([1.5, 3.0, 10.0])),
        wire=str(rng.choice(["container", "confluent"])),
    )


@dataclass
class Verdict:
    """What came of a schedule; ``broken`` names each law that did not hold."""

    archived: int = 0
    consumed: int = 0  # alert ids
    copies: int = 0  # raw duplicates, dropped by their id
    kills: int = 0  # that met a living child
    was_full: bool = False
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def exposures_of(seed: int, *, first: int = 0) -> list[ExposureSightings]:
    """Return a schedule's exposures, numbered from ``first``: some of six objects each, some injected."""
    rng = np.random.default_rng((8, seed))
    made = []
    for k in range(EXPOSURES):
        seen = np.flatnonzero(rng.random(OBJECTS) < 0.7)
        one = sightings(first + k, MJD + 0.02 * k, *(at(40.0 * seen) if len(seen) else ([], [])))
        now = time.time() / DAY + 40587.0  # as in a rerun: the same alert, packed at another time
        alerts = tuple(
            replace(
                alert,
                cutouts=make_cutouts(seed=int(alert.candid % 1000)),
                provenance=replace(alert.provenance, t_packed=now),
                candidate=replace(alert.candidate, injected=bool(number == 0 and k % 3 == 0)),
            )
            for number, alert in enumerate(one.alerts)
        )
        made.append(replace(one, alerts=alerts))
    return made


@dataclass(frozen=True)
class Place:
    """Where the children of one schedule work."""

    out: Path
    box: Path  # the outbox's folder
    servers: str
    topic: str

    @property
    def trouble(self) -> Path:
        """The file of a child's traceback."""
        return self.out / "traceback.txt"


def open_parts(place: Place, schedule: Schedule, *, drain: bool = False) -> tuple[Ledger, TeeSink]:
    """Return ledger and sink as `ks4diff run` has them, with shorter waits but for the last child."""
    out, topic = place.out, place.topic
    settings = KafkaConfig(topic=topic, exposure_topic=f"{topic}.done", wire=schedule.wire)
    archive = ArchiveSink(lambda name: out / "n" / name / "alerts.avro", database=out / "ks4diff.db")
    waits = {"bootstrap_timeout_s": 0.8, "delivery_timeout_s": schedule.delivery_timeout_s}
    producer = AlertProducer(place.servers, settings, **({} if drain else waits))
    outbox = Outbox(place.box / "outbox.db", quota=150_000 if schedule.room == "quota" else None)
    kafka = KafkaSink(outbox, producer, settings=settings, archive=archive)
    sink = TeeSink(archive, kafka)
    ledger = Ledger(
        history=History(None, out),
        out=out,
        config=CONFIG,
        sink=sink,
        report_of=lambda one: out / "n" / one.exposure / "report.json",
    )
    return ledger, sink


def work(place: Place, schedule: Schedule, steps: Any, drain: bool) -> None:
    """Write down the exposures that have no report, as a run does; with ``drain`` send until all is sent.

    ``steps`` is a pipe that is told of each step.
    """
    try:
        if schedule.room == "file":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))
        ledger, sink = open_parts(place, schedule, drain=drain)
        begin(ledger)
        sink.flush(0.3)
        for k, one in enumerate(exposures_of(schedule.seed)):
            if not ledger.report_of(one).exists():
                _tell(steps, 2 * k, schedule)
                close_exposure(run_report(one), one, ledger)
                _tell(steps, 2 * k + 1, schedule)
                sink.flush(0.3)
        end = time.monotonic() + 100
        while drain and sink.flush(10.0).waiting and time.monotonic() < end:
            time.sleep(0.3)
        sink.close()
    except Exception:  # noqa: BLE001 - whatever it is, the parent tells it
        place.trouble.write_text(traceback.format_exc())
        os._exit(1)


def _tell(steps: Any, step: int, schedule: Schedule) -> None:
    if step >= schedule.clock[0]:
        _jump(schedule.clock[1])
    steps.send(step)


_true = time.time, time.time_ns


def _jump(seconds: float) -> None:
    time.time = lambda: _true[0]() + seconds
    time.time_ns = lambda: _true[1]() + int(1e9 * seconds)


# Children are forked from a process that has imported all this and has no threads: ready in 10 ms, not 2 s.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults"])


def run_schedule(schedule: Schedule, broker: Any, folder: Path) -> Verdict:
    """Return what came of a schedule; the broker runs again afterwards, without its topics."""
    verdict, start = Verdict(), time.monotonic()
    out = folder / "out"
    out.mkdir()
    with room_for(schedule, folder) as box:
        place = Place(out, box, broker.servers, f"faults.{uuid.uuid4().hex[:12]}")
        drive = Drive(schedule, broker, partial(work, place, schedule), verdict)
        try:
            drive.run()
        finally:
            drive.mend()
        drive.drain()
        if place.trouble.exists():
            verdict.broken.append(place.trouble.read_text())
        judge(verdict, place)
        remove_topics(place)
    verdict.seconds = time.monotonic() - start
    return verdict


class Drive:
    """A schedule on its way: children one after the other, and what befalls them and the broker."""

    def __init__(self, schedule: Schedule, broker: Any, target: Callable, verdict: Verdict) -> None:
        self._broker, self._target, self._verdict = broker, target, verdict
        self._child: Any = None
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._coming = [
            (step, partial(self._break, kind, seconds)) for step, kind, seconds in schedule.broker
        ]
        self._coming += [(step, partial(self._soon, seconds, self._kill)) for step, seconds in schedule.kills]

    def run(self) -> None:
        """Run children until one has done all exposures."""
        while self._run_child(drain=False) == -signal.SIGKILL:
            self._verdict.kills += 1

    def mend(self) -> None:
        """Bring the broker back at once, whatever was to come."""
        self._coming = []
        for _, act in self._due:
            act()
        self._due = []

    def drain(self) -> None:
        """Run a last child, which is left alone."""
        if self._run_child(drain=True):
            self._verdict.broken.append("the last child failed")

    def _run_child(self, *, drain: bool) -> int:
        receiver, steps = CONTEXT.Pipe(duplex=False)
        self._child = CONTEXT.Process(target=self._target, args=(steps, drain))
        self._child.start()
        steps.close()
        end = time.monotonic() + 120
        while self._child.is_alive() and time.monotonic() < end:
            wait = min([at - time.monotonic() for at, _ in self._due], default=0.2)
            if receiver.poll(min(max(wait, 0.0), 0.2)):
                try:
                    self._reached(receiver.recv())
                except EOFError:
                    self._child.join(1.0)
            self._act()
        self._child.kill()
        self._child.join()
        return self._child.exitcode

    def _reached(self, step: int) -> None:
        now = [act for at, act in self._coming if at <= step]
        self._coming = [(at, act) for at, act in self._coming if at > step]
        for act in now:
            act()

    def _act(self) -> None:
        now = time.monotonic()
        ready = [act for at, act in self._due if at <= now]
        self._due = [(at, act) for at, act in self._due if at > now]
        for act in ready:
            act()

    def _soon(self, seconds: float, act: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, act))

    def _break(self, kind: str, seconds: float) -> None:
        getattr(self._broker, kind)()
        self._soon(seconds, self._broker.resume if kind == "pause" else self._broker.start)

    def _kill(self) -> None:
        if self._child.is_alive():
            self._child.kill()


def judge(verdict: Verdict, place: Place, *, in_order: bool = True) -> None:
    """Hold what Kafka has against the archive; ``in_order``: an object's alerts must be in order of time."""
    files = place.out.rglob("alerts.avro")
    archived = {record["alertId"]: record for file in files for record in read_container(file).records}
    first = _alerts(verdict, place, in_order=in_order)
    verdict.archived, verdict.consumed = len(archived), len(first)
    lost, more = set(archived) - set(first), set(first) - set(archived)
    if lost or more:
        verdict.broken.append(f"{len(lost)} lost, {len(more)} never archived")
    if any(without_times(first[i]) != without_times(archived[i]) for i in set(first) & set(archived)):
        verdict.broken.append("another alert than was archived")
    told = everything(place.servers, [f"{place.topic}.done"])
    done = {read_container(message.value).records[0]["exposure"] for message in told}
    if len(done) != EXPOSURES:
        verdict.broken.append(f"{len(done)} of {EXPOSURES} exposures told as done")
    counts, owed = read_status(place.box / "outbox.db").counts, Owed(place.out / "ks4diff.db").records()
    if owed or sum(counts.values()) != counts["acknowledged"]:
        verdict.broken.append(f"outbox {counts}, owed {owed}")
    with closing(sqlite3.connect(place.out / "ks4diff.db")) as db:
        verdict.was_full = bool(db.execute("SELECT 1 FROM sqlite_sequence WHERE name = 'owed'").fetchall())


def _alerts(verdict: Verdict, place: Place, *, in_order: bool) -> dict[str, Any]:
    """Return the alerts in Kafka by id, the first copy of each, and judge the copies, topics and order."""
    got = everything(place.servers, [place.topic, f"{place.topic}.test"])
    payloads, first, seen = defaultdict(set), {}, defaultdict(list)
    for message in got:
        (record,) = read_container(message.value).records
        payloads[record["alertId"]].add(message.value)
        if record["alertId"] not in first:
            first[record["alertId"]] = record
            seen[message.topic, record["objectId"]].append((message.partition, record["candidate"]["mjd"]))
        if record["candidate"]["injected"] != message.topic.endswith(".test"):
            verdict.broken.append(f"{record['alertId']} in topic {message.topic}")
    verdict.copies = len(got) - len(first)
    if any(len(several) > 1 for several in payloads.values()):
        verdict.broken.append("an alertId with two payloads")
    for (_, name), places in seen.items():
        if len({partition for partition, _ in places}) > 1 or (in_order and places != sorted(places)):
            verdict.broken.append(f"{name} out of order")
    return first


def everything(servers: str, topics: list[str]) -> list[Any]:
    """Return all messages of topics, copies too, each partition's in order."""
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    try:
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(consumer.partitions_for_topic(topic) or ())
        ]
        ends = consumer.end_offsets(partitions) if partitions else {}
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[Any] = []
        end = time.monotonic() + 30
        while any(consumer.position(p) < ends[p] for p in partitions) and time.monotonic() < end:
            for messages in consumer.poll(timeout_ms=200).values():
                found += messages
        return found
    finally:
        consumer.close()


def remove_topics(place: Place) -> None:
    """Remove a schedule's topics: a broker with thousands of partitions starts slowly."""
    admin = KafkaAdminClient(bootstrap_servers=place.servers)
    try:
        admin.delete_topics([name for name in admin.list_topics() if name.startswith(place.topic)])
    finally:
        admin.close()


@contextmanager
def room_for(schedule: Schedule, folder: Path) -> Iterator[Path]:
    """Yield the outbox's folder, a file system of 1 MB where the schedule says so."""
    box = folder / "box"
    box.mkdir()
    small = schedule.room == "disk"
    if small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(box)], check=True)
    try:
        yield box
    finally:
        if small:
            subprocess.run(["umount", str(box)], check=True)


@lru_cache(maxsize=1)
def can_mount() -> bool:
    """Return whether we may mount a small file system; root in a container often may not."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        except OSError:
            return False
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0
