"""librdkafka's mock cluster, for answers that a healthy broker does not give: errors, delays, other leaders.

It is in the library inside confluent-kafka's wheel, and is called by ctypes: the wheel's Python part does not
show it. kafka-python must be told a version, as the mock's answer on versions is one it cannot read.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from importlib.metadata import files
from types import TracebackType

API_VERSION = (2, 3)
PRODUCE = 0  # the number of a request
NOT_LEADER, NOT_ENOUGH_REPLICAS = 6, 19


class MockCluster:
    """Brokers 1 to ``brokers`` in this process; ``servers`` as for any cluster."""

    def __init__(self, *, brokers: int = 3) -> None:
        library = next(str(file.locate()) for file in files("confluent-kafka") if "librdkafka" in file.name)
        self._library = ctypes.CDLL(library)
        for name in ("rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._library, name).restype = c_void_p
        self._library.rd_kafka_mock_cluster_bootstraps.restype = c_char_p
        error = ctypes.create_string_buffer(512)
        self._client = c_void_p(self._library.rd_kafka_new(0, None, error, c_size_t(512)))
        self._cluster = c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, c_int(brokers)))
        self.brokers = range(1, brokers + 1)
        self.servers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def __enter__(self) -> MockCluster:
        """Return the cluster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the cluster."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic, led by all brokers in turn."""
        self._call("topic_create", topic.encode(), c_int(partitions), c_int(len(self.brokers)))

    def answer(self, request: int, *errors: int) -> None:
        """Answer the next requests of a kind with errors, one after the other."""
        self._call("push_request_errors", c_int(request), c_size_t(len(errors)), *map(c_int, errors))

    def clear(self, request: int) -> None:
        """Answer a kind of request without errors again."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, c_int(request))

    def delay(self, request: int, milliseconds: int) -> None:
        """Let each broker's next answer to a kind of request come late."""
        for broker in self.brokers:
            late = (c_int(0), c_int(milliseconds))
            self._call("broker_push_request_error_rtts", c_int(broker), c_int(request), c_size_t(1), *late)

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Make a broker a partition's leader."""
        self._call("partition_set_leader", topic.encode(), c_int(partition), c_int(broker))

    def down(self) -> None:
        """Let no broker answer."""
        for broker in self.brokers:
            self._call("broker_set_down", c_int(broker))

    def up(self) -> None:
        """Let all brokers answer."""
        for broker in self.brokers:
            self._call("broker_set_up", c_int(broker))

    def _call(self, name: str, *values: object) -> None:
        code = getattr(self._library, f"rd_kafka_mock_{name}")(self._cluster, *values)
        if code:
            raise RuntimeError(f"rd_kafka_mock_{name}: error {code}")
