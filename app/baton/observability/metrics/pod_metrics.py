"""The metrics of a pod."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .append_metrics import AppendMetrics
from .numbers import COUNTS, MILLISECONDS_TO_SECONDS, MOST_VALUES, Histogram, LabeledCounter

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
        self.relays = 0
        self.window_bytes = 0
        self.log_reads = 0
        self.notifications = 0
        self.unverified_notifications = 0
        self.rejected: dict[Limit, int] = dict.fromkeys(LIMITS, 0)
        self.listening: bool | None = False  # None: there are no hints
        self.listener_disconnects = 0
        self.pool_connections = 0
        self.pool_idle = 0
        # As last read from the database; None if not read yet.
        self.partitions_end: float | None = None
        self.notify_queue_ratio: float | None = None
        # By generator: how many streams wait for a worker, and for how many seconds the first one has waited.
        self.queue: Mapping[str, tuple[int, float]] | None = None
        self.open_streams: int | None = None
        self.waiting: int | None = None
        self.oldest_snapshot_seconds: float | None = None

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
        if self.queue is not None:
            yield from self._collect_queue(self.queue)
        yield from self._collect_dialects()
        yield CounterMetricFamily("baton_log_reads", "Pages read from the log", self.log_reads)
        yield CounterMetricFamily("baton_notifications_received", "Notifications received", self.notifications)
        yield CounterMetricFamily(
            "baton_notifications_unverified",
            "Notifications about followed streams without a valid signature; they only make the pod read the log",
            self.unverified_notifications,
        )
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
        yield GaugeMetricFamily("baton_relays", "Streams that this pod follows", self.relays)
        yield GaugeMetricFamily("baton_relay_window_bytes", "Recent events in memory", self.window_bytes)
        if self.listening is not None:
            yield GaugeMetricFamily("baton_listener_up", "1 while hints arrive", int(self.listening))
        yield CounterMetricFamily("baton_listener_disconnects", "LISTEN connections lost", self.listener_disconnects)
        yield GaugeMetricFamily("baton_pool_connections", "Connections of the pool", self.pool_connections)
        yield GaugeMetricFamily("baton_pool_idle_connections", "Idle connections of the pool", self.pool_idle)
        for name, documentation, value in (
            (
                "baton_partitions_end_timestamp_seconds",
                "The time up to which new streams have a partition of the log",
                self.partitions_end,
            ),
            (
                "baton_notify_queue_ratio",
                "How full Postgres' notification queue is, from 0 to 1; when it is full, every NOTIFY fails",
                self.notify_queue_ratio,
            ),
            ("baton_open_streams", "External streams that have not ended; counted up to 10,000", self.open_streams),
            ("baton_waiting_streams", "Streams that wait for an input; counted up to 10,000", self.waiting),
            (
                "baton_oldest_snapshot_seconds",
                "How long the oldest snapshot in the database has been seen; it keeps vacuum from removing rows",
                self.oldest_snapshot_seconds,
            ),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, documentation, value)

    def _collect_queue(self, queue: Mapping[str, tuple[int, float]]) -> Iterator[Metric]:
        """Yield the metrics of the queue: in total, and of the generators for which most streams wait."""
        total = (sum(count for count, _ in queue.values()), max((seconds for _, seconds in queue.values()), default=0))
        longest = sorted(queue.items(), key=itemgetter(1), reverse=True)[:MOST_VALUES]
        for number, (name, documentation) in enumerate(
            (
                ("baton_queued_streams", "Streams that wait for a worker, counted up to 10,000"),
                ("baton_oldest_queued_seconds", "How long the oldest queued stream has waited for a worker"),
            )
        ):
            yield GaugeMetricFamily(name, documentation, total[number])
            each = GaugeMetricFamily(f"{name}_by_generator", f"{documentation}, by generator", labels=["generator"])
            for generator, numbers in longest:
                each.add_metric([generator], numbers[number])
            yield each

    def _collect_dialects(self) -> Iterator[Metric]:
        open_streams = GaugeMetricFamily("baton_event_streams", "Open event streams", labels=["dialect"])
        events = CounterMetricFamily("baton_events_sent", "Events sent to clients", labels=["dialect"])
        sizes = CounterMetricFamily("baton_sent_bytes", "Bytes of events sent to clients", labels=["dialect"])
        for name, counts in list(self._dialects.items()):
            open_streams.add_metric([name], counts.open_streams)
            events.add_metric([name], counts.events)
            sizes.add_metric([name], counts.size_bytes)
        yield from (open_streams, events, sizes)
