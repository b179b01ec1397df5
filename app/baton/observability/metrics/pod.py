"""What a pod counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .numbers import COUNTS, MILLISECONDS_TO_SECONDS, Histogram, LabelledCounter

# Why a connection ended: the stream did; the client left, or was cut off since it accepted nothing; the pod sent it
# away, since the connection was old, the pod is leaving, the client's key was revoked, or the database does not answer;
# or it could not tell what follows.
Leaving: TypeAlias = Literal["renewed", "drained", "revoked", "database away"]
Closing: TypeAlias = Leaving | Literal["ended", "left", "stuck", "broken"]


# What was refused, by which limit.
Limit: TypeAlias = Literal[
    "body_bytes",
    "bodies_bytes",
    "bodies_turn",
    "input_bytes",
    "creates_per_second",
    "reads_per_second",
    "tenant_queries",
    "tenant_streams",
    "stream_subscribers",
    "tenant_subscribers",
    "pod_subscribers",
    "connections",
    "header_bytes",
    "header_seconds",
    "body_seconds",
]
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)


class DialectCounts:
    """What was sent to the clients of one dialect."""

    __slots__ = ("connections", "events", "size_bytes")

    def __init__(self) -> None:
        self.connections = 0
        self.events = 0
        self.size_bytes = 0


class PodMetrics(Collector):
    """All numbers of a pod."""

    def __init__(self) -> None:
        self.subscribers = 0
        self.relays = 0
        self.window_bytes = 0
        self.log_reads = 0
        self.notifications = 0
        self.doubted_notifications = 0
        self.connections = 0  # of TCP
        self.body_bytes = 0  # of requests that are being read or created from, beyond the free ones
        self.full = False
        self.rejected: dict[Limit, int] = dict.fromkeys(LIMITS, 0)
        self.listening = False
        self.listener_losses = 0
        self.pool_connections = 0
        self.pool_idle = 0
        # Of the database, when it was last looked at; None: not known yet.
        self.partitions_end: float | None = None
        self.notify_queue_ratio: float | None = None
        self.queued: int | None = None
        self.oldest_queued_seconds: float | None = None
        self.oldest_snapshot_seconds: float | None = None

        self.closed = LabelledCounter(
            "baton_event_streams_closed", "Event streams that ended, by the reason", "dialect", "reason"
        )
        self.delivery_seconds = Histogram(
            "baton_delivery_seconds",
            "From an event's commit, on the worker's clock, to its write to a client's socket, on the pod's; live only",
            MILLISECONDS_TO_SECONDS,
        )
        self.notification_seconds = Histogram(
            "baton_notification_seconds",
            "From a commit, on the worker's clock, to the arrival of its notification, on the pod's",
            MILLISECONDS_TO_SECONDS,
        )
        self.resumed_events = Histogram(
            "baton_resumed_events", "Events that a client which came back had missed, one for each that did", COUNTS
        )
        self.pool_wait_seconds = Histogram(
            "baton_pool_wait_seconds", "Wait of a query for one of the pool's connections", MILLISECONDS_TO_SECONDS
        )
        self._dialects: dict[str, DialectCounts] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def of_dialect(self, name: str) -> DialectCounts:
        """The numbers of one dialect, to be counted up."""
        return self._dialects.setdefault(name, DialectCounts())

    def reject_query(self) -> None:
        """Count a query that did not get its tenant's turn."""
        self.rejected["tenant_queries"] += 1

    def collect(self) -> Iterator[Metric]:
        """Give the numbers to Prometheus."""
        yield from self._collect_state()
        yield from self._collect_dialects()
        yield CounterMetricFamily("baton_log_reads", "Pages read from the log", self.log_reads)
        yield CounterMetricFamily("baton_notifications_received", "Notifications received", self.notifications)
        yield CounterMetricFamily(
            "baton_notifications_doubted",
            "Notifications about followed streams without a valid seal, which only make the pod read the log",
            self.doubted_notifications,
        )
        for histogram in (
            self.delivery_seconds,
            self.notification_seconds,
            self.resumed_events,
            self.pool_wait_seconds,
        ):
            yield from histogram.collect()
        yield from self.closed.collect()
        rejected = CounterMetricFamily("baton_rejected", "Requests and connections beyond a limit", labels=["limit"])
        for limit, count in self.rejected.items():
            rejected.add_metric([limit], count)
        yield rejected

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _collect_state(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("baton_subscribers", "Clients that follow a stream, or wait for one", self.subscribers)
        yield GaugeMetricFamily("baton_connections", "Open TCP connections", self.connections)
        yield GaugeMetricFamily(
            "baton_body_bytes", "Bytes of request bodies held, without the first 64 KiB of each", self.body_bytes
        )
        yield GaugeMetricFamily("baton_full", "1 while clients are better sent elsewhere", int(self.full))
        yield GaugeMetricFamily("baton_relays", "Streams that this pod follows", self.relays)
        yield GaugeMetricFamily("baton_relay_window_bytes", "Recent events in memory", self.window_bytes)
        yield GaugeMetricFamily("baton_listener_listening", "1 while notifications arrive", int(self.listening))
        yield CounterMetricFamily("baton_listener_losses", "LISTEN connections lost", self.listener_losses)
        yield GaugeMetricFamily("baton_pool_connections", "Connections of the pool", self.pool_connections)
        yield GaugeMetricFamily("baton_pool_idle_connections", "Those of them that nobody uses", self.pool_idle)
        for name, documentation, value in (
            (
                "baton_partitions_end_timestamp_seconds",
                "Until when streams that are created have a partition of the log",
                self.partitions_end,
            ),
            (
                "baton_notify_queue_ratio",
                "How full Postgres' queue of notifications is, from 0 to 1; full, no NOTIFY succeeds",
                self.notify_queue_ratio,
            ),
            ("baton_queued_streams", "Streams that wait for a worker", self.queued),
            ("baton_oldest_queued_seconds", "For how long the first of them waits", self.oldest_queued_seconds),
            (
                "baton_oldest_snapshot_seconds",
                "How long the oldest snapshot in the database has been seen; while it is open vacuum removes nothing",
                self.oldest_snapshot_seconds,
            ),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, documentation, value)

    def _collect_dialects(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("baton_event_streams", "Open event streams", labels=["dialect"])
        events = CounterMetricFamily("baton_events_sent", "Events sent to clients", labels=["dialect"])
        sizes = CounterMetricFamily("baton_sent_bytes", "Bytes of events sent to clients", labels=["dialect"])
        for name, counts in list(self._dialects.items()):
            connections.add_metric([name], counts.connections)
            events.add_metric([name], counts.events)
            sizes.add_metric([name], counts.size_bytes)
        yield from (connections, events, sizes)
