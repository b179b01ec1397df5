"""The metrics of appends over HTTP, a part of a pod's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from .numbers import COUNTS, MILLISECONDS_TO_SECONDS, Histogram, LabeledCounter

WRITTEN: Final = "written"
DUPLICATE: Final = "duplicate"


class AppendMetrics:
    """What producers appended through one pod."""

    def __init__(self) -> None:
        self._events = 0
        self._size_bytes = 0
        self._appends = LabeledCounter(
            "baton_appends",
            "Appends over HTTP, by their outcome: `written`, `duplicate` (it had been written before), or the code of "
            "the refusal",
            "outcome",
        )
        self._seconds = Histogram(
            "baton_append_seconds", "From the whole body of an append to its commit", MILLISECONDS_TO_SECONDS
        )
        self._group_streams = Histogram(
            "baton_append_group_streams", "Streams whose appends one statement wrote together", COUNTS
        )

    def note_written(self, events: int, size_bytes: int, seconds: float) -> None:
        """Count an append that was committed."""
        self._appends.add(WRITTEN)
        self._events += events
        self._size_bytes += size_bytes
        self._seconds.observe(seconds)

    def note_duplicate(self) -> None:
        """Count an append that had been written before."""
        self._appends.add(DUPLICATE)

    def note_refused(self, code: str) -> None:
        """Count an append that was refused."""
        self._appends.add(code)

    def note_group(self, streams: int) -> None:
        """Count a statement that wrote appends to this many streams."""
        self._group_streams.observe(streams)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus."""
        yield from self._appends.collect()
        yield CounterMetricFamily("baton_appended_events", "Events appended over HTTP", self._events)
        yield CounterMetricFamily("baton_appended_bytes", "Bytes of events appended over HTTP", self._size_bytes)
        yield from self._seconds.collect()
        yield from self._group_streams.collect()
