"""The promises of ``make acceptance`` hold: the same checks, on the same real images and broker."""

from __future__ import annotations

import pytest

from benchmarks import acceptance

CHECKS = {check.__name__: check for check in acceptance.CHECKS}


def assert_all_hold(rows):
    assert rows
    assert [row for row in rows if not row.holds] == []


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["moa_event", "moa_jump", "decam_transient", "null_pair", "moa_series", "bad_input"]
)
def test_promises_on_real_images(realdata, name):
    assert_all_hold(CHECKS[name](realdata))


@pytest.mark.kafka
def test_promises_on_a_real_broker(kafka_broker):
    # the check starts a broker of its own; the fixture skips where none can be had
    assert_all_hold(CHECKS["kafka_round_trip"](None))
