"""Listening to a real Kafka: places, windows, times and lag."""

import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition

from ks4diff.io import places
from ks4diff.io.listen import Choice, NoTopic, replay, tail
from ks4diff.io.outbox import Outbox
from ks4diff.io.places import topic_state
from ks4diff.io.publish import publish
from ks4diff.io.seen import Seen
from ks4diff.io.sinks import DeliverySummary, KafkaSink
from ks4diff.io.stream import AlertProducer
from ks4diff.products.errors import InputError
from tests.broker.broker import free_port
from tests.sample_alert import make_candidate, make_records

ENOUGH_S = 30.0


@pytest.fixture
def topic():
    return f"test.{uuid.uuid4().hex[:12]}"


@pytest.fixture
def send(kafka_broker, topic, tmp_path):
    """Return a function that puts alerts into the topic."""
    sink = KafkaSink(Outbox(tmp_path / "sent.db"), AlertProducer(kafka_broker.servers), topic=topic)

    def put(records):
        sink.emit("e", records)
        assert sink.flush(ENOUGH_S, patient=True).waiting == 0

    yield put
    sink.close()


def ids(alerts):
    return sorted(alert if isinstance(alert, str) else alert["alertId"] for alert in alerts)


class TestSeen:
    def test_outlives_the_process_and_is_shared(self, tmp_path):
        first, second = Seen(tmp_path / "seen.db"), Seen(tmp_path / "seen.db")
        first.add("a")
        assert "a" in second
        first.add("a")
        first.close()
        second.close()
        again = Seen(tmp_path / "seen.db")
        assert "a" in again
        assert "b" not in again
        again.close()

    def test_forgets_the_oldest(self, monkeypatch):
        monkeypatch.setattr("ks4diff.io.seen._REMEMBERED", 1500)
        seen = Seen()
        for number in range(4000):
            seen.add(str(number))
        assert "3999" in seen
        assert "2500" in seen
        assert "2400" not in seen
        seen.close()

    def test_a_file_of_another_kind_is_named(self, tmp_path):
        (tmp_path / "seen.db").write_bytes(b"no database" * 100)
        with pytest.raises(InputError, match=r"seen\.db: not a usable list of alerts"):
            Seen(tmp_path / "seen.db")


@pytest.mark.kafka
class TestTail:
    def test_what_is_not_wanted_is_passed_over_and_done_with(self, kafka_broker, topic, send):
        good, poor = make_records(4), make_records(4, first=4, candidate=make_candidate(rb=0.1))
        send(good + poor)
        choice = Choice(wanted=lambda record: record["candidate"]["rb"] > 0.5)
        options = {"topic": topic, "from_beginning": True, "group": topic, "timeout_s": 1.0}
        assert ids(r.id for r in tail(kafka_broker.servers, choice=choice, **options)) == ids(good)
        assert topic_state(kafka_broker.servers, topic, group=topic).lag == {topic: 0}
        assert list(tail(kafka_broker.servers, **options | {"timeout_s": 0.5})) == []

    def test_copies_of_before_a_restart_are_dropped(self, kafka_broker, topic, send, tmp_path):
        records = make_records(5, object_id="KS4-24one")
        send(records)
        options = {"topic": topic, "from_beginning": True, "group": topic}
        seen = Seen(tmp_path / "seen.db")
        first = list(tail(kafka_broker.servers, limit=3, choice=Choice(seen=seen), **options))
        seen.close()
        publish(iter(records), kafka_broker.servers, topic=topic, deadline_s=ENOUGH_S)  # each a second time
        seen = Seen(tmp_path / "seen.db")
        rest = list(tail(kafka_broker.servers, timeout_s=1.0, choice=Choice(seen=seen), **options))
        seen.close()
        assert [r.id for r in first + rest] == [record["alertId"] for record in records]
        copies = replay(kafka_broker.servers, topic=topic, choice=Choice(copies=True))
        assert len([r.id for r in copies]) == 10

    def test_a_group_misses_nothing_that_comes_while_it_is_away(self, kafka_broker, topic, send):
        """From the newest on: in partitions that have shown it nothing, it must have a place all the same."""
        send(make_records(1))
        options = {"topic": topic, "group": topic}
        assert list(tail(kafka_broker.servers, timeout_s=0.5, **options)) == []
        send(make_records(12, first=1))
        got = tail(kafka_broker.servers, limit=12, timeout_s=ENOUGH_S, **options)
        assert ids(r.id for r in got) == ids(make_records(12, first=1))

    @pytest.mark.parametrize("group", [None, "new"])
    def test_all_of_a_topic_that_comes_into_being_is_new(self, kafka_broker, topic, send, group):
        options = {"topic": topic, "group": group and f"{group}.{topic}", "limit": 3, "timeout_s": ENOUGH_S}
        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(lambda: [r.id for r in tail(kafka_broker.servers, **options)])
            time.sleep(1.5)
            send(make_records(3))
            assert ids(got.result(60)) == ids(make_records(3))

    def test_a_place_that_is_gone_leads_to_the_oldest_alert_there_is(self, kafka_broker, topic, send, caplog):
        """Retention was faster: what is left comes, also to a reader of the newest, and the gap is told."""
        records = make_records(9, object_id="KS4-24one")
        send(records)
        options = {"topic": topic, "group": topic, "timeout_s": ENOUGH_S}
        assert len(list(tail(kafka_broker.servers, limit=2, **options | {"from_beginning": True}))) == 2
        admin = KafkaAdminClient(bootstrap_servers=kafka_broker.servers)
        number = next(r.partition for r in replay(kafka_broker.servers, topic=topic))
        admin.delete_records({TopicPartition(topic, number): 5})
        admin.close()
        rest = [r.id for r in tail(kafka_broker.servers, limit=4, **options)]
        assert rest == [record["alertId"] for record in records[5:]]
        assert "3 messages went from the topic before they were read" in caplog.text

    def test_a_place_that_cannot_be_committed_is_told_and_holds_nobody_up(
        self, kafka_broker, topic, send, monkeypatch, caplog
    ):
        send(make_records(3, object_id="KS4-24one"))
        alerts = tail(kafka_broker.servers, topic=topic, from_beginning=True, group=topic)
        next(alerts)
        next(alerts)
        monkeypatch.setattr(places, "_ANSWER_MS", 300)
        kafka_broker.pause()
        started = time.monotonic()
        try:
            alerts.close()
        finally:
            kafka_broker.resume()
        assert "was not committed" in caplog.text
        assert time.monotonic() - started < 10

    def test_says_how_far_behind_it_is_and_when_nobody_answers(
        self, kafka_broker, topic, send, monkeypatch, caplog
    ):
        monkeypatch.setattr(places, "_LAG_EVERY_S", 0.2)
        monkeypatch.setattr(places, "_ANSWER_MS", 500)
        monkeypatch.setattr("ks4diff.io.listen._AT_ONCE", 5)
        caplog.set_level(logging.INFO)
        send(make_records(60, object_id="KS4-24one"))
        alerts = tail(kafka_broker.servers, topic=topic, from_beginning=True, timeout_s=3.0)
        for number, _ in enumerate(alerts):
            time.sleep(0.02)
            if number == 50:
                kafka_broker.pause()
        kafka_broker.resume()
        assert "messages behind" in caplog.text
        assert "Kafka does not answer" in caplog.text


@pytest.mark.kafka
class TestReplay:
    def test_what_the_topic_holds_and_no_place_changed(self, kafka_broker, topic, send):
        send(make_records(7))
        assert ids(r.id for r in replay(kafka_broker.servers, topic=topic)) == ids(make_records(7))
        assert topic_state(kafka_broker.servers, topic).lag == {}

    def test_between_two_times(self, kafka_broker, topic, send):
        marks = []
        for first in (0, 4, 8):
            marks.append(time.time())
            send(make_records(4, first=first))
            time.sleep(0.05)

        def between(since, until):
            return ids(r.id for r in replay(kafka_broker.servers, topic=topic, since=since, until=until))

        assert between(marks[1], marks[2]) == ids(make_records(4, first=4))
        assert between(marks[1], None) == ids(make_records(8, first=4))
        assert between(None, marks[1]) == ids(make_records(4))
        assert between(time.time() + 60, None) == []

    def test_ends_though_more_comes(self, kafka_broker, topic, send):
        send(make_records(3))
        got = []
        for number, alert in enumerate(replay(kafka_broker.servers, topic=topic)):
            got.append(alert.id)
            send(make_records(2, first=10 + 2 * number))
        assert ids(got) == ids(make_records(3))

    def test_a_topic_that_is_not_there_is_named(self, kafka_broker):
        with pytest.raises(NoTopic, match="no topic never"):
            list(replay(kafka_broker.servers, topic="never"))


@pytest.mark.kafka
class TestLag:
    def test_counts_what_each_group_has_still_to_read(self, kafka_broker, topic, send):
        send(make_records(10, object_id="KS4-24one"))
        for group, limit in ((f"a.{topic}", 3), (f"b.{topic}", 10)):
            list(tail(kafka_broker.servers, topic=topic, group=group, from_beginning=True, limit=limit))
        state = topic_state(kafka_broker.servers, topic)
        assert state.messages == 10
        assert state.lag == {f"a.{topic}": 7, f"b.{topic}": 0}
        assert topic_state(kafka_broker.servers, topic, group=f"a.{topic}").lag == {f"a.{topic}": 7}

    def test_counts_a_place_beyond_the_end_as_nothing(self, kafka_broker, topic, send):
        """As of a topic that was made anew."""
        send(make_records(2, object_id="KS4-24one"))
        consumer = KafkaConsumer(bootstrap_servers=kafka_broker.servers, group_id=topic)
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(1000, "", -1)})
        consumer.close()
        assert topic_state(kafka_broker.servers, topic).lag == {topic: 0}

    def test_says_what_is_not_there(self, kafka_broker, topic, send):
        send(make_records(1))
        with pytest.raises(InputError, match="group nobody has no place"):
            topic_state(kafka_broker.servers, topic, group="nobody")
        with pytest.raises(InputError, match="no topic never"):
            topic_state(kafka_broker.servers, "never")
        with pytest.raises(InputError, match="no answer"):
            topic_state(f"127.0.0.1:{free_port()}", topic)


@pytest.mark.kafka
class TestPublish:
    def test_sends_in_order_and_counts(self, kafka_broker, topic):
        one, others = make_records(20, object_id="KS4-24one"), make_records(90, first=20)
        records = one[:10] + others + one[10:]
        done = publish(iter(records), kafka_broker.servers, topic=topic, deadline_s=ENOUGH_S)
        assert done == DeliverySummary(acknowledged=110)
        got = list(replay(kafka_broker.servers, topic=topic))
        assert ids(r.id for r in got) == ids(records)
        assert [r.id for r in got if r.key == "KS4-24one"] == [record["alertId"] for record in one]

    def test_nothing_is_nothing(self, kafka_broker, topic):
        done = publish(iter([]), kafka_broker.servers, topic=topic, deadline_s=1.0)
        assert done == DeliverySummary()

    def test_stops_where_nobody_answers(self, topic):
        asked = iter(make_records(300))
        done = publish(asked, f"127.0.0.1:{free_port()}", topic=topic, deadline_s=1.0)
        assert (done.acknowledged, done.waiting) == (0, 100)
        assert len(list(asked)) == 200
