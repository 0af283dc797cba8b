"""A real single-node Apache Kafka (KRaft) on a free loopback port, for tests and ``make kafka``.

``python tests/broker/broker.py --port 9092`` runs one in the foreground.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

POM = Path(__file__).resolve().parent / "pom.xml"
VERSION = re.search(r"<kafka\.version>(.+)</kafka\.version>", POM.read_text(encoding="utf-8"))[1]
INSTALL = "needs Java 17 and Maven: apt-get install openjdk-17-jdk-headless maven"
# Serial collector and client compiler: a broker that lives for seconds should start fast.
_JVM = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
# Session 2 s, not 9: a killed broker may come back only when its old session has timed out.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}/log
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
"""

# Beside it, TLS with a certificate of its own: SASL by password, or a certificate of the client's.
_SECURE = """\
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
required;
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={data}/server.pem
listener.name.mutual.ssl.keystore.type=PEM
listener.name.mutual.ssl.keystore.location={data}/server.pem
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location={data}/client.pem
listener.name.mutual.ssl.client.auth=required
"""
USER, PASSWORD = "alice", "not-a-secret"


def missing_tools() -> str | None:
    """What keeps a broker from running here, or None."""
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"no {' and no '.join(missing)}: {INSTALL}" if missing else None


def install_jars() -> Path:
    """The folder of Kafka's jars, fetched from Maven Central at the first call (44 MB)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ks4diff"
    folder = cache / f"kafka-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Of several processes that install at a time, the first rename wins; none sees half a folder.
    with tempfile.TemporaryDirectory(prefix=".kafka-", dir=cache) as temporary:
        jars = Path(temporary) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        options = ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(f"Maven could not fetch Kafka {VERSION}:\n{done.stdout[-2000:]}{done.stderr}")
        try:
            jars.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[str]:
    """Yield a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def make_certificate(certificate: Path) -> Path:
    """Write a certificate of 127.0.0.1 that proves itself; return the file of its key, beside it."""
    key = certificate.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return key


class Broker:
    """A broker in a process of its own: ``start``, ``pause``, ``resume``, ``kill``, ``stop``.

    Topics and messages survive ``kill`` and ``stop``; ``close`` removes them. The port stays the
    same through restarts. With ``secure``, ``secure_servers`` and ``mutual_servers`` speak TLS, proven by
    ``ca_file``; the former ask for ``USER`` and ``PASSWORD`` by SASL, PLAIN or SCRAM-SHA-512, the latter for
    the certificate of ``client_files``, (certificate, key).
    """

    def __init__(self, *, port: int | None = None, secure: bool = False) -> None:
        self._jars = install_jars()
        self.port = port or free_port()
        self.servers = f"127.0.0.1:{self.port}"
        self._data = Path(tempfile.mkdtemp(prefix="ks4diff-kafka-"))
        self.ca_file = self._data / "ca.pem"
        self.log = self._data / "broker.log"
        self._config = self._data / "server.properties"
        text = _PROPERTIES.format(port=self.port, controller=free_port(), data=self._data)
        self.process: subprocess.Popen | None = None
        cluster = "ks4diffTestBroker00000"  # any 22 characters of base64
        words = ["format", "-t", cluster, "-c", str(self._config)]
        if secure:
            self.secure_servers, self.mutual_servers = (f"127.0.0.1:{free_port()}" for _ in range(2))
            key = make_certificate(self.ca_file)
            (self._data / "server.pem").write_text(key.read_text() + self.ca_file.read_text())
            self.client_files = self._data / "client.pem", make_certificate(self._data / "client.pem")
            more = f"SECURE://{self.secure_servers},MUTUAL://{self.mutual_servers},"
            text = text.replace("listeners=PLAINTEXT", f"listeners={more}PLAINTEXT")
            text = text.replace("protocol.map=", "protocol.map=SECURE:SASL_SSL,MUTUAL:SSL,")
            text += _SECURE.format(user=USER, password=PASSWORD, data=self._data)
            words += ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
        self._config.write_text(text, encoding="utf-8")
        self._java("kafka.tools.StorageTool", *words).wait(60)

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start the process and return when it answers."""
        self.process = self._java("kafka.Kafka", str(self._config))
        end = time.monotonic() + timeout_s
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"Kafka did not start on port {self.port}:\n{tail}")
            time.sleep(0.05)

    def pause(self) -> None:
        """Freeze the process: connections stay open and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process in order."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """End the process and remove its data."""
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _java(self, main: str, *arguments: str) -> subprocess.Popen:
        logging = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        command = ["java", *_JVM, logging, "-cp", f"{self._jars}/*", main, *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
            )

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.servers, bootstrap_timeout_ms=1000)
        except (KafkaError, OSError):
            return False
        try:
            return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            admin.close()


def _die_with_parent() -> None:
    """Have Linux end the broker when its parent ends, even by SIGKILL; elsewhere it may stay behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    """Run a broker in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=9092)
    port = parser.parse_args().port
    problem = missing_tools()
    if problem:
        sys.stderr.write(problem + "\n")
        return 2
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", port)):
            sys.stderr.write(f"port {port} is in use; choose another with --port\n")
            return 2
    # TERM as Ctrl-C, so that a stopped `make` leaves neither a process nor data behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = Broker(port=port)
    try:
        broker.start()
        sys.stdout.write(
            f"Apache Kafka {VERSION} at {broker.servers}, Ctrl-C stops it and drops its data. Try:\n"
            f"  ks4diff demo --kafka {broker.servers}\n"
            f"  ks4diff alerts tail --kafka {broker.servers} --from-beginning\n"
        )
        sys.stdout.flush()
        return broker.process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        broker.close()


if __name__ == "__main__":
    sys.exit(main())
