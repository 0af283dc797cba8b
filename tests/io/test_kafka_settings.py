"""How Kafka is reached: from a file, from the environment, and for real through TLS and SASL."""

import uuid

import pytest

from ks4diff.io.kafka_settings import KafkaConfig, client_options, servers_of
from ks4diff.io.listen import tail
from ks4diff.io.outbox import Outbox, read_status
from ks4diff.io.sender import DeliverySummary
from ks4diff.io.sinks import KafkaSink, open_sink
from ks4diff.io.stream import AlertProducer
from ks4diff.pipeline.config import PipelineConfig, read_config
from ks4diff.products.errors import ConfigError, InputError
from tests.broker.broker import PASSWORD, USER, Broker, missing_tools
from tests.sample_alert import make_records


def test_nothing_is_asked_of_a_plain_connection():
    assert client_options(KafkaConfig(), {}) == {}


@pytest.mark.parametrize("tls", [True, False])
def test_sasl_with_and_without_tls(tls, caplog):
    settings = KafkaConfig(sasl="PLAIN", user="u", tls=tls)
    options = client_options(settings, {"KS4DIFF_KAFKA_PASSWORD": "p"})
    assert options["security_protocol"] == ("SASL_SSL" if tls else "SASL_PLAINTEXT")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert ("password goes over the network" in caplog.text) is not tls


def test_a_certificate_means_tls(tmp_path):
    (tmp_path / "ca.pem").touch()
    options = client_options(KafkaConfig(ca_file=str(tmp_path / "ca.pem")), {})
    assert (options["security_protocol"], options["ssl_cafile"]) == ("SSL", str(tmp_path / "ca.pem"))


def test_the_environment_goes_before_the_file():
    settings = KafkaConfig(servers="file:1", sasl="PLAIN", user="file")
    env = {"KS4DIFF_KAFKA_SASL": "SCRAM-SHA-256", "KS4DIFF_KAFKA_USER": "env", "KS4DIFF_KAFKA_PASSWORD": "p"}
    env |= {"KS4DIFF_KAFKA_TLS": "1", "KS4DIFF_KAFKA_SERVERS": "env:1"}
    options = client_options(settings, env)
    assert options["sasl_mechanism"] == "SCRAM-SHA-256"
    assert options["sasl_plain_username"] == "env"
    assert options["security_protocol"] == "SASL_SSL"
    assert [servers_of(given, settings, env) for given in ("option:1", None)] == ["option:1", "env:1"]
    assert servers_of(None, settings, {}) == "file:1"
    assert servers_of(None, KafkaConfig(), {}) is None


@pytest.mark.parametrize(
    ("settings", "env", "message"),
    [
        ({"ca_file": "/gone.pem"}, {}, "ca_file: no file /gone.pem"),
        ({"sasl": "PLAIN", "user": "u"}, {}, "KS4DIFF_KAFKA_PASSWORD in the environment"),
        ({"sasl": "PLAIN"}, {"KS4DIFF_KAFKA_PASSWORD": "p"}, "needs a user"),
        ({}, {"KS4DIFF_KAFKA_SASL": "GSSAPI"}, "PLAIN, SCRAM-SHA-256"),
    ],
)
def test_what_cannot_be_is_refused(settings, env, message):
    with pytest.raises(ConfigError, match=message):
        client_options(KafkaConfig(**settings), env)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('topic = "a b"', "topic 'a b'"),
        ('wire = "json"', "container or confluent"),
        ('sasl = "NONE"', "sasl 'NONE'"),
        ("outbox_gigabytes = 0", "above 0"),
        ('password = "secret"', "unknown key 'password'"),
    ],
)
def test_a_file_is_checked(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(f"[kafka]\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.toml")


def test_where_alerts_go_gives_them_no_new_ids(tmp_path):
    (tmp_path / "c.toml").write_text('[kafka]\nservers = "h:1"\nwire = "confluent"\n')
    config = read_config(tmp_path / "c.toml")
    assert config.kafka.wire == "confluent"
    assert config.digest() == PipelineConfig().digest()


@pytest.fixture(scope="module")
def secure_broker(kafka_broker):  # that one skips, or fails, where none can run
    assert missing_tools() is None
    broker = Broker(secure=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


@pytest.mark.kafka
class TestForReal:
    @pytest.fixture(autouse=True)
    def password(self, monkeypatch):
        monkeypatch.setenv("KS4DIFF_KAFKA_PASSWORD", PASSWORD)

    @pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-512"])
    def test_alerts_go_and_come_through_tls_and_sasl(self, secure_broker, tmp_path, sasl):
        text = f'servers = "{secure_broker.secure_servers}"\nuser = "{USER}"\nsasl = "{sasl}"\n'
        there_and_back(tmp_path, text + f'ca_file = "{secure_broker.ca_file}"\n')

    def test_alerts_go_and_come_by_a_certificate_of_our_own(self, secure_broker, tmp_path):
        certificate, key = secure_broker.client_files
        text = f'servers = "{secure_broker.mutual_servers}"\nca_file = "{secure_broker.ca_file}"\n'
        there_and_back(tmp_path, text + f'cert_file = "{certificate}"\nkey_file = "{key}"\n')

    def test_without_our_certificate_alerts_wait(self, secure_broker, tmp_path):
        settings = KafkaConfig(ca_file=str(secure_broker.ca_file))
        reason = why_one_waits(tmp_path, secure_broker.mutual_servers, settings)
        assert "wrong password or certificate?" in reason

    def test_a_wrong_password_waits_and_says_so(self, secure_broker, tmp_path, monkeypatch):
        monkeypatch.setenv("KS4DIFF_KAFKA_PASSWORD", "wrong")
        settings = KafkaConfig(ca_file=str(secure_broker.ca_file), sasl="PLAIN", user=USER)
        reason = why_one_waits(tmp_path, secure_broker.secure_servers, settings)
        assert "wrong password or certificate?" in reason

    def test_an_unknown_certificate_is_not_trusted(self, secure_broker, tmp_path):
        settings = KafkaConfig(tls=True, sasl="PLAIN", user=USER)
        why_one_waits(tmp_path, secure_broker.secure_servers, settings)
        with pytest.raises(InputError, match="no answer"):
            list(tail(secure_broker.secure_servers, topic="t", timeout_s=1.0, settings=settings))


def there_and_back(folder, text):
    """Send three alerts as a configuration says, and read them again."""
    topic = f"test.{uuid.uuid4().hex[:12]}"
    (folder / "c.toml").write_text(f'[kafka]\ntopic = "{topic}"\n{text}')
    settings = read_config(folder / "c.toml").kafka
    sink = open_sink(lambda exposure: folder / "alerts.avro", folder, settings=settings)
    sink.emit("e", make_records(3))
    assert sink.flush(30.0) == DeliverySummary(acknowledged=3)
    sink.close()
    options = {"topic": topic, "from_beginning": True, "limit": 3, "timeout_s": 30.0}
    got = list(tail(settings.servers, **options, settings=settings))
    assert {r.record["alertId"] for r in got} == {record["alertId"] for record in make_records(3)}


def why_one_waits(folder, servers, settings):
    """Return the reason in the outbox why an alert could not be sent."""
    sink = KafkaSink(Outbox(folder / "outbox.db"), AlertProducer(servers, settings))
    sink.emit("e", make_records(1))
    assert sink.flush(20.0) == DeliverySummary(waiting=1)
    sink.close()
    return next(iter(read_status(folder / "outbox.db").reasons))
