"""Twenty schedules of faults: whatever breaks before Kafka, what is archived arrives, in order."""

import sys

import pytest

from tests.faults import draw, run_schedule

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("seed", range(20))
def test_what_is_archived_arrives(kafka_broker, tmp_path, seed):
    schedule = draw(seed, restarts=0.2)
    verdict = run_schedule(schedule, kafka_broker, tmp_path)
    sys.stdout.write(f"\n{schedule}\n{verdict}\n")
    assert verdict.broken == [], str(schedule)
