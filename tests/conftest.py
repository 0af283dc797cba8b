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
    _need(None if folder.is_dir() else f"{folder} is absent", "real data")
    return folder


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Any]:
    """Yield a running ``tests.broker.broker.Broker``; whoever kills it starts it again."""
    from tests.broker import broker

    _need(broker.missing_tools(), "Kafka broker")
    yield from _running(broker.Broker())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """Yield a running ``tests.postgres.server.Server``; whoever stops it starts it again."""
    from tests.postgres import server

    _need(server.missing_tools(), "PostgreSQL")
    yield from _running(server.Server())


def _need(problem: str | None, what: str) -> None:
    """Skip for a problem where tools may lack, fail where CI must have them."""
    if problem:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what}: {problem}")


def _running(thing: Any) -> Iterator[Any]:
    try:
        thing.start()
        yield thing
    finally:
        thing.close()
