"""What a worker counts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .numbers import COUNTS, MILLISECONDS_TO_SECONDS, SECONDS_TO_MINUTES, Histogram, LabelledCounter


class WorkerMetrics(Collector):
    """All numbers of a worker."""

    def __init__(self, slots: int = 0) -> None:
        self.slots = slots
        self.running = 0
        self.fenced = 0
        self.notifications = 0
        self.flushed_bytes = 0
        self.flush_failures = 0
        self.ended = LabelledCounter("baton_streams_ended", "Streams that this worker ended", "status", "code")
        self.flush_seconds = Histogram(
            "baton_flush_seconds", "Duration of an append, the commit included", MILLISECONDS_TO_SECONDS
        )
        self.flush_batches = Histogram(
            "baton_flush_batches", "Streams that an append wrote to, a batch for each", COUNTS
        )
        self.flush_events = Histogram("baton_flush_events", "Events that an append wrote", COUNTS)
        self.queue_seconds = Histogram(
            "baton_queue_seconds", "From a stream's creation to its first claim", SECONDS_TO_MINUTES
        )
        self.first_token_seconds = Histogram(
            "baton_first_token_seconds", "From a stream's claim to its first token", SECONDS_TO_MINUTES
        )
        self.token_gap_seconds = Histogram(
            "baton_token_gap_seconds",
            "Between two tokens of a stream, as its generator yields them",
            SECONDS_TO_MINUTES,
        )
        self.stream_seconds = Histogram("baton_stream_seconds", "From a stream's claim to its end", SECONDS_TO_MINUTES)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @property
    def tokens(self) -> int:
        """How many tokens the generators here have yielded."""
        return self.first_token_seconds.count + self.token_gap_seconds.count

    def flushed(self, *, batches: int, events: int, size_bytes: int, seconds: float) -> None:
        """Count one append."""
        self.flush_batches.observe(batches)
        self.flush_events.observe(events)
        self.flush_seconds.observe(seconds)
        self.flushed_bytes += size_bytes

    def collect(self) -> Iterator[Metric]:
        """Give the numbers to Prometheus."""
        yield GaugeMetricFamily("baton_worker_slots", "Streams that this worker can run at once", self.slots)
        yield GaugeMetricFamily("baton_worker_streams", "Streams being generated", self.running)
        yield CounterMetricFamily("baton_flushed_bytes", "Bytes of events appended to the log", self.flushed_bytes)
        yield CounterMetricFamily("baton_flush_failures", "Appends that had to be repeated", self.flush_failures)
        yield CounterMetricFamily("baton_appends_fenced", "Batches refused after another's claim", self.fenced)
        yield CounterMetricFamily("baton_notifications_sent", "Notifications sent", self.notifications)
        for numbers in (
            self.ended,
            self.flush_seconds,
            self.flush_batches,
            self.flush_events,
            self.queue_seconds,
            self.first_token_seconds,
            self.token_gap_seconds,
            self.stream_seconds,
        ):
            yield from numbers.collect()
