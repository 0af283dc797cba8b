"""Four processes at once, in one folder and in four: each alert arrives."""

import pytest

from ks4diff.io.outbox import read_status
from ks4diff.io.packets import read_container
from ks4diff.pipeline.ledger import close_exposure
from tests.faults import CONTEXT, EXPOSURES, Place, Verdict, draw, everything, exposures_of, judge, open_parts
from tests.seasons import run_report

pytestmark = pytest.mark.kafka

CALM = draw(0, restarts=0.0)


def submit(place, exposures, gate, trouble):
    """Write exposures down as a run does, at the same time as others."""
    ledger, sink = open_parts(place, CALM)
    gate.wait(60)
    for one in exposures:
        close_exposure(run_report(one), one, ledger)
        sink.flush(20.0)
    summary = sink.flush(20.0)
    sink.close()
    trouble.put((summary.waiting, summary.dead))


def together(works):
    gate, told = CONTEXT.Barrier(len(works)), CONTEXT.Queue()
    workers = [CONTEXT.Process(target=submit, args=(*work, gate, told)) for work in works]
    for worker in workers:
        worker.start()
    summaries = [told.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return summaries


def test_in_one_folder(kafka_broker, tmp_path):
    box = tmp_path / "box"
    place = Place(tmp_path / "out", box, kafka_broker.servers, f"four.{tmp_path.name}")
    for folder in (place.out, box):
        folder.mkdir()
    every = exposures_of(3)
    summaries = together([(place, every[k::4]) for k in range(4)])
    assert summaries == [(0, 0)] * 4
    verdict = Verdict()
    judge(verdict, place, in_order=False)  # who comes first is chance here
    assert verdict.broken == []
    assert verdict.archived == sum(len(one.alerts) for one in every) > 20


def test_in_four_folders(kafka_broker, tmp_path):
    topic = f"four.{tmp_path.name}"
    places = [Place(tmp_path / str(k), tmp_path / str(k), kafka_broker.servers, topic) for k in range(4)]
    for place in places:
        place.out.mkdir()
    together([(place, exposures_of(k, first=100 * k)) for k, place in enumerate(places)])
    files = tmp_path.rglob("alerts.avro")
    archived = {record["alertId"] for file in files for record in read_container(file).records}
    got = everything(kafka_broker.servers, [topic, f"{topic}.test"])
    assert {read_container(message.value).records[0]["alertId"] for message in got} == archived
    assert len(archived) == len(got) > 100
    for place in places:
        counts = read_status(place.box / "outbox.db").counts
        assert counts["acknowledged"] == sum(counts.values())
    assert len(everything(kafka_broker.servers, [f"{topic}.done"])) == 4 * EXPOSURES
