"""The outbox loses nothing, repeats nothing, and survives any end of its process."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from ks4diff.io.outbox import Message, Outbox, Outcome, State, read_status
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
    assert second.counts() == {"pending": 2, "inflight": 0, "acknowledged": 0, "dead": 0}
    assert second.claim(5) == [message(1), message(2)]
    second.close()


def test_of_two_processes_one_sends_and_both_may_add(outbox):
    outbox.add([message(1)])
    outbox.claim(1)
    other = Outbox(outbox.path)
    assert (outbox.is_sender, other.is_sender) == (True, False)
    assert other.counts()["inflight"] == 1  # not taken from under the sender
    assert other.add([message(2)]) == 1
    assert other.claim(5) == []
    other.close()
    assert outbox.claim(5) == [message(2)]


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
names = dict(exposure="e", topic="t", key="k", schema="0.1", payload=b"p")
box.add([Message(alert_id=f"id{n}", **names) for n in range(3)])
box.claim(2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing_and_frees_the_lock(tmp_path):
    path = tmp_path / "outbox.db"
    done = subprocess.run([sys.executable, "-c", KILLED, os.fspath(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    box = Outbox(path)
    assert box.is_sender
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
