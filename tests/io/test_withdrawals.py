"""Alerts that are taken back: in the archive, and behind the alert in Kafka."""

import uuid

import pytest
from typer.testing import CliRunner

from ks4diff.cli.alerts import app
from ks4diff.io.alert_index import AlertIndex
from ks4diff.io.listen import tail
from ks4diff.io.packets import read_container, without_times
from ks4diff.io.sinks import ArchiveSink, open_sink
from ks4diff.io.withdrawals import archive_withdrawal
from ks4diff.products.errors import InputError
from tests.sample_alert import make_records


@pytest.fixture
def archive(tmp_path):
    made = ArchiveSink(lambda name: tmp_path / name / "alerts.avro", database=tmp_path / "ks4diff.db")
    made.emit("e1", make_records(3))
    return made


def test_the_alert_stays_and_its_withdrawal_stands_beside_it(archive, tmp_path):
    alert = make_records(3)[1]
    withdrawn = archive_withdrawal(archive.database, alert["alertId"], "a ghost", when=60500.0)
    (record,) = read_container(tmp_path / "e1" / "withdrawn.avro").records
    assert record == withdrawn.records[0]
    assert record["alertType"] == "withdrawn"
    assert record["withdrawal"] == {"alertId": alert["alertId"], "reason": "a ghost", "t_withdrawn": 60500.0}
    assert (record["candid"], record["objectId"]) == (alert["candid"], alert["objectId"])
    assert read_container(tmp_path / "e1" / "alerts.avro").records == make_records(3)
    ids = {row["alert_id"] for row in AlertIndex(archive.database).rows("e1")}
    assert ids == {record["alertId"] for record in make_records(3)} | {withdrawn.alert_id}


def test_asked_again_it_is_the_same(archive, tmp_path):
    number = make_records(1)[0]["alertId"]
    first = archive_withdrawal(archive.database, number, "a ghost", when=60500.0)
    assert archive_withdrawal(archive.database, number, "a ghost", when=60501.0) == first
    assert len(read_container(tmp_path / "e1" / "withdrawn.avro").records) == 1


def test_a_rerun_keeps_it(archive):
    number = make_records(1)[0]["alertId"]
    withdrawn = archive_withdrawal(archive.database, number, "a ghost", when=60500.0)
    archive.emit("e1", make_records(3))
    assert AlertIndex(archive.database).find(withdrawn.alert_id) is not None


def test_what_cannot_be_withdrawn(archive, tmp_path):
    with pytest.raises(InputError, match="no alert nonsense"):
        archive_withdrawal(archive.database, "nonsense", "r", when=0.0)
    with pytest.raises(InputError, match="no such archive"):
        archive_withdrawal(tmp_path / "gone.db", "x", "r", when=0.0)
    withdrawn = archive_withdrawal(archive.database, make_records(1)[0]["alertId"], "r", when=0.0)
    with pytest.raises(InputError, match="is a withdrawal itself"):
        archive_withdrawal(archive.database, withdrawn.alert_id, "r", when=0.0)
    (tmp_path / "e1" / "alerts.avro").unlink()
    with pytest.raises(InputError, match=r"alerts\.avro"):
        archive_withdrawal(archive.database, make_records(2)[1]["alertId"], "r", when=0.0)


@pytest.mark.kafka
def test_consumers_get_it_after_the_alert(kafka_broker, tmp_path):
    topic = f"test.{uuid.uuid4().hex[:12]}"
    records = make_records(3)
    sink = open_sink(lambda name: tmp_path / "alerts.avro", tmp_path, kafka=kafka_broker.servers, topic=topic)
    sink.emit("e1", records)
    sink.flush(30.0)
    sink.close()
    words = ["withdraw", str(tmp_path), records[1]["alertId"], "--reason", "a ghost"]
    told = CliRunner().invoke(app, [*words, "--kafka", kafka_broker.servers, "--topic", topic])
    assert told.exit_code == 0, told.output
    options = {"topic": topic, "from_beginning": True, "limit": 4, "timeout_s": 30.0}
    got = list(tail(kafka_broker.servers, **options))
    of_object = [one for one in got if one.record["objectId"] == records[1]["objectId"]]
    assert [one.record["alertType"] for one in of_object] == ["update", "withdrawn"]
    assert of_object[0].partition == of_object[1].partition
    assert of_object[1].record["alertId"] == told.stdout.strip()
    archived = read_container(tmp_path / "withdrawn.avro").records
    assert without_times(archived[0]) == without_times(of_object[1].record)
