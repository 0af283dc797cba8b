"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what kafka-python 3.0 itself does: resource calls of old, sockets left to the collector."""
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:unclosed <(socket|ssl):ResourceWarning")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Return ../shared/realdata; skip where a user's clone lacks it, fail where CI must have it."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("KS4DIFF_SHARED") or root.parent / "shared") / "realdata"
    if not folder.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Any]:
    """Yield a running ``tests.broker.broker.Broker``; whoever kills it starts it again."""
    from tests.broker.broker import Broker, missing_tools

    problem = missing_tools()
    if problem:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"Kafka broker: {problem}")
    broker = Broker()
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """Yield a running ``tests.postgres.server.Server``; whoever stops it starts it again."""
    from tests.postgres.server import Server, missing_tools

    problem = missing_tools()
    if problem:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"PostgreSQL: {problem}")
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()
