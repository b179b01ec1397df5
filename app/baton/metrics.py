"""Prometheus metrics: one set of them, with a registry of its own, for each pod and each worker in the process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class PodMetrics:
    """What a pod counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.subscribers = Gauge("baton_subscribers", "Open event streams", registry=self.registry)
        self.relays = Gauge("baton_relays", "Streams that this pod follows", registry=self.registry)
        self.events_sent = Counter("baton_events_sent", "Events sent to clients", registry=self.registry)
        self.bytes_sent = Counter("baton_sent_bytes", "Bytes of events sent to clients", registry=self.registry)
        self.log_reads = Counter("baton_log_reads", "Pages read from the log", registry=self.registry)
        self.listening = Gauge("baton_listener_listening", "1 while notifications arrive", registry=self.registry)
        self.notifications = Counter("baton_notifications_received", "Notifications received", registry=self.registry)

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
