"""The queue before the history: in order of time, one copy an exposure; nothing is lost or thrown away."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ks4diff.io.plain import from_bytes, to_bytes
from ks4diff.io.spool import Spool
from ks4diff.products.alert import Alert
from ks4diff.products.sightings import ExposureSightings
from tests.sample_alert import make_alert, make_history
from tests.seasons import coverage, sightings


def assert_same(first, second):
    """Equal through and through, arrays by their bytes."""
    assert type(first) is type(second)
    if isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert first.tobytes() == second.tobytes()
    elif hasattr(first, "__dataclass_fields__"):
        for name in first.__dataclass_fields__:
            assert_same(getattr(first, name), getattr(second, name))
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second or (first != first and second != second)


class TestPlain:
    def test_an_exposure_comes_back_as_it_was(self):
        one = sightings(3, 60735.8, [10.0, np.nan], [5.0, np.nan], where=coverage())
        one = replace(one, alerts=(make_alert(1), replace(make_alert(2), object_id=None, history=None)))
        assert_same(from_bytes(ExposureSightings, to_bytes(one)), one)

    def test_an_alert_with_its_past_comes_back(self):
        alert = replace(make_alert(1), history=make_history(1))
        assert_same(from_bytes(Alert, to_bytes(alert)), alert)

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04 torn", to_bytes(sightings(0, 1.0, [], []))[:-400]])
    def test_damage_is_said(self, data):
        with pytest.raises(ValueError, match="no stored ExposureSightings"):
            from_bytes(ExposureSightings, data)

    def test_other_fields_are_said(self):
        @dataclass(frozen=True)
        class Other:
            something: int

        with pytest.raises(ValueError, match="no stored"):
            from_bytes(ExposureSightings, to_bytes(Other(1)))

    def test_objects_are_refused(self):
        one = sightings(0, 1.0, [], [])
        table = np.array([object()], dtype=object)
        with pytest.raises(TypeError, match="pickle"):
            to_bytes(replace(one, chips=(replace(one.chips[0], table=table),)))


class TestSpool:
    def test_is_taken_out_in_order_of_time(self, tmp_path):
        spool = Spool(tmp_path)
        for number, mjd in ((1, 60735.8), (2, 59999.5), (3, None), (4, 60735.7)):
            spool.put(sightings(number, mjd, [1.0], [2.0]))
        taken = []
        with spool.alone():
            while (waiting := spool.first()) is not None:
                taken.append(waiting.sightings.exposure[-1])
                spool.remove(waiting)
        assert taken == ["3", "2", "4", "1"]
        assert spool.waiting() == 0

    def test_holds_an_exposure_once(self, tmp_path):
        spool = Spool(tmp_path)
        spool.put(sightings(1, 60735.8, [1.0], [2.0]))
        spool.put(sightings(1, 60735.9, [1.0, 1.1], [2.0, 2.1]))
        assert spool.waiting() == 1
        assert len(spool.first().sightings.table) == 2
        assert spool.holds("kmts.20250301.000001")
        assert not spool.holds("kmts.20250301.000002")

    def test_keeps_what_was_put_again_meanwhile(self, tmp_path):
        spool = Spool(tmp_path)
        spool.put(sightings(1, 60735.8, [1.0], [2.0]))
        waiting = spool.first()
        spool.put(sightings(1, 60735.8, [1.5], [2.0]))
        spool.remove(waiting)
        assert spool.first().sightings.table["ra"][0] == 1.5

    def test_any_name_of_an_exposure_will_do(self, tmp_path):
        spool = Spool(tmp_path)
        for name in ("../a b/ü_1", "../a b/ü_2", "x" * 100):
            spool.put(replace(sightings(1, 60735.8, [1.0], [2.0]), exposure=name))
            assert spool.holds(name)
        assert spool.waiting() == 3
        assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "spool"}

    def test_puts_what_cannot_be_read_aside(self, tmp_path, caplog):
        spool = Spool(tmp_path)
        spool.put(sightings(1, 60735.8, [1.0], [2.0]))
        spool.put(sightings(2, 60736.8, [1.0], [2.0]))
        first = min((tmp_path / "spool").glob("*.npz"))
        first.write_bytes(first.read_bytes()[:500])
        assert spool.first().sightings.exposure.endswith("2")
        assert "cannot be read" in caplog.text
        assert len(list((tmp_path / "spool").glob("*.unreadable"))) == 1

    def test_is_one_process_alone(self, tmp_path):
        spool = Spool(tmp_path)
        context = multiprocessing.get_context("spawn")
        got = context.Event()
        with spool.alone():
            other = context.Process(target=wait_for, args=(tmp_path, got))
            other.start()
            assert not got.wait(3)
        assert got.wait(60)
        other.join(60)


def wait_for(folder, got):
    with Spool(folder).alone():
        got.set()
