"""SQLite files with a write-ahead log: who opens them at once, and who is in the way."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from ks4diff.io import write_ahead


def test_none_of_six_that_make_a_file_at_once_is_refused(tmp_path):
    for trial in range(40):  # without the wait 7 % of such trials fail
        gate = threading.Barrier(6)

        def make(path=tmp_path / f"{trial}.db", gate=gate):
            gate.wait(30)
            with closing(write_ahead.connect(path)) as db:
                db.execute("CREATE TABLE IF NOT EXISTS things (name TEXT)")
                return db.execute("PRAGMA journal_mode").fetchone()[0]

        with ThreadPoolExecutor(6) as pool:
            assert {made.result() for made in [pool.submit(make) for _ in range(6)]} == {"wal"}


def test_a_file_that_another_keeps_is_refused_after_the_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(write_ahead, "_WAIT", 0.05)
    with closing(sqlite3.connect(tmp_path / "kept.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE things (name TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_ahead.connect(tmp_path / "kept.db")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead.connect(tmp_path / "text.db")
