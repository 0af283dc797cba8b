"""What a cluster may answer: too few replicas, another leader, late, nothing. All of it ends in delivery."""

import threading
import time

import pytest
from kafka import KafkaConsumer, TopicPartition

from ks4diff.io.outbox import Message, Outbox, read_status
from ks4diff.io.sender import Sender
from ks4diff.io.stream import AlertProducer
from tests.broker.mock_cluster import API_VERSION, NOT_ENOUGH_REPLICAS, NOT_LEADER, PRODUCE, MockCluster

pytest.importorskip("confluent_kafka")

TOPIC, PARTITIONS = "t", 2


@pytest.fixture
def cluster():
    with MockCluster() as made:
        made.create(TOPIC, PARTITIONS)
        yield made


@pytest.fixture
def sender(cluster, tmp_path):
    producer = AlertProducer(cluster.servers, bootstrap_timeout_s=1.0, delivery_timeout_s=3.0)
    producer._options["api_version"] = API_VERSION
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.add(
        Message(
            alert_id=f"id{k}", exposure="e", topic=TOPIC, key=f"key{k % 5}", schema="s", payload=b"%d" % k
        )
        for k in range(15)
    )
    made = Sender(outbox, producer)
    yield made
    made.close()


def arrived(cluster):
    """The payloads of each key in the order in which they first came, and how many copies came besides."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.servers, api_version=API_VERSION)
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    ends = consumer.end_offsets(partitions)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    got = []
    end = time.monotonic() + 20
    while any(consumer.position(p) < ends[p] for p in partitions) and time.monotonic() < end:
        got += [message for some in consumer.poll(timeout_ms=200).values() for message in some]
    consumer.close()
    keys = {}
    for message in got:
        first = keys.setdefault(message.key.decode(), [])
        if int(message.value) not in first:
            first.append(int(message.value))
    return keys, len(got) - sum(map(len, keys.values()))


ALL = {f"key{k}": [k, k + 5, k + 10] for k in range(5)}


def test_all_is_well(cluster, sender):
    assert sender.flush(20.0).acknowledged == 15
    assert arrived(cluster) == (ALL, 0)


@pytest.mark.parametrize("error", [NOT_ENOUGH_REPLICAS, NOT_LEADER])
def test_errors_that_pass(cluster, sender, error):
    cluster.answer(PRODUCE, *[error] * 6)
    assert sender.flush(40.0, patient=True).waiting == 0
    assert arrived(cluster)[0] == ALL


def test_errors_that_last_longer_than_a_delivery(cluster, sender, tmp_path):
    cluster.answer(PRODUCE, *[NOT_ENOUGH_REPLICAS] * 200)
    assert sender.flush(8.0).waiting == 15
    assert read_status(tmp_path / "outbox.db").counts["pending"] == 15
    cluster.clear(PRODUCE)
    assert sender.flush(90.0, patient=True).waiting == 0
    assert arrived(cluster)[0] == ALL


def test_leaders_that_move(cluster, sender):
    stop = threading.Event()

    def move():
        for turn in range(1000):
            for partition in range(PARTITIONS):
                cluster.lead(TOPIC, partition, 1 + (turn + partition) % 3)
            if stop.wait(0.05):
                return

    mover = threading.Thread(target=move)
    mover.start()
    try:
        assert sender.flush(40.0, patient=True).waiting == 0
    finally:
        stop.set()
        mover.join()
    assert arrived(cluster)[0] == ALL


def test_answers_that_come_after_the_delivery_timeout(cluster, sender):
    """The brokers have the messages, we do not know: they are sent again, and dropped by their ids."""
    cluster.delay(PRODUCE, 6000)
    assert sender.flush(40.0, patient=True).waiting == 0
    keys, copies = arrived(cluster)
    assert keys == ALL
    assert copies > 0


def test_all_brokers_down_for_longer_than_a_delivery(cluster, sender, tmp_path):
    cluster.down()
    assert sender.flush(6.0).waiting == 15
    cluster.up()
    assert sender.flush(40.0, patient=True).waiting == 0
    assert arrived(cluster) == (ALL, 0)
