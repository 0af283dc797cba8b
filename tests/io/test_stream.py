"""Alerts through a real Apache Kafka: what was archived arrives, whatever happens on the way."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import closing

import pytest
from kafka import KafkaConsumer, TopicPartition

from ks4diff.io.listen import tail
from ks4diff.io.outbox import Message, Outbox, State, read_status
from ks4diff.io.packets import datum_bytes, read_container
from ks4diff.io.sender import send_outbox
from ks4diff.io.sinks import DeliverySummary, KafkaSink, open_sink
from ks4diff.io.stream import AlertProducer
from ks4diff.products.errors import InputError
from tests.broker.broker import free_port
from tests.sample_alert import make_records

pytestmark = pytest.mark.kafka

ENOUGH_S = 30.0


@pytest.fixture
def topic():
    return f"test.{uuid.uuid4().hex[:12]}"


@pytest.fixture
def sink(kafka_broker, tmp_path, topic):
    opened = open_sink(
        lambda exposure: tmp_path / "alerts.avro", tmp_path, kafka=kafka_broker.servers, topic=topic
    )
    yield opened
    opened.close()


def ids(records):
    return sorted(record["alertId"] for record in records)


def received(broker, topic, **options):
    """Everything in the topic, copies dropped."""
    options = {"from_beginning": True, "timeout_s": 3.0} | options
    return list(tail(broker.servers, topic=topic, **options))


def messages_in(broker, topic):
    """How many messages the topic holds, copies counted."""
    consumer = KafkaConsumer(bootstrap_servers=broker.servers)
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    count = sum(consumer.end_offsets(partitions).values())
    consumer.close()
    return count


def test_what_arrives_is_what_was_archived(sink, kafka_broker, topic, tmp_path):
    records = make_records(20)
    sink.emit("e1", records)
    assert sink.flush(ENOUGH_S) == DeliverySummary(acknowledged=20)
    got = received(kafka_broker, topic, limit=20, timeout_s=ENOUGH_S)
    archived = read_container(tmp_path / "alerts.avro").records
    assert {r.record["alertId"]: datum_bytes(r.record) for r in got} == {
        record["alertId"]: datum_bytes(record) for record in archived
    }
    for alert in got:
        assert alert.key == alert.record["objectId"]
        assert alert.headers["alertId"] == alert.record["alertId"]
        assert alert.headers["schema"] == "ks4.alert 1.0"
        assert alert.headers["content_type"] == "application/avro"
        assert abs(int(alert.headers["producer_timestamp"]) / 1000 - time.time()) < 300


def test_a_rerun_sends_nothing_twice(sink, kafka_broker, topic):
    for _ in range(2):
        sink.emit("e1", make_records(3))
        sink.flush(ENOUGH_S)
    got = received(kafka_broker, topic)
    assert ids(r.record for r in got) == ids(make_records(3))
    assert messages_in(kafka_broker, topic) == 3


def test_alerts_of_one_object_keep_their_order(sink, kafka_broker, topic):
    records = make_records(12, object_id="KS424one")
    sink.emit("e1", records)
    sink.flush(ENOUGH_S)
    got = received(kafka_broker, topic, limit=12, timeout_s=ENOUGH_S)
    assert [r.record["alertId"] for r in got] == [record["alertId"] for record in records]
    assert len({r.partition for r in got}) == 1


def test_a_broker_that_was_never_there_costs_seconds_and_no_alert(kafka_broker, tmp_path, topic):
    absent = open_sink(
        lambda exposure: tmp_path / "alerts.avro", tmp_path, kafka=f"127.0.0.1:{free_port()}", topic=topic
    )
    records = make_records(3)
    started = time.monotonic()
    absent.emit("e1", records)
    assert absent.flush(ENOUGH_S) == DeliverySummary(waiting=3)
    absent.close()
    assert time.monotonic() - started < 10
    assert len(read_container(tmp_path / "alerts.avro").records) == 3
    assert "refused" in next(iter(read_status(tmp_path / "outbox.db").reasons))

    outbox, producer = Outbox(tmp_path / "outbox.db"), AlertProducer(kafka_broker.servers)
    assert send_outbox(outbox, producer, deadline_s=ENOUGH_S) == DeliverySummary(acknowledged=3)
    producer.close()
    outbox.close()
    assert ids(r.record for r in received(kafka_broker, topic)) == ids(records)


def test_a_frozen_broker_holds_nobody_up_and_loses_nothing(sink, kafka_broker, topic):
    sink.emit("e1", make_records(2))
    sink.flush(ENOUGH_S)
    kafka_broker.pause()
    try:
        started = time.monotonic()
        sink.emit("e2", make_records(3, first=2))
        assert sink.flush(1.0) == DeliverySummary(waiting=3)
        assert time.monotonic() - started < 5
    finally:
        kafka_broker.resume()
    # The same producer still holds them, and says so when the broker wakes up.
    assert sink.flush(ENOUGH_S) == DeliverySummary(acknowledged=3)
    assert ids(r.record for r in received(kafka_broker, topic)) == ids(make_records(5))


def test_a_broker_frozen_from_the_start_is_as_good_as_none(sink, kafka_broker):
    sink.emit("e1", make_records(1))
    kafka_broker.pause()
    try:
        started = time.monotonic()
        assert sink.flush(ENOUGH_S) == DeliverySummary(waiting=1)
        assert time.monotonic() - started < 10
    finally:
        kafka_broker.resume()
    assert sink.flush(ENOUGH_S) == DeliverySummary(waiting=1)  # too soon to ask again
    time.sleep(1.0)
    assert sink.flush(ENOUGH_S) == DeliverySummary(acknowledged=1)


def test_a_killed_broker_that_comes_back_gets_everything(kafka_broker, tmp_path, topic):
    outbox = Outbox(tmp_path / "outbox.db")
    sink = KafkaSink(outbox, AlertProducer(kafka_broker.servers, delivery_timeout_s=2.0), topic=topic)
    sink.emit("e1", make_records(2))
    assert sink.flush(ENOUGH_S).acknowledged == 2
    kafka_broker.kill()
    try:
        sink.emit("e2", make_records(3, first=2))
        assert sink.flush(10.0).waiting == 3
        assert outbox.counts()["pending"] == 3  # given up after 2 s, not left in flight
    finally:
        kafka_broker.start()
    assert sink.flush(ENOUGH_S) == DeliverySummary(acknowledged=3)
    sink.close()
    assert ids(r.record for r in received(kafka_broker, topic)) == ids(make_records(5))


def test_closing_with_a_frozen_broker_leaves_alerts_for_the_next_sender(kafka_broker, tmp_path, topic):
    def opened():
        return KafkaSink(Outbox(tmp_path / "outbox.db"), AlertProducer(kafka_broker.servers), topic=topic)

    sink = opened()
    sink.emit("e1", make_records(1))
    sink.flush(ENOUGH_S)
    kafka_broker.pause()
    try:
        sink.emit("e2", make_records(2, first=1))
        sink.flush(0.5)
        started = time.monotonic()
        sink.close()
        assert time.monotonic() - started < 10
    finally:
        kafka_broker.resume()
    again = opened()
    assert again.flush(ENOUGH_S) == DeliverySummary(acknowledged=2)
    again.close()
    assert ids(r.record for r in received(kafka_broker, topic)) == ids(make_records(3))


def test_a_message_too_large_is_dead_and_says_why(sink, kafka_broker, topic, tmp_path):
    outbox = Outbox(tmp_path / "own.db")
    names = {"exposure": "e", "topic": topic, "key": "k", "schema": "0.1"}
    huge = Message(alert_id="huge", payload=os.urandom(5_000_000), **names)
    outbox.add([huge, Message(alert_id="small", payload=b"x", **names)])
    producer = AlertProducer(kafka_broker.servers)
    assert send_outbox(outbox, producer, deadline_s=ENOUGH_S) == DeliverySummary(acknowledged=1, dead=1)
    producer.close()
    outbox.close()
    assert "larger" in next(iter(read_status(tmp_path / "own.db").reasons))


SENDER = """
import os, signal, sys
from ks4diff.io.outbox import Outbox
from ks4diff.io.sinks import KafkaSink
from ks4diff.io.stream import AlertProducer
from tests.sample_alert import make_records

class Killed(Outbox):
    def settle(self, outcomes):
        assert any(outcome.offset is not None for outcome in outcomes)
        os.kill(os.getpid(), signal.SIGKILL)

class Unsent(AlertProducer):
    def deliver(self, messages, *, timeout_s):
        if sys.argv[4] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().deliver(messages, timeout_s=timeout_s)

sink = KafkaSink(Killed(sys.argv[1]), Unsent(sys.argv[2]), topic=sys.argv[3])
sink.emit("e1", make_records(4))
sink.flush(30.0)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sender_killed_before_it_noted_the_answer_loses_nothing(kafka_broker, tmp_path, topic, when):
    """SIGKILL between the outbox's commit and the note of the acknowledgement."""
    path = tmp_path / "outbox.db"
    command = [sys.executable, "-c", SENDER, os.fspath(path), kafka_broker.servers, topic, when]
    done = subprocess.run(command, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_status(path).counts["inflight"] == 4

    sink = KafkaSink(Outbox(path), AlertProducer(kafka_broker.servers), topic=topic)
    sink.emit("e1", make_records(4))  # the rerun
    assert sink.flush(ENOUGH_S) == DeliverySummary(acknowledged=4)
    sink.close()
    got = received(kafka_broker, topic)
    assert ids(r.record for r in got) == ids(make_records(4))  # each id once, and no new id
    assert messages_in(kafka_broker, topic) == (8 if when == "after" else 4)  # copies were sent, and dropped


def test_a_group_goes_on_where_its_handler_returned(sink, kafka_broker, topic):
    sink.emit("e1", make_records(6, object_id="KS424one"))
    sink.flush(ENOUGH_S)
    options = {"topic": topic, "group": topic, "from_beginning": True, "timeout_s": ENOUGH_S}
    first = []
    alerts = tail(kafka_broker.servers, **options)
    for alert in alerts:
        first.append(alert.record["alertId"])
        if len(first) == 3:
            break  # the third was not finished
    alerts.close()
    rest = [r.record["alertId"] for r in tail(kafka_broker.servers, limit=4, **options)]
    expected = [record["alertId"] for record in make_records(6)]
    assert first == expected[:3]
    assert rest == expected[2:]


def test_what_is_no_alert_is_skipped(kafka_broker, tmp_path, topic, caplog):
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.add([Message(alert_id="x", exposure="e", topic=topic, key="k", schema="0.1", payload=b"not Avro")])
    sink = KafkaSink(outbox, AlertProducer(kafka_broker.servers), topic=topic)
    sink.emit("e1", make_records(1))
    assert sink.flush(ENOUGH_S).acknowledged == 2
    sink.close()
    assert ids(r.record for r in received(kafka_broker, topic)) == ids(make_records(1))
    assert "not an Avro container" in caplog.text


def test_listening_to_a_broker_that_is_not_there_says_so():
    with pytest.raises(InputError, match="no answer"):
        list(tail(f"127.0.0.1:{free_port()}", topic="t", timeout_s=1.0))


def test_a_topic_that_never_comes_ends_in_time(kafka_broker, topic):
    started = time.monotonic()
    assert received(kafka_broker, topic, timeout_s=0.5) == []
    assert time.monotonic() - started < 10


def test_acknowledged_rows_tell_where(sink, tmp_path):
    sink.emit("e1", make_records(2))
    sink.flush(ENOUGH_S)
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as db:
        rows = db.execute('SELECT state, partition, "offset" FROM outbox').fetchall()
    assert all(
        state == State.ACKNOWLEDGED and partition >= 0 and offset >= -1 for state, partition, offset in rows
    )
