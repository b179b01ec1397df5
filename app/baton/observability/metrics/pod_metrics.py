"""The metrics of a pod."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from . import database_metrics
from .append_metrics import AppendMetrics
from .database_metrics import DatabaseMetrics
from .numbers import COUNTS, MILLISECONDS_TO_SECONDS, Histogram, LabeledCounter

# Why an event stream was closed. "ended": the stream ended. "client_disconnected": the client closed the connection.
# "write_timeout": the client accepted no data. "error": the pod could not read what follows. The others: the pod closed
# it because the connection was old, the pod is leaving, the client's key was revoked, or the database does not answer.
Leaving: TypeAlias = Literal["max_age", "drained", "revoked", "database_unavailable"]
Closing: TypeAlias = Leaving | Literal["ended", "client_disconnected", "write_timeout", "error"]


# The gauges whose values are kept by parts of the pod.
Reading: TypeAlias = Literal["subscribers", "connections", "body_bytes", "full"]

# The limits that reject requests and connections.
Limit: TypeAlias = Literal[
    "body_bytes",
    "total_body_bytes",
    "bodies_turn",
    "input_bytes",
    "creates_per_second",
    "reads_per_second",
    "appends_per_second",
    "message_bytes",
    "tenant_queries",
    "tenant_streams",
    "stream_subscribers",
    "tenant_subscribers",
    "pod_subscribers",
    "connections",
    "header_bytes",
    "header_timeout",
    "body_timeout",
]
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)


class DialectCounts:
    """What a pod sent to the clients of one dialect."""

    __slots__ = ("events", "open_streams", "size_bytes")

    def __init__(self) -> None:
        self.open_streams = 0
        self.events = 0
        self.size_bytes = 0


class PodMetrics(Collector):
    """All metrics of a pod."""

    def __init__(self) -> None:
        self._readings: dict[Reading, Callable[[], float]] = {}
        self.databases: list[DatabaseMetrics] = []
        self.log_reads = 0
        self.rejected: dict[Limit, int] = dict.fromkeys(LIMITS, 0)

        self.closed = LabeledCounter(
            "baton_event_streams_closed", "Event streams that ended, by the reason", "dialect", "reason"
        )
        self.delivery_seconds = Histogram(
            "baton_delivery_seconds",
            "From an event's commit (worker's clock) to its write to a client's socket (pod's clock); live events only",
            MILLISECONDS_TO_SECONDS,
        )
        self.notification_seconds = Histogram(
            "baton_notification_seconds",
            "From a commit (worker's clock) to the arrival of its notification (pod's clock)",
            MILLISECONDS_TO_SECONDS,
        )
        self.resumed_events = Histogram(
            "baton_resumed_events", "Events that a client had missed, observed at each reconnect", COUNTS
        )
        self.pool_wait_seconds = Histogram(
            "baton_pool_wait_seconds", "How long a query waited for a connection of the pool", MILLISECONDS_TO_SECONDS
        )
        self.appends = AppendMetrics()
        self.inputs = LabeledCounter(
            "baton_inputs", "Inputs that were sent to streams, by what became of each", "outcome"
        )
        self._dialects: dict[str, DialectCounts] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def of_database(self, name: str) -> DatabaseMetrics:
        """Return the numbers of a database, for its part of the pod to keep."""
        self.databases.append(DatabaseMetrics(name))
        return self.databases[-1]

    def read(self, name: Reading, current: Callable[[], float]) -> None:
        """Make a gauge read its value from the part that keeps it, each time that Prometheus scrapes."""
        self._readings[name] = current

    def of_dialect(self, name: str) -> DialectCounts:
        """Return the counts of one dialect, for the caller to increase."""
        return self._dialects.setdefault(name, DialectCounts())

    def reject_query(self) -> None:
        """Count a query that was rejected because its tenant already had its share."""
        self.rejected["tenant_queries"] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus."""
        yield from self._collect_state()
        yield from database_metrics.collect(self.databases)
        yield from self._collect_dialects()
        yield CounterMetricFamily("baton_log_reads", "Pages read from the log", self.log_reads)
        for histogram in (
            self.delivery_seconds,
            self.notification_seconds,
            self.resumed_events,
            self.pool_wait_seconds,
        ):
            yield from histogram.collect()
        yield from self.closed.collect()
        yield from self.appends.collect()
        yield from self.inputs.collect()
        rejected = CounterMetricFamily("baton_rejections", "Requests and connections over a limit", labels=["limit"])
        for limit, count in self.rejected.items():
            rejected.add_metric([limit], count)
        yield rejected

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _reading(self, name: Reading) -> float:
        return self._readings[name]() if name in self._readings else 0

    def _collect_state(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "baton_subscribers", "Clients that follow a stream, or wait for one", self._reading("subscribers")
        )
        yield GaugeMetricFamily("baton_tcp_connections", "Open TCP connections", self._reading("connections"))
        yield GaugeMetricFamily(
            "baton_request_body_bytes",
            "Bytes of request bodies held, not counting the first 64 KiB of each",
            self._reading("body_bytes"),
        )
        yield GaugeMetricFamily(
            "baton_pod_full", "1 while balancers should send clients elsewhere", self._reading("full")
        )

    def _collect_dialects(self) -> Iterator[Metric]:
        open_streams = GaugeMetricFamily("baton_event_streams", "Open event streams", labels=["dialect"])
        events = CounterMetricFamily("baton_events_sent", "Events sent to clients", labels=["dialect"])
        sizes = CounterMetricFamily("baton_sent_bytes", "Bytes of events sent to clients", labels=["dialect"])
        for name, counts in list(self._dialects.items()):
            open_streams.add_metric([name], counts.open_streams)
            events.add_metric([name], counts.events)
            sizes.add_metric([name], counts.size_bytes)
        yield from (open_streams, events, sizes)
