"""The batches that a writer has flushed in the last seconds, in case a failover loses them.

An asynchronous standby that is promoted lacks the end of the log, which clients may have seen. The worker that wrote
the lost batches still has them here, and appends them again (`log_comparison`). So a batch stays here after its stream
has ended, and its outbox is gone.

A flush is kept as it is, at little cost. Only a question sorts the flushes by streams, and there is none without a
failover or a lost stream. The bounds are checked at each flush. In an outage nothing is flushed, so nothing is dropped.
All of this runs on the worker's event loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from ..db.event_log import Append
from ..db.fence import Fence

# What Python needs for a batch beside its events and its state.
OVERHEAD_BYTES: Final = 400


@dataclass(slots=True, eq=False)
class RecentStream:
    """The newest batches of one claim of a stream, without a gap. There is at least one."""

    fence: Fence
    history: str | None = None  # of the database, when the last one was written or compared with the log
    batches: deque[Append] = field(default_factory=deque)

    @property
    def tail(self) -> int:
        """The number of the last event."""
        return self.batches[-1].last_seq

    @property
    def ended(self) -> bool:
        """Whether the last event is the terminal one."""
        return self.batches[-1].outcome is not None

    def after(self, seq: int) -> list[Append]:
        """Return the batches that follow the event number `seq`. The list is empty if one that is needed is missing."""
        following = [item for item in self.batches if item.first_seq > seq]
        return following if following and following[0].first_seq == seq + 1 else []


class _Flush(NamedTuple):
    """What one flush wrote at a moment of the clock, and its size in bytes."""

    at: float
    appends: Sequence[Append]
    history: str | None
    size: int


class RecentBatches:
    """The batches of the last `keep_seconds`, and at most `max_bytes` of them. With 0 seconds it keeps none."""

    def __init__(
        self, keep_seconds: float = 0, max_bytes: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_seconds = keep_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._flushes: deque[_Flush] = deque()  # not sorted yet
        self._streams: dict[UUID, RecentStream] = {}
        self._oldest_first: deque[tuple[float, RecentStream, Append]] = deque()  # sorted, and older than `_flushes`
        self._size = 0

    def note(self, appends: Sequence[Append], history: str | None) -> None:
        """Keep batches that were written in a history of the database."""
        if not self._keep_seconds:
            return
        now = self._clock()
        if appends:
            size = len(appends) * OVERHEAD_BYTES
            size += sum([len(item.events) for item in appends])
            size += sum([len(item.state.content) for item in appends if item.state is not None])
            self._flushes.append(_Flush(now, appends, history, size))
            self._size += size
        self._drop_old(now)

    def of(self, fence: Fence) -> RecentStream | None:
        """Return what is kept of a claim."""
        self._sort()
        stream = self._streams.get(fence.stream_id)
        return stream if stream is not None and stream.fence == fence else None

    def forget(self, fence: Fence) -> None:
        """Forget a claim: another one may have written after it."""
        if self.of(fence) is not None:
            del self._streams[fence.stream_id]

    def ended(self) -> Collection[RecentStream]:
        """Return the streams whose terminal event is among the batches."""
        self._sort()
        return [stream for stream in self._streams.values() if stream.ended]

    def _sort(self) -> None:
        """Sort the new flushes by streams."""
        while self._flushes:
            flush = self._flushes.popleft()
            for item in flush.appends:
                stream = self._streams.get(item.stream_id)
                if stream is None or stream.fence != item.fence or stream.tail + 1 != item.first_seq:
                    stream = self._streams[item.stream_id] = RecentStream(item.fence)
                stream.history = flush.history
                stream.batches.append(item)
                self._oldest_first.append((flush.at, stream, item))

    def _drop_old(self, now: float) -> None:
        """Drop what is too old or too much. A claim that was forgotten counts until its batches are too old."""
        while (self._oldest_first or self._flushes) and (
            now - self._oldest_at > self._keep_seconds or self._size > self._max_bytes
        ):
            if not self._oldest_first:
                self._size -= self._flushes.popleft().size
                continue
            _, stream, item = self._oldest_first.popleft()
            self._size -= _size(item)
            stream.batches.popleft()
            if not stream.batches and self._streams.get(item.stream_id) is stream:
                del self._streams[item.stream_id]

    @property
    def _oldest_at(self) -> float:
        return self._oldest_first[0][0] if self._oldest_first else self._flushes[0].at


def _size(item: Append) -> int:
    return item.size_bytes + OVERHEAD_BYTES
