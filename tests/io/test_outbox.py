"""The outbox loses nothing, repeats nothing, and survives any end of its process."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ks4diff.io.outbox import Message, Outbox, Outcome, State, read_status
from ks4diff.io.outbox_file import OutboxFull
from ks4diff.products.errors import InputError


def message(number, payload=b"payload"):
    return Message(
        alert_id=f"id{number}",
        exposure="e1",
        topic="t",
        key=f"key{number}",
        schema="0.1",
        payload=payload,
    )


def acknowledged(number, offset=7):
    return Outcome(alert_id=f"id{number}", state=State.ACKNOWLEDGED, partition=2, offset=offset)


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def test_messages_come_out_as_they_went_in_and_in_order(outbox):
    messages = [message(number, bytes([number])) for number in (3, 1, 2)]
    assert outbox.add(messages) == 3
    assert outbox.claim(2) == messages[:2]
    assert outbox.claim(10) == messages[2:]
    assert outbox.claim(10) == []


def test_an_alert_id_has_one_payload_whatever_its_state(outbox):
    outbox.add([message(1, b"first")])
    assert outbox.add([message(1, b"second"), message(2)]) == 1
    claimed = outbox.claim(10)
    assert [m.payload for m in claimed] == [b"first", b"payload"]
    outbox.settle([acknowledged(1), acknowledged(2)])
    assert outbox.add([message(1), message(2)]) == 0
    assert outbox.counts()["pending"] == 0


def test_states_are_counted(outbox):
    outbox.add([message(number) for number in range(5)])
    outbox.claim(4)
    outbox.settle(
        [
            acknowledged(0, offset=-1),
            Outcome(alert_id="id1", state=State.PENDING, reason="timeout"),
            Outcome(alert_id="id2", state=State.DEAD, reason="too large"),
        ]
    )
    expected = {"pending": 2, "inflight": 1, "acknowledged": 1, "dead": 1}
    assert outbox.counts() == expected
    status = read_status(outbox.path)
    assert status.counts == expected
    assert status.reasons == {"timeout": 1, "too large": 1}


def test_an_acknowledgement_is_never_taken_back(outbox):
    outbox.add([message(1)])
    outbox.claim(1)
    outbox.settle([acknowledged(1)])
    outbox.settle([Outcome(alert_id="id1", state=State.PENDING, reason="late")])
    assert outbox.counts()["acknowledged"] == 1


def test_dead_messages_wait_for_a_person(outbox):
    outbox.add([message(1)])
    outbox.claim(1)
    outbox.settle([Outcome(alert_id="id1", state=State.DEAD, reason="too large")])
    assert outbox.claim(1) == []
    assert outbox.revive() == 1
    assert outbox.claim(1) == [message(1)]


def test_what_was_in_flight_is_pending_for_the_next_sender(tmp_path):
    first = Outbox(tmp_path / "outbox.db")
    first.add([message(1), message(2)])
    first.claim(1)
    first.close()
    second = Outbox(tmp_path / "outbox.db")
    assert second.lead()
    assert second.counts() == {"pending": 2, "inflight": 0, "acknowledged": 0, "dead": 0}
    assert second.claim(5) == [message(1), message(2)]
    second.close()


def test_of_two_processes_one_sends_and_both_may_add(outbox):
    outbox.add([message(1)])
    outbox.claim(1)
    other = Outbox(outbox.path)
    assert (outbox.is_sender, other.lead()) == (True, False)
    assert other.counts()["inflight"] == 1  # not taken from under the sender
    assert other.add([message(2)]) == 1
    assert other.claim(5) == []
    other.close()
    assert outbox.claim(5) == [message(2)]


def test_who_rests_lets_another_send(outbox):
    outbox.add([message(1), message(2)])
    outbox.claim(1)
    outbox.settle([acknowledged(1)])
    other = Outbox(outbox.path)
    assert not other.lead()
    outbox.rest()
    assert other.claim(5) == [message(2)]
    assert outbox.claim(5) == []
    other.close()
    assert outbox.claim(5) == [message(2)]  # the other ended without an answer


def test_one_message_of_a_key_is_in_flight_at_a_time(outbox):
    same = [replace(message(number), key="one") for number in range(3)]
    outbox.add([*same, message(7), replace(same[1], alert_id="elsewhere", topic="t2")])
    first = outbox.claim(10)
    assert [m.alert_id for m in first] == ["id0", "id7", "elsewhere"]
    assert outbox.claim(10) == []
    outbox.settle([Outcome(alert_id="id0", state=State.PENDING)])
    assert outbox.claim(10) == same[:1]  # again, and the next has not overtaken it
    outbox.settle([acknowledged(0)])
    assert outbox.claim(10) == same[1:2]


def test_a_topic_can_be_left_out(outbox):
    outbox.add([message(1), replace(message(2), topic="t2")])
    assert [m.alert_id for m in outbox.claim(9, without=["t"])] == ["id2"]
    assert [m.alert_id for m in outbox.claim(9)] == ["id1"]


def test_every_change_is_synced(outbox):
    """2: FULL. In write-ahead mode SQLite then syncs the log at each commit, before it returns."""
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert outbox._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


class TestRoom:
    def test_of_what_was_acknowledged_is_used_again(self, tmp_path):
        box = Outbox(tmp_path / "outbox.db")
        for number in range(30):
            box.add([message(number, bytes(200_000))])
            box.claim(1)
            box.settle([acknowledged(number)])
        assert box.counts()["acknowledged"] == 30
        box.close()
        assert (tmp_path / "outbox.db").stat().st_size < 1_000_000

    def test_a_quota_refuses_and_keeps_what_is_there(self, tmp_path):
        box = Outbox(tmp_path / "outbox.db", quota=1e6)
        box.add([message(1, bytes(600_000))])
        with pytest.raises(OutboxFull, match=r"quota of 0\.001 GB"):
            box.add([message(2, bytes(600_000))])
        assert box.claim(9) == [message(1, bytes(600_000))]
        box.settle([acknowledged(1)])
        assert box.add([message(2, bytes(600_000))]) == 1
        box.close()

    def test_a_disk_that_is_nearly_full_refuses(self, outbox, monkeypatch):
        disk = os.statvfs(outbox.path.parent)
        free = SimpleNamespace(f_blocks=disk.f_blocks, f_frsize=disk.f_frsize, f_bavail=1000)
        monkeypatch.setattr(os, "statvfs", lambda path: free)
        with pytest.raises(OutboxFull, match="disk is nearly full"):
            outbox.add([message(1)])

    def test_a_file_that_cannot_grow_refuses_and_keeps_what_is_there(self, tmp_path):
        """RLIMIT_FSIZE in a process of its own: SQLite meets an error in the middle of a transaction."""
        path = tmp_path / "outbox.db"
        done = subprocess.run([sys.executable, "-c", LIMITED, os.fspath(path)], timeout=60, check=False)
        assert done.returncode == 0
        box = Outbox(path)
        assert len(box.claim(100)) == box.counts()["inflight"] > 3
        box.close()

    def test_only_so_many_ids_are_remembered(self, outbox, monkeypatch):
        monkeypatch.setattr("ks4diff.io.outbox._REMEMBERED", 2)
        outbox.add([message(number) for number in range(6)])
        outbox.claim(4)
        outbox.settle([acknowledged(number) for number in range(4)])
        outbox.rest()
        outbox.lead()
        assert outbox.counts() == {"pending": 2, "inflight": 0, "acknowledged": 0, "dead": 0}


LIMITED = """
import resource, sys
from ks4diff.io.outbox import Message, Outbox
from ks4diff.io import outbox
from ks4diff.io.outbox_file import OutboxFull
outbox.check_room = lambda *_: None  # which looks ahead, and would not let it come to this
box = Outbox(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
names = dict(exposure="e", topic="t", schema="0.1", payload=bytes(50_000))
try:
    for number in range(1000):
        box.add([Message(alert_id=f"{number}-{k}", key=f"{number}-{k}", **names) for k in range(3)])
except OutboxFull:
    assert box.counts()["pending"] == 3 * number > 3
    sys.exit(0)
sys.exit("never full")
"""


def test_of_four_processes_that_open_and_add_at_once_none_fails(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    workers = [context.Process(target=add_some, args=(tmp_path / "outbox.db", k, gate)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert read_status(tmp_path / "outbox.db").counts["pending"] == 4 * 20


def add_some(path, number, gate):
    gate.wait(60)
    box = Outbox(path)
    for k in range(20):
        box.add([message(100 * number + k, bytes(20_000))])
    box.close()


def test_an_outbox_of_another_layout_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as db:
        db.execute("CREATE TABLE outbox (alert_id TEXT)")
    with pytest.raises(InputError, match=r"outbox\.db: .*layout 0"):
        Outbox(tmp_path / "outbox.db")


def test_a_batch_is_added_whole_or_not_at_all(outbox):
    bad = Message(alert_id="id2", exposure="e", topic="t", key=None, schema="0.1", payload=b"")
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        outbox.add([message(1), bad])
    assert sum(outbox.counts().values()) == 0
    assert outbox.add([message(1)]) == 1


KILLED = """
import os, signal, sys
from ks4diff.io.outbox import Message, Outbox
box = Outbox(sys.argv[1])
names = dict(exposure="e", topic="t", schema="0.1", payload=b"p")
box.add([Message(alert_id=f"id{n}", key=f"k{n}", **names) for n in range(3)])
box.claim(2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing_and_frees_the_lock(tmp_path):
    path = tmp_path / "outbox.db"
    done = subprocess.run([sys.executable, "-c", KILLED, os.fspath(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    box = Outbox(path)
    assert box.lead()
    assert [m.alert_id for m in box.claim(10)] == ["id0", "id1", "id2"]
    box.close()


def test_what_is_no_outbox_is_named(tmp_path):
    path = tmp_path / "outbox.db"
    with pytest.raises(InputError, match=r"outbox\.db: no such outbox"):
        read_status(path)
    assert not path.exists()
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(InputError, match=r"outbox\.db: not a usable outbox"):
        read_status(path)
    with pytest.raises(InputError, match=r"outbox\.db: not a usable outbox"):
        Outbox(path)


def test_status_changes_nothing(outbox):
    outbox.add([message(1)])
    outbox.claim(1)
    read_status(outbox.path)
    assert outbox.counts()["inflight"] == 1
