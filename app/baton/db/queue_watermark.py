"""The low watermark of the queue: the position at which statements begin to look for queued streams.

The queue's index keeps an entry for each stream that has passed through the queue until vacuum removes it. While an old
snapshot is open (a `pg_dump`, a forgotten transaction), vacuum cannot, and a statement that begins at the start of the
index reads all of them. So each statement begins at the *low watermark*: a position before which no stream is known to
be in line.

Positions are virtual times: they rise, but not evenly. While streams wait they move by microseconds, and once none
waits the next one gets the current time (see `queue_lines`). So the watermark cannot stay a fixed distance behind. It
trails in real time instead: a bound that a check has found is used 0.1 s later, and a lower one at once. A create takes
its position from what it sees, and is committed within milliseconds; until then older bounds are in use.

The watermark is remembered, so it can be wrong: a row that commits later lies below it, and so may a row that was
stamped by a clock that has been set back. Every two seconds a check begins at the bound of ten seconds ago, and rarely
one begins at the start of the index. Unlike a claim, a check never skips a locked row. After a lost connection or a
failover, `forget` begins at the start again.

What this does not find at once: a stream whose create took longer than ten seconds to commit waits for the rare check.

Moments are on the database's clock, and are compared only with each other. How old a bound is, this process's clock
measures.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from ..pace import Pace

# A create commits within milliseconds of its statement. If that takes longer, a late check finds the stream.
TRAIL_SECONDS: Final = 0.1
LATE_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 0.05
LATE_CHECK_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 60.0
SWEEP_FACTOR: Final = 1000
# A stream that is given back gets a position just before the first one (see `stream_queue.requeue`).
SLACK: Final = timedelta(microseconds=20)
START: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class First:
    """What a check found: the position of the first stream in line (None: none is), and the moment of the check."""

    position: datetime | None
    as_of: datetime

    @property
    def bound(self) -> datetime:
        """The bound that follows. It is never before 1970."""
        return max(START, (self.as_of if self.position is None else min(self.position, self.as_of)) - SLACK)


class QueueWatermark:
    """The low watermark of the queue, or of one worker's part of it. `forget` it when the connection is lost."""

    def __init__(
        self, *, late_check_seconds: float = LATE_CHECK_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._check = Pace(factor=0, least_seconds=CHECK_SECONDS, clock=clock)
        self._late_check = Pace(factor=0, least_seconds=late_check_seconds, clock=clock)
        self._sweep = Pace(factor=SWEEP_FACTOR, least_seconds=SWEEP_SECONDS, clock=clock)
        self._bounds = deque[tuple[float, datetime]]()  # and when each was found

    @property
    def since(self) -> datetime:
        """The position at which to begin."""
        return self._bound_of(TRAIL_SECONDS)

    @property
    def due(self) -> bool:
        """Whether to update the watermark before it is used."""
        return self._check.due

    def forget(self) -> None:
        """Begin at the start of the index again, since another server may have taken over."""
        self._bounds.clear()
        for pace in (self._check, self._late_check, self._sweep):
            pace.hurry()

    async def update(self, first_since: Callable[[datetime], Awaitable[First]]) -> None:
        """Find the first stream in line, which moves the watermark."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._check.timed())
            since = self.since
            if self._sweep.due:
                # A sweep sees everything that a late check would.
                stack.enter_context(self._sweep.timed())
                stack.enter_context(self._late_check.timed())
                since = START
            elif self._late_check.due:
                stack.enter_context(self._late_check.timed())
                since = self._bound_of(LATE_SECONDS)
            # The statement's snapshot is younger than this.
            found_at = self._clock()
            first = await first_since(since)
        self._bounds.append((found_at, first.bound))
        while len(self._bounds) > 1 and self._bounds[1][0] <= found_at - LATE_SECONDS:
            self._bounds.popleft()

    def _bound_of(self, seconds: float) -> datetime:
        """Return the lowest bound that was in force in these last seconds."""
        lowest, before = None, self._clock() - seconds
        for found_at, bound in reversed(self._bounds):
            lowest = bound if lowest is None else min(lowest, bound)
            if found_at <= before:
                return lowest
        return START
