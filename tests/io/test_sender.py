"""The sender: order, growing waits, and what finds no room in the outbox."""

import logging

import pytest

from ks4diff.io import sender
from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.io.kafka_sink import KafkaSink
from ks4diff.io.outbox import Message, Outbox, State
from ks4diff.io.outbox_file import OutboxFull
from ks4diff.io.owed import Owed
from ks4diff.io.sender import Backoff, Sender
from ks4diff.io.sinks import ArchiveSink, DeliverySummary, TeeSink
from tests.io.test_sinks import PretendedProducer
from tests.sample_alert import make_candidate, make_exposure, make_records, make_report


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that only a sleep moves."""

    class Clock:
        now = 100.0
        slept = ()

        def sleep(self, seconds):
            self.slept += (seconds,)
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(sender.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(sender.time, "sleep", clock.sleep)
    return clock


def message(name, *, topic="t", key=None):
    return Message(alert_id=name, exposure="e", topic=topic, key=key or name, schema="s", payload=b"p")


class TestWaits:
    def test_double_up_to_a_minute(self, clock, outbox):
        outbox.add([message("a")])
        producer = PretendedProducer(lambda alert_id: State.PENDING)
        Sender(outbox, producer).flush(200.0, patient=True)
        assert clock.slept == (1, 2, 4, 8, 16, 32, 60, 60)
        assert producer.calls == 9

    def test_begin_anew_after_a_success(self, clock, outbox):
        answers = iter([State.PENDING] * 3 + [State.ACKNOWLEDGED, State.PENDING, State.ACKNOWLEDGED])
        outbox.add([message("a"), message("b", key="a")])
        producer = PretendedProducer(lambda alert_id: next(answers))
        assert Sender(outbox, producer).flush(100.0, patient=True) == DeliverySummary(acknowledged=2)
        assert clock.slept == (1, 2, 4, 1)
        assert [m.alert_id for m in producer.sent] == ["a"] * 4 + ["b"] * 2  # never overtaken

    def test_of_one_topic_do_not_hold_up_another(self, clock, outbox):
        outbox.add([message(f"bad{k}", topic="bad") for k in range(300)])
        outbox.add([message(f"good{k}") for k in range(300)])
        producer = PretendedProducer(lambda i: State.PENDING if "bad" in i else State.ACKNOWLEDGED)
        summary = Sender(outbox, producer).flush(50.0)
        assert summary == DeliverySummary(acknowledged=300, waiting=300)
        assert clock.slept == ()

    def test_are_not_longer_for_a_wall_clock_that_is_set(self, monkeypatch):
        monkeypatch.setattr(sender.time, "time", lambda: 0.0)
        backoff = Backoff(first_s=0.0)
        backoff.note(failed={"t"}, succeeded=set())
        assert backoff.paused() == []


def test_what_the_disk_has_no_room_to_note_is_noted_later(outbox, monkeypatch, caplog):
    outbox.add([message("a")])
    producer = PretendedProducer()
    one = Sender(outbox, producer)
    settle = Outbox.settle

    def full(self, outcomes):
        raise OutboxFull("outbox.db: database or disk is full")

    monkeypatch.setattr(Outbox, "settle", full)
    assert one.flush(5.0).waiting == 1
    assert "disk is full" in caplog.text
    monkeypatch.setattr(Outbox, "settle", settle)
    assert one.flush(5.0).waiting == 0
    assert len(producer.sent) == 1  # not sent again


class TestWithoutRoom:
    """A quota below what is to be sent: the archive keeps the rest, and it goes in order."""

    @pytest.fixture
    def parts(self, tmp_path):
        archive = ArchiveSink(lambda name: tmp_path / name / "alerts.avro", database=tmp_path / "ks4diff.db")
        outbox = Outbox(tmp_path / "outbox.db", quota=600_000)
        producer = PretendedProducer(lambda alert_id: State.PENDING)
        yield TeeSink(archive, KafkaSink(outbox, producer, archive=archive)), producer, outbox
        outbox.close()

    def test_nothing_is_lost_and_the_order_is_kept(self, parts, clock, caplog):
        tee, producer, outbox = parts
        records = [make_records(5, first=5 * k, object_id="KS4-one") for k in range(8)]
        for k, some in enumerate(records):
            tee.emit(f"e{k}", some)
            tee.complete(f"e{k}", make_exposure(exposure=f"e{k}"))
            tee.flush(1.0)
        assert "wait in the archive for room" in caplog.text
        assert caplog.records[0].levelno == logging.ERROR
        assert outbox.path.stat().st_size < 1_500_000
        assert tee.flush(1.0).waiting == 8 * 6
        producer.verdict = lambda alert_id: State.ACKNOWLEDGED
        producer.sent.clear()
        clock.sleep(60)
        assert tee.flush(60.0) == DeliverySummary(acknowledged=8 * 6)
        sent = [m.alert_id for m in producer.sent if m.topic == "ks4.alerts.v1"]
        assert sent == [record["alertId"] for some in records for record in some]
        assert {m.exposure for m in producer.sent if m.topic == "ks4.exposures.v1"} == {
            f"e{k}" for k in range(8)
        }

    def test_a_small_file_does_not_pass_a_large_one(self, parts, tmp_path):
        tee, _, outbox = parts
        tee.emit("large", make_records(20))
        tee.emit("small", make_records(1, first=20))
        assert outbox.counts()["pending"] < 20
        assert [one.exposure for one in Owed(tmp_path / "ks4diff.db").files()] == ["large", "small"]

    def test_a_file_that_is_gone_is_owed_no_more(self, parts, tmp_path, caplog):
        tee, _, outbox = parts
        tee.emit("large", make_records(20))
        (tmp_path / "large" / "alerts.avro").unlink()
        assert tee.flush(1.0).waiting == outbox.counts()["pending"] < 20
        assert "gone" in caplog.text

    def test_a_damaged_file_stays_owed_and_holds_nobody_up(self, parts, tmp_path, clock):
        tee, producer, _ = parts
        producer.verdict = lambda alert_id: State.ACKNOWLEDGED
        tee.emit("large", make_records(20))
        tee.emit("small", make_records(1, first=20))
        path = tmp_path / "large" / "alerts.avro"
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        first = tee.flush(1.0)
        assert first.waiting == 20
        assert producer.sent[-1].exposure == "small"
        path.write_bytes(whole)
        assert tee.flush(1.0) == DeliverySummary(acknowledged=21 - first.acknowledged)

    def test_without_an_archive_it_is_an_error(self, tmp_path):
        outbox = Outbox(tmp_path / "outbox.db", quota=100_000)
        with pytest.raises(OutboxFull):
            KafkaSink(outbox, PretendedProducer()).emit("e", make_records(5))
        outbox.close()


class TestTopics:
    def test_injected_alerts_never_go_to_the_public_topic(self, outbox):
        real, fake = make_records(2), make_records(1, first=2, candidate=make_candidate(injected=True))
        producer = PretendedProducer()
        sink = KafkaSink(outbox, producer, topic="t")
        sink.emit("e", [*real, *fake])
        sink.complete("e", make_exposure())
        sink.flush(5.0)
        topics = {m.alert_id: m.topic for m in producer.sent}
        assert [topics[record["alertId"]] for record in real] == ["t", "t"]
        assert [topics[record["alertId"]] for record in fake] == ["t.test"]
        assert topics[make_exposure()["messageId"]] == "ks4.exposures.v1"

    def test_the_wire_format_is_the_settings(self, outbox):
        producer = PretendedProducer()
        sink = KafkaSink(outbox, producer, settings=KafkaConfig(wire="confluent"))
        sink.emit("e", make_records(1))
        sink.complete("e", make_exposure())
        sink.flush(5.0)
        assert [m.payload[:5] for m in producer.sent] == [b"\0\0\0\0\x64", b"\0\0\0\x27\x74"]
        assert [m.schema for m in producer.sent] == ["ks4.alert 1.0", "ks4.exposure 1.0"]


def test_an_exposure_that_is_done_again_with_more_is_told_again():
    done, again = make_exposure(), make_exposure(seconds_total=99.0)
    assert done["messageId"] == again["messageId"]
    chips = [dict(chip, status="ok") for chip in make_report()["chips"]]
    assert make_exposure(chips=chips)["messageId"] != done["messageId"]
