"""What one event stream has sent: counted for the pod's metrics, and for the line in the log when the stream closes."""

from __future__ import annotations

import time
from typing import Final

from ..db.event_log import Batch
from ..observability.metrics import PodMetrics
from ..observability.metrics.pod_metrics import Closing


class DeliveryCounts:
    """The counts of one event stream, which begins after `from_cursor`."""

    __slots__ = (
        "_began_at",
        "_committed_at",
        "_last_seq",
        "_metrics",
        "_of_dialect",
        "dialect",
        "from_cursor",
        "last_sent_at",
        "size_bytes",
    )

    def __init__(self, metrics: PodMetrics, dialect: str, from_cursor: int) -> None:
        # What follows the colon tells encodings apart, and would make a series of metrics for each.
        self.dialect = dialect.partition(":")[0]
        self.from_cursor = from_cursor
        self.size_bytes = 0
        self.last_sent_at = _now()
        self._metrics = metrics
        self._of_dialect = metrics.of_dialect(self.dialect)
        self._began_at = self.last_sent_at
        self._last_seq = from_cursor
        self._committed_at: float | None = None  # when the newest live event that is about to be sent was committed

    @property
    def events(self) -> int:
        """How many events were sent, or encoded to nothing."""
        return self._last_seq - self.from_cursor

    @property
    def duration_seconds(self) -> float:
        """How long the stream has lasted."""
        return _now() - self._began_at

    def open(self) -> None:
        """Count an open stream."""
        self._of_dialect.open_streams += 1

    def count(self, last: Batch, size_bytes: int, live: bool) -> None:
        """Count batches up to `last`, which are this many bytes in the dialect. Call `sent` once they are sent."""
        events = last.last_seq - self._last_seq
        self._last_seq = last.last_seq
        self._of_dialect.events += events
        self._of_dialect.size_bytes += size_bytes
        self.size_bytes += size_bytes
        if live:
            self._committed_at = last.committed_at

    def sent(self) -> None:
        """Note that all that was counted is sent, and measure the delay since the newest live event's commit."""
        self.last_sent_at = _now()
        if self._committed_at is not None:
            delay = time.time() - self._committed_at
            self._metrics.delivery_seconds.observe(delay if delay > 0 else 0.0)
            self._committed_at = None

    def close(self, reason: Closing) -> None:
        """Count a closed stream."""
        self._of_dialect.open_streams -= 1
        self._metrics.closed.add(self.dialect, reason)


_now: Final = time.monotonic
