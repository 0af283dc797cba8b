"""How Kafka is reached: topics, wire format, TLS and SASL, from configuration and environment."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ks4diff.products.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_TOPIC = "ks4.alerts.v1"
EXPOSURE_TOPIC = "ks4.exposures.v1"
WIRES = ("container", "confluent")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PREFIX = "KS4DIFF_KAFKA_"
_FROM_ENVIRONMENT = ("servers", "tls", "ca_file", "cert_file", "key_file", "sasl", "user")


@dataclass(frozen=True, kw_only=True)
class KafkaConfig:
    """``[kafka]`` of a configuration file; none of it changes an alert.

    ``KS4DIFF_KAFKA_`` and a name in capitals sets ``servers``, ``tls`` and all below it from the environment,
    over the file. Passwords come from the environment alone: ``KS4DIFF_KAFKA_PASSWORD`` and
    ``KS4DIFF_KAFKA_KEY_PASSWORD``.
    """

    servers: str = ""  # HOST:PORT[,HOST:PORT...]; --kafka goes before it
    topic: str = DEFAULT_TOPIC  # of alerts; those of injected sources go to this and ".test"
    exposure_topic: str = EXPOSURE_TOPIC  # of the messages that exposures are done
    wire: str = "container"  # or "confluent": 10 kB less a message, but readers need our schemas
    outbox_gigabytes: float = 20.0  # alerts beyond wait in the archive: 500,000 of 40 kB
    tls: bool = False  # also when a certificate is named
    ca_file: str = ""  # PEM of who signed the server's certificate; empty: the system's
    cert_file: str = ""  # PEM of our own certificate, where servers ask for one
    key_file: str = ""  # PEM of its key
    sasl: str = ""  # PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    user: str = ""

    def __post_init__(self) -> None:
        """Refuse what no broker could be sent to."""
        for topic in (self.topic, self.exposure_topic):
            check_topic(topic)
        if self.wire not in WIRES:
            raise ValueError(f"wire {self.wire!r}: container or confluent")
        if self.sasl and self.sasl not in MECHANISMS:
            raise ValueError(f"sasl {self.sasl!r}: {', '.join(MECHANISMS)}, or empty for none")
        if not self.outbox_gigabytes > 0:
            raise ValueError(f"outbox_gigabytes must be above 0, got {self.outbox_gigabytes}")


def check_topic(topic: str) -> None:
    """Raise ConfigError unless Kafka allows the topic's name, and that of its tests."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,244}", topic) or topic in {".", ".."}:
        raise ConfigError(f"topic {topic!r}: use letters, digits, '.', '_' and '-', at most 244")


def parse_servers(servers: str) -> list[str]:
    """Return ``"HOST:PORT[,HOST:PORT...]"`` as a list.

    Raises
    ------
    ConfigError
        When a part is not HOST:PORT.

    """
    parts = [part.strip() for part in servers.split(",")]
    for part in parts:
        match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", part)
        if not match or not 0 < int(match[2]) < 65536:
            raise ConfigError(f"--kafka {servers!r}: expected HOST:PORT[,HOST:PORT...]")
    return parts


def servers_of(option: str | None, config: KafkaConfig, env: Mapping[str, str] = os.environ) -> str | None:
    """Return the servers that an option, the environment or a configuration names, in this order, or None."""
    return option if option is not None else env.get(f"{PREFIX}SERVERS") or config.servers or None


def client_options(config: KafkaConfig | None = None, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the keywords on TLS and SASL of any client of kafka-python; none for a plain connection.

    Raises
    ------
    ConfigError
        When a file that is named is not there, or SASL lacks its user or password.

    """
    values = _values(config or KafkaConfig(), env)
    tls = values["tls"] or any(values[name] for name in ("ca_file", "cert_file", "key_file"))
    options: dict[str, Any] = {}
    if tls:
        for name in ("ca_file", "cert_file", "key_file"):
            if values[name] and not Path(values[name]).is_file():
                raise ConfigError(f"[kafka] {name}: no file {values[name]}")
        options |= {
            "ssl_cafile": values["ca_file"] or None,
            "ssl_certfile": values["cert_file"] or None,
            "ssl_keyfile": values["key_file"] or None,
            "ssl_password": env.get(f"{PREFIX}KEY_PASSWORD"),
        }
    if values["sasl"]:
        password = env.get(f"{PREFIX}PASSWORD")
        if not values["user"] or not password:
            raise ConfigError(f"[kafka] sasl: needs a user, and {PREFIX}PASSWORD in the environment")
        if values["sasl"] == "PLAIN" and not tls:
            log.warning("Kafka: the password goes over the network as it is (sasl PLAIN without tls)")
        options |= {
            "sasl_mechanism": values["sasl"],
            "sasl_plain_username": values["user"],
            "sasl_plain_password": password,
        }
    if options:
        options["security_protocol"] = ("SASL_" if values["sasl"] else "") + ("SSL" if tls else "PLAINTEXT")
    return options


def _values(config: KafkaConfig, env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in _FROM_ENVIRONMENT:
        text = env.get(f"{PREFIX}{name.upper()}")
        values[name] = getattr(config, name) if text is None else text
    if isinstance(values["tls"], str):
        values["tls"] = values["tls"].lower() in ("1", "true", "yes", "on")
    if values["sasl"] and values["sasl"] not in MECHANISMS:
        raise ConfigError(f"{PREFIX}SASL {values['sasl']!r}: {', '.join(MECHANISMS)}")
    return values
