"""``ks4diff alerts`` as a person or a script sees it."""

import json
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from typer.testing import CliRunner

from ks4diff.cli.alerts import app
from ks4diff.cli.alerts_options import DEFAULT_TOPIC
from ks4diff.cli.output import alert_line, json_record
from ks4diff.io import kafka_settings, sinks
from ks4diff.io.outbox import Outbox, Outcome, State, read_status
from ks4diff.io.packets import alert_schema, container_bytes, read_container
from ks4diff.io.publish import publish
from ks4diff.products.errors import ConfigError, InputError
from tests.broker.broker import free_port
from tests.sample_alert import SAMPLE, make_candidate, make_records

COMMANDS = ("tail", "replay", "show", "verify", "resend", "withdraw", "status", "schema")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def filled(folder, records, **options):
    sink = sinks.open_sink(lambda exposure: folder / "alerts.avro", folder, **options)
    sink.emit("e1", records)
    summary = sink.flush(30.0)
    sink.close()
    return summary


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: ks4diff alerts {command}" in result.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys, ks4diff.cli.alerts\n"
        "heavy = {'kafka', 'fastavro', 'sqlalchemy', 'astropy', 'numpy', 'numba'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_topic_is_the_sinks():
    assert kafka_settings.DEFAULT_TOPIC == DEFAULT_TOPIC


def test_show_prints_schema_and_a_line_per_alert(tmp_path):
    records = make_records(3)
    (tmp_path / "alerts.avro").write_bytes(container_bytes(records))
    result = run("show", tmp_path / "alerts.avro")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "ks4.v1_0.alert" in lines[0]
    assert lines[1:] == [alert_line(record) for record in records]
    for line, record in zip(lines[1:], records, strict=True):
        assert record["alertId"] in line
        assert str(record["candid"]) in line


def test_show_json_is_one_object_a_line():
    result = run("show", SAMPLE / "alert.avro", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        json_record(record) for record in read_container(SAMPLE / "alert.avro").records
    ]


def test_a_line_of_unknowns_is_made_of_dashes():
    record = make_records(1, candidate=make_candidate(ra=None, dec=None, rb=None))[0]
    line = alert_line(record)
    assert "None" not in line
    assert "nan" not in line
    assert len(line) == len(alert_line(make_records(1)[0]))
    assert alert_line({"objectId": "ZTF18abc", "candidate": None}).count("-") > 5


def test_json_has_no_nan_and_no_bytes():
    assert json_record({"a": float("nan"), "b": b"xyz", "c": (1, True, None, "t")}) == {
        "a": None,
        "b": {"bytes": 3},
        "c": [1, True, None, "t"],
    }


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["show", "{}/gone.avro"], InputError, "gone.avro"),
        (["show", "{}/text.avro"], InputError, "text.avro: not an Avro container"),
        (["status", "{}"], InputError, "outbox.db: no such outbox"),
        (["resend", "{}", "--kafka", "localhost:9092"], InputError, "outbox.db: no such outbox"),
        (["resend", "{}", "--kafka", "localhost"], ConfigError, "HOST:PORT"),
        (["resend", "{}"], ConfigError, "no Kafka servers"),
        (["withdraw", "{}", "a", "--reason", "b", "--kafka", "h:1"], InputError, "no such archive"),
        (["tail"], ConfigError, "no Kafka servers"),
        (["tail", "--kafka", "localhost"], ConfigError, "HOST:PORT"),
        (["status"], ConfigError, "name a run's folder"),
        (["tail", "--kafka", "localhost:1", "--topic", "a b"], ConfigError, "topic 'a b'"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, arguments, kind, message):
    (tmp_path / "text.avro").write_text("hello")
    result = run(*[argument.format(tmp_path) for argument in arguments])
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"text.avro"}  # nothing made by asking


@pytest.mark.parametrize(
    "arguments", [["tail", "x"], ["withdraw", "x", "y"], ["show"], ["tail", "--kafka", "h:1", "--limit", "0"]]
)
def test_bad_usage_is_exit_2(arguments):
    assert run(*arguments).exit_code == 2


def test_schema_prints_the_newest():
    printed = json.loads(run("schema").stdout)
    assert printed["name"] == "ks4.v1_0.alert"
    assert [field["name"] for field in printed["fields"]] == [f["name"] for f in alert_schema()["fields"]]


def test_status_counts_by_state(tmp_path):
    filled(tmp_path, make_records(2), kafka=f"127.0.0.1:{free_port()}")
    outbox = Outbox(tmp_path / "outbox.db")
    refused = outbox.claim(1)[0].alert_id
    outbox.settle([Outcome(alert_id=refused, state=State.DEAD, reason="too large")])
    outbox.close()
    counts = json.loads(run("status", tmp_path, "--json").stdout)
    assert {name: counts[name] for name in State} == {
        "pending": 1,
        "inflight": 0,
        "acknowledged": 0,
        "dead": 1,
    }
    text = run("status", tmp_path).stdout
    assert "pending 1" in text
    assert "1 undelivered: too large" in text


def test_resend_without_a_broker_is_exit_3_and_soon(tmp_path):
    servers = f"127.0.0.1:{free_port()}"
    filled(tmp_path, make_records(2), kafka=servers)
    started = time.monotonic()
    result = run("resend", tmp_path, "--kafka", servers, "--json", "--deadline", "2")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"acknowledged": 0, "waiting": 2, "dead": 0}
    assert time.monotonic() - started < 10


@pytest.mark.kafka
def test_resend_then_tail(kafka_broker, tmp_path):
    topic = f"test.{uuid.uuid4().hex[:12]}"
    good = make_records(3, candidate=make_candidate(rb=0.9))
    poor = make_records(1, first=3, candidate=make_candidate(rb=0.2))
    assert filled(tmp_path, good + poor, kafka=f"127.0.0.1:{free_port()}", topic=topic).waiting == 4

    result = run("resend", tmp_path, "--kafka", kafka_broker.servers)
    assert (result.exit_code, result.stdout) == (0, "acknowledged 4, waiting 0, dead 0\n")
    again = run("resend", tmp_path, "--kafka", kafka_broker.servers, "--json")
    assert json.loads(again.stdout)["acknowledged"] == 0
    assert read_status(tmp_path / "outbox.db").counts["acknowledged"] == 4

    options = [
        "tail",
        "--kafka",
        kafka_broker.servers,
        "--topic",
        topic,
        "--from-beginning",
        "--timeout",
        "3",
    ]
    everything = run(*options, "--limit", 4)
    assert sorted(everything.stdout.splitlines()) == sorted(alert_line(record) for record in good + poor)
    better = run(*options, "--min-rb", 0.5, "--json", "--save", tmp_path / "saved")
    shown = [json.loads(line) for line in better.stdout.splitlines()]
    assert sorted(alert["alertId"] for alert in shown) == sorted(record["alertId"] for record in good)
    assert {alert["kafka"]["topic"] for alert in shown} == {topic}
    for record in good:
        path = tmp_path / "saved" / f"{record['alertId']}.avro"
        assert path.read_bytes() == container_bytes([record])
    assert len(list((tmp_path / "saved").glob("*.png"))) == 3
    assert len(run(*options, "--limit", 2).stdout.splitlines()) == 2


@pytest.mark.kafka
def test_tail_with_cuts_in_a_group(kafka_broker, tmp_path):
    """What does not pass is done with too; a second call goes on, and drops what came a second time."""
    topic = f"test.{uuid.uuid4().hex[:12]}"
    bright, faint = make_records(2, candidate=make_candidate(scorr=30.0)), make_records(2, first=2)
    options = ["--kafka", kafka_broker.servers, "--topic", topic, "--from-beginning", "--timeout", "0.5"]
    options += ["--group", topic, "--seen", tmp_path / "seen.db"]
    cuts = ["--filter", "scorr > 29", "--cone", "123.4568,-34.5679,0.01", "--min-rb", 0.9]
    filled(tmp_path, bright + faint, kafka=kafka_broker.servers, topic=topic)
    shown = run("tail", *options, *cuts)
    assert shown.exit_code == 0
    assert sorted(shown.stdout.splitlines()) == sorted(alert_line(record) for record in bright)
    publish(bright + make_records(1, first=4), kafka_broker.servers, topic=topic, deadline_s=30.0)
    shown = run("tail", *options)
    assert shown.stdout.splitlines() == [alert_line(make_records(1, first=4)[0])]
    state = run("status", *options[:4], "--group", topic)
    assert state.stdout == f"topic {topic}: 7 messages\ngroup {topic}: 0 still to read\n"


@pytest.mark.kafka
def test_every_reader_goes_where_the_configuration_says(kafka_broker, tmp_path):
    """Servers and topic of [kafka]; its TLS and SASL are those of the producers, tested with them."""
    topic = f"test.{uuid.uuid4().hex[:12]}"
    config = tmp_path / "kafka.toml"
    config.write_text(f'[kafka]\nservers = "{kafka_broker.servers}"\ntopic = "{topic}"\n')
    filled(tmp_path, make_records(2), kafka=kafka_broker.servers, topic=topic)
    lines = sorted(alert_line(record) for record in make_records(2))
    words = ("--config", config)
    for command in (("tail", "--from-beginning", "--limit", 2), ("replay",)):
        assert sorted(run(*command, *words).stdout.splitlines()) == lines
    explicit = ("--kafka", kafka_broker.servers)
    assert "in kafka 2, missing 0" in run("verify", tmp_path, *explicit, *words).stdout
    assert f"topic {topic}: 2 messages" in run("status", *explicit, *words).stdout
    config.write_text('[kafka]\nca_file = "/gone.pem"\n')
    for command in ("tail", "replay"):
        assert "no file /gone.pem" in str(run(command, *explicit, *words).exception)


@pytest.mark.kafka
def test_the_readmes_consumer_reads_from_a_real_broker(kafka_broker, tmp_path):
    """As printed there, but for server, topic and a group that begins with the oldest alert."""
    topic = f"test.{uuid.uuid4().hex[:12]}"
    records = make_records(3) + make_records(1, first=3, candidate=make_candidate(rb=0.5))
    filled(tmp_path, records, kafka=kafka_broker.servers, topic=topic)
    reader = KafkaConsumer(bootstrap_servers=kafka_broker.servers, group_id=topic)
    starts = {TopicPartition(topic, number): OffsetAndMetadata(0, "", -1) for number in range(4)}
    reader.commit(starts)
    reader.close()
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 11
    for printed, ours in (("localhost:9092", kafka_broker.servers), ("ks4.alerts.v1", topic)):
        assert printed in block
        block = block.replace(printed, ours)
    command = [sys.executable, "-u", "-c", block.replace("my-group", topic)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(3)]
        finally:
            process.kill()
    assert sorted(lines) == [f"KS4-2400000{k} 123.456789 -34.567891 R 21.4996 t\n" for k in range(3)]
