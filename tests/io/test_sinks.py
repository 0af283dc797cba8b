"""Sinks without a broker: the archive, the outbox with a pretended producer, and both."""

import pytest

from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.outbox import Outbox, Outcome, State
from ks4diff.io.packets import container_bytes, datum_bytes, read_container
from ks4diff.io.sinks import ArchiveSink, DeliverySummary, KafkaSink, TeeSink, open_sink
from ks4diff.products.errors import ConfigError, InputError
from tests.sample_alert import make_records


class PretendedProducer:
    """Does with each message what ``verdict(alert_id)`` says: a state, or None for no word yet."""

    def __init__(self, verdict=lambda alert_id: State.ACKNOWLEDGED):
        self.verdict = verdict
        self.sent = []
        self.calls = 0
        self.closed = False

    def deliver(self, messages, *, timeout_s):
        self.calls += 1
        self.sent.extend(messages)
        verdicts = [(message.alert_id, self.verdict(message.alert_id)) for message in messages]
        return [Outcome(alert_id=alert_id, state=state) for alert_id, state in verdicts if state]

    def close(self):
        self.closed = True


@pytest.fixture
def archive(tmp_path):
    return ArchiveSink(lambda exposure: tmp_path / exposure / "alerts.avro", database=tmp_path / "ks4diff.db")


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def test_archive_writes_the_file_and_a_row_per_alert(archive, tmp_path):
    records = make_records(3)
    archive.emit("e1", records)
    assert read_container(tmp_path / "e1" / "alerts.avro").records == records
    rows = AlertIndex(tmp_path / "ks4diff.db").rows()
    assert [row["alert_id"] for row in rows] == [record["alertId"] for record in records]
    for ordinal, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row["ordinal"] == ordinal
        assert row["file"] == "e1/alerts.avro"
        assert row["candid"] == record["candid"]
        for name in ("mjd", "x", "y", "ra", "dec", "scorr", "rb"):
            assert row[name] == record["candidate"][name]
    assert archive.flush(1.0) == DeliverySummary()


def test_archive_replaces_an_exposure_and_leaves_the_others(archive, tmp_path):
    archive.emit("e1", make_records(3))
    archive.emit("e2", make_records(2, first=3))
    archive.emit("e1", make_records(1))
    index = AlertIndex(tmp_path / "ks4diff.db")
    assert [len(index.rows(exposure)) for exposure in ("e1", "e2")] == [1, 2]
    assert len(read_container(tmp_path / "e1" / "alerts.avro").records) == 1


def test_archive_of_a_rerun_is_byte_for_byte_the_same(archive, tmp_path):
    archive.emit("e1", make_records(3))
    before = (tmp_path / "e1" / "alerts.avro").read_bytes()
    archive.emit("e1", make_records(3))
    assert (tmp_path / "e1" / "alerts.avro").read_bytes() == before


def test_an_exposure_without_alerts_has_an_empty_file(archive, tmp_path):
    archive.emit("e1", [])
    assert read_container(tmp_path / "e1" / "alerts.avro").records == []
    assert AlertIndex(tmp_path / "ks4diff.db").rows() == []


def test_a_damaged_history_is_named(tmp_path):
    (tmp_path / "ks4diff.db").write_bytes(b"no database" * 500)
    with pytest.raises(InputError, match=r"ks4diff\.db: not a usable history"):
        ArchiveSink(lambda exposure: tmp_path / "a.avro", database=tmp_path / "ks4diff.db")


def test_messages_are_containers_of_one_keyed_by_object(outbox):
    producer = PretendedProducer()
    sink = KafkaSink(outbox, producer, topic="t")
    records = [*make_records(1), *make_records(1, first=1, object_id=None)]
    sink.emit("e1", records)
    assert producer.sent == []  # emit never talks to the broker
    assert sink.flush(5.0) == DeliverySummary(acknowledged=2)
    assert [message.payload for message in producer.sent] == [container_bytes([record]) for record in records]
    assert [message.key for message in producer.sent] == [records[0]["objectId"], records[1]["alertId"]]
    assert {message.topic for message in producer.sent} == {"t"}


def test_a_rerun_sends_nothing_twice(outbox):
    producer = PretendedProducer()
    sink = KafkaSink(outbox, producer)
    sink.emit("e1", make_records(3))
    sink.flush(5.0)
    sink.emit("e1", make_records(4))
    assert sink.flush(5.0) == DeliverySummary(acknowledged=1)
    assert len(producer.sent) == 4


def test_every_fate_is_told_apart(outbox):
    records = make_records(4)
    states = [State.ACKNOWLEDGED, State.PENDING, State.DEAD, None]
    fates = dict(zip((record["alertId"] for record in records), states, strict=True))
    sink = KafkaSink(outbox, PretendedProducer(fates.get))
    sink.emit("e1", records)
    assert sink.flush(5.0) == DeliverySummary(acknowledged=1, waiting=2, dead=1)
    assert sink.health()["outbox"] == {"pending": 1, "inflight": 1, "acknowledged": 1, "dead": 1}


def test_a_broker_away_is_asked_once_a_flush(outbox, monkeypatch):
    monkeypatch.setattr("ks4diff.io.sender._BATCH", 2)
    producer = PretendedProducer(lambda alert_id: State.PENDING)
    sink = KafkaSink(outbox, producer)
    sink.emit("e1", make_records(5))
    assert sink.flush(60.0).waiting == 5
    assert producer.calls == 1
    producer.verdict = lambda alert_id: State.ACKNOWLEDGED
    producer.sent.clear()
    assert sink.flush(60.0) == DeliverySummary(waiting=5)  # too soon
    assert producer.calls == 1
    assert sink.flush(60.0, patient=True) == DeliverySummary(acknowledged=5)
    assert [message.alert_id for message in producer.sent] == [r["alertId"] for r in make_records(5)]


def test_tee_archives_before_it_sends(archive, outbox, tmp_path):
    class Refusing(KafkaSink):
        def emit(self, exposure, records):
            assert (tmp_path / exposure / "alerts.avro").is_file()
            raise OSError("disk full")

    tee = TeeSink(archive, Refusing(outbox, PretendedProducer()))
    with pytest.raises(OSError, match="disk full"):
        tee.emit("e1", make_records(1))
    assert len(AlertIndex(tmp_path / "ks4diff.db").rows()) == 1


def test_tee_adds_up_and_closes_all(archive, outbox):
    producer = PretendedProducer(lambda alert_id: None)
    tee = TeeSink(archive, KafkaSink(outbox, producer))
    tee.emit("e1", make_records(2))
    assert tee.flush(1.0) == DeliverySummary(waiting=2)
    assert tee.health()["archived"] == 2
    tee.close()
    tee.close()
    assert producer.closed


def test_same_datum_in_archive_and_outbox(archive, outbox, tmp_path):
    tee = TeeSink(archive, KafkaSink(outbox, PretendedProducer()))
    tee.emit("e1", make_records(2))
    archived = [datum_bytes(r) for r in read_container(tmp_path / "e1" / "alerts.avro").records]
    queued = [datum_bytes(read_container(m.payload).records[0]) for m in outbox.claim(9)]
    assert archived == queued


@pytest.mark.parametrize("topic", ["", "..", "a b", "x" * 250, "é"])
def test_a_bad_topic_is_refused(outbox, topic):
    with pytest.raises(ConfigError, match="topic"):
        KafkaSink(outbox, PretendedProducer(), topic=topic)


@pytest.mark.parametrize(
    "servers", ["", "localhost", "localhost:", "a:1,,b:2", "h:99999", "http://h:1", "h:0"]
)
def test_bad_servers_are_refused_before_anything_is_written(tmp_path, servers):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        open_sink(lambda exposure: tmp_path / "a.avro", tmp_path / "out", kafka=servers)
    assert not (tmp_path / "out").exists()


def test_without_kafka_there_is_only_the_archive(tmp_path):
    sink = open_sink(lambda exposure: tmp_path / "alerts.avro", tmp_path)
    sink.emit("e1", make_records(1))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alerts.avro", "ks4diff.db"]
