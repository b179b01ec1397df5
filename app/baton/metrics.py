"""Prometheus metrics: one set of them, with a registry of its own, for each pod and each worker in the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Limit: TypeAlias = Literal[
    "body_bytes",
    "input_bytes",
    "creates_per_second",
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

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class PodMetrics(Collector):
    """What a pod counts, in plain numbers: Prometheus' own types lock at each step, and this is the hot path."""

    def __init__(self) -> None:
        self.subscribers = 0
        self.relays = 0
        self.events_sent = 0
        self.bytes_sent = 0
        self.log_reads = 0
        self.aborted = 0
        self.notifications = 0
        self.connections = 0
        self.full = False
        self.rejected: dict[Limit, int] = dict.fromkeys(LIMITS, 0)
        self.listening = False
        self.partitions_end: float | None = None  # not known yet
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Give the numbers to Prometheus."""
        yield GaugeMetricFamily("baton_subscribers", "Open event streams", self.subscribers)
        yield GaugeMetricFamily("baton_connections", "Open TCP connections", self.connections)
        yield GaugeMetricFamily("baton_full", "1 while clients are better sent elsewhere", int(self.full))
        rejected = CounterMetricFamily("baton_rejected", "Requests and connections beyond a limit", labels=["limit"])
        for limit, count in self.rejected.items():
            rejected.add_metric([limit], count)
        yield rejected
        yield GaugeMetricFamily("baton_relays", "Streams that this pod follows", self.relays)
        yield CounterMetricFamily("baton_events_sent", "Events sent to clients", self.events_sent)
        yield CounterMetricFamily("baton_sent_bytes", "Bytes of events sent to clients", self.bytes_sent)
        yield CounterMetricFamily("baton_log_reads", "Pages read from the log", self.log_reads)
        yield CounterMetricFamily("baton_clients_aborted", "Clients cut off as they accepted nothing", self.aborted)
        yield CounterMetricFamily("baton_notifications_received", "Notifications received", self.notifications)
        yield GaugeMetricFamily("baton_listener_listening", "1 while notifications arrive", int(self.listening))
        if self.partitions_end is not None:
            yield GaugeMetricFamily(
                "baton_partitions_end_timestamp_seconds",
                "Until when streams that are created have a partition of the log",
                self.partitions_end,
            )

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = Gauge("baton_worker_streams", "Streams being generated", registry=self.registry)
        self.ended = Counter("baton_streams_ended", "Streams ended", ["status"], registry=self.registry)
        self.batches = Counter("baton_batches_flushed", "Batches appended", registry=self.registry)
        self.flush_seconds = Histogram(
            "baton_flush_seconds", "Duration of appends", buckets=_SECONDS, registry=self.registry
        )
        self.fenced = Counter("baton_appends_fenced", "Appends refused after a claim", registry=self.registry)
        self.notifications = Counter("baton_notifications_sent", "Notifications sent", registry=self.registry)

    def flushed(self, batches: int, seconds: float) -> None:
        """Count one append of several batches."""
        self.batches.inc(batches)
        self.flush_seconds.observe(seconds)
