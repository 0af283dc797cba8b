"""``ks4diff alerts replay`` and ``verify``: the archive again, and against index, outbox and Kafka."""

import json
import shutil
import sqlite3
import time
import uuid
from contextlib import closing

import pytest
from typer.testing import CliRunner

from ks4diff.cli.alerts import app
from ks4diff.cli.output import alert_line
from ks4diff.io.outbox import Outbox, Outcome, State
from ks4diff.io.packets import container_bytes, read_container, withdrawal
from ks4diff.io.publish import publish
from ks4diff.io.sinks import open_sink
from ks4diff.products.errors import ConfigError, InputError
from tests.broker.broker import free_port
from tests.sample_alert import make_candidate, make_records

NIGHT = "20240423"
FIRST, SECOND, EMPTY = (f"kmts.{NIGHT}.{number:06d}" for number in (1, 2, 3))
EARLY = make_records(3, exposure=FIRST, candidate=make_candidate(mjd=60423.5))
LATE = make_records(2, first=3, exposure=SECOND, candidate=make_candidate(mjd=60424.5, rb=0.6, ra=124.0))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fill(out, *, kafka=None, topic=None):
    """A run's folder: two exposures with alerts, in no order of time, and one without."""
    options = {} if kafka is None else {"kafka": kafka, "topic": topic}
    sink = open_sink(lambda exposure: out / NIGHT / exposure / "alerts.avro", out, **options)
    for exposure, records in ((SECOND, LATE), (EMPTY, []), (FIRST, EARLY)):
        sink.emit(exposure, records)
    sink.flush(10.0)
    sink.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    out = tmp_path_factory.mktemp("archive")
    fill(out)
    return out


@pytest.fixture
def damaged(archive, tmp_path):
    """A copy of the archive, to be damaged."""
    return shutil.copytree(archive, tmp_path / "out")


def lines(records):
    return [alert_line(record) for record in records]


class TestReplayOfAnArchive:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ([], EARLY + LATE),
            (["--limit", 4], EARLY + LATE[:1]),
            (["--night", NIGHT], EARLY + LATE),
            (["--night", "20240424"], []),
            (["--exposure", SECOND], LATE),
            (["--object", EARLY[1]["objectId"]], EARLY[1:2]),
            (["--from", "2024-04-24"], LATE),
            (["--to", "2024-04-24T00:00:00Z"], EARLY),
            (["--from", "2024-04-23T14:00:00+02:00", "--to", "2024-04-24"], EARLY),
            (["--min-rb", 0.9], EARLY),
            (["--filter", "rb < 0.9 and filter == 'R'"], LATE),
            (["--cone", "124,-34.567891,0.001"], LATE),
            (["--event", "S190814bv"], []),
        ],
    )
    def test_is_in_order_of_time_and_as_asked(self, archive, options, expected):
        result = run("replay", archive, *options)
        assert result.exit_code == 0
        assert result.stdout.splitlines() == lines(expected)

    def test_saves_and_prints_json_at_its_pace(self, archive, tmp_path):
        started = time.monotonic()
        words = ("--json", "--save", tmp_path, "--rate", 10)
        result = run("replay", archive, "--exposure", FIRST, *words)
        assert time.monotonic() - started > 0.19
        assert [json.loads(line)["alertId"] for line in result.stdout.splitlines()] == [
            record["alertId"] for record in EARLY
        ]
        for record in EARLY:
            saved = tmp_path / f"{record['alertId']}.avro"
            assert saved.read_bytes() == container_bytes([record])
            assert saved.with_suffix(".png").is_file()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "name a run's folder"),
            (["{}", "--to-topic", "again"], "--to-topic needs --kafka"),
            (["--kafka", "h:1", "--topic", "t", "--to-topic", "t"], "is the topic itself"),
            (["{}", "--from", "yesterday"], "--from 'yesterday'"),
            (["{}", "--filter", "rbb > 0.5"], "no field 'rbb'"),
            (["{}", "--cone", "1,2"], "--cone '1,2'"),
            (["{}", "--topic", "a b"], "topic 'a b'"),
        ],
    )
    def test_bad_usage_is_named(self, archive, options, message):
        result = run("replay", *[option.format(archive) for option in options])
        assert isinstance(result.exception, ConfigError)
        assert message in str(result.exception)

    def test_a_folder_without_an_archive_stays_as_it_is(self, tmp_path):
        for command in ("replay", "verify"):
            result = run(command, tmp_path)
            assert isinstance(result.exception, InputError)
            assert "no such archive" in str(result.exception)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_not_what_the_index_says_is_named(self, damaged):
        path = damaged / NIGHT / FIRST / "alerts.avro"
        path.write_bytes(container_bytes(EARLY[:2]))
        result = run("replay", damaged)
        assert isinstance(result.exception, InputError)
        assert EARLY[2]["alertId"] in str(result.exception)


class TestVerifyOffline:
    def test_what_agrees_is_well(self, archive):
        result = run("verify", archive)
        assert (result.exit_code, result.stdout) == (0, "exposures 3, archived 5\n")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda out: (out / NIGHT / FIRST / "alerts.avro").unlink(), "No such file"),
            (lambda out: (out / NIGHT / FIRST / "alerts.avro").write_bytes(b"Obj\x01"), "damaged Avro"),
            (lambda out: reverse(out / NIGHT / FIRST / "alerts.avro"), "is indexed as number 0"),
            (lambda out: shutil.copytree(out / NIGHT / FIRST, out / NIGHT / "x"), "is archived twice"),
            (
                lambda out: forget(out, EARLY[0]),
                f"alert {EARLY[0]['alertId']}, number 0, is not in the index",
            ),
        ],
    )
    def test_disagreement_is_told_and_exit_2(self, damaged, damage, message):
        damage(damaged)
        result = run("verify", damaged)
        assert isinstance(result.exception, InputError)  # which main turns into exit code 2
        assert "archive and index disagree" in str(result.exception)
        assert message in result.stdout

    def test_what_waits_in_the_outbox_is_exit_3(self, tmp_path):
        fill(tmp_path, kafka=f"127.0.0.1:{free_port()}", topic="t")
        outbox = Outbox(tmp_path / "outbox.db")
        outbox.settle([Outcome(alert_id=one["alertId"], state=State.ACKNOWLEDGED) for one in EARLY])
        outbox.close()
        result = run("verify", tmp_path, "--json")
        assert result.exit_code == 3
        found = json.loads(result.stdout)
        assert (found["archived"], found["in_outbox"]) == (5, 5)
        assert [one["alertId"] for one in found["findings"]] == [one["alertId"] for one in LATE]
        assert "refused" in found["findings"][0]["remark"]


def reverse(path):
    path.write_bytes(container_bytes(read_container(path).records[::-1]))


def forget(out, record):
    with closing(sqlite3.connect(out / "ks4diff.db")) as db:
        db.execute("DELETE FROM alerts WHERE alert_id = ?", (record["alertId"],))
        db.commit()


@pytest.mark.kafka
def test_replay_and_verify_with_kafka(kafka_broker, tmp_path):
    """What is missing, changed, extra and withdrawn is told; what is sent again is there again."""
    topic, servers = f"test.{uuid.uuid4().hex[:12]}", kafka_broker.servers
    where = ("--kafka", servers, "--topic", topic)
    fill(tmp_path, kafka=f"127.0.0.1:{free_port()}", topic=topic)
    nothing = run("verify", tmp_path, *where)
    assert nothing.exit_code == 3
    assert "in kafka 0, missing 5" in nothing.stdout

    sent = run("replay", tmp_path, "--exposure", FIRST, "--to-topic", topic, "--kafka", servers)
    assert (sent.exit_code, sent.stdout) == (0, "acknowledged 3, waiting 0, dead 0\n")
    changed = {**LATE[0], "candidate": {**LATE[0]["candidate"], "magpsf": 20.0}}
    later = {**EARLY[0], "provenance": {**EARLY[0]["provenance"], "t_packed": 1.0}}
    others = make_records(1, first=9, exposure=FIRST) + make_records(1, first=10, exposure="kmts.20240423.9")
    publish(
        [changed, later, *others, withdrawal(EARLY[1], "test", 60425.0)], servers, topic=topic, deadline_s=20
    )
    result = run("verify", tmp_path, *where, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    counts = {
        name: found[name] for name in ("archived", "in_kafka", "missing", "different", "extra", "copies")
    }
    assert counts == {
        "archived": 5,
        "in_kafka": 4,
        "missing": 1,
        "different": 1,
        "extra": 1,
        "copies": 1,
    }
    assert found["withdrawn"] == 1
    told = {one["finding"]: one for one in found["findings"]}
    assert told["missing"]["alertId"] == LATE[1]["alertId"]
    assert told["missing"]["exposure"] == SECOND
    assert "outbox: pending" in told["missing"]["remark"]
    assert told["different"]["remark"] == "differs in candidate.magpsf"
    assert told["extra"]["alertId"] == others[0]["alertId"]

    again = f"{topic}.again"
    assert run("replay", *where, "--object", EARLY[2]["objectId"], "--to-topic", again).exit_code == 0
    shown = run("replay", "--kafka", servers, "--topic", again)
    assert shown.stdout.splitlines() == lines(EARLY[2:])
    assert run("replay", *where, "--from", "2024-04-23", "--to", "2024-04-24").stdout == ""
    state = json.loads(run("status", tmp_path, *where, "--json").stdout)
    assert (state["messages"], state["pending"], state["lag"]) == (8, 5, {})


def test_replay_to_a_broker_that_is_away_is_exit_3(archive):
    servers = f"127.0.0.1:{free_port()}"
    result = run("replay", archive, "--to-topic", "t", "--kafka", servers, "--deadline", 1)
    assert result.exit_code == 3
    assert result.stdout == "acknowledged 0, waiting 5, dead 0\n"
