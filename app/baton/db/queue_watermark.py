"""The low watermark of the queue: the moment at which statements begin to look for queued streams.

The queue's index keeps an entry for each stream that has passed through the queue until vacuum removes it. While an old
snapshot is open (a `pg_dump`, a forgotten transaction), vacuum cannot, and a statement that begins at the start of the
index reads all of them. So each statement begins at the *low watermark*: a moment before which no stream is known to be
queued.

The watermark is remembered, so it can be wrong: a row that commits late lies below it, and so may a row that was
stamped by a clock that has been set back. Checks for the first queued stream correct this. Each check begins at the
watermark, which stays a moment behind. Now and then a check begins ten seconds lower, and rarely at the start of the
index. What a check finds becomes the watermark, whether that is higher or lower. Unlike a claim, a check never skips a
locked row.

All moments are on the database's clock. They are compared only with each other, never with a clock of this process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from ..pace import Pace
from ..stream_ids import first_id, moment_of

# A create commits within milliseconds of the moment in its id. If that takes longer, a late check finds the stream.
TRAIL: Final = timedelta(seconds=0.1)
LATE: Final = timedelta(seconds=10)
CHECK_SECONDS: Final = 0.05
LATE_CHECK_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 60.0
SWEEP_FACTOR: Final = 1000
_START: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Since:
    """Where a statement begins: at an id for streams that were never claimed, at a moment for requeued ones."""

    moment: datetime = _START

    @property
    def id(self) -> UUID:
        """The smallest id of a stream that was created since."""
        return first_id(self.moment.timestamp())


ALL: Final = Since()


@dataclass(frozen=True, slots=True)
class First:
    """What a check found as of a moment: the first stream that was never claimed, and when the first was requeued."""

    never_claimed: UUID | None
    requeued_at: datetime | None
    as_of: datetime

    @property
    def watermark(self) -> datetime:
        """The watermark that follows. It is never before 1970, whatever moment an id has."""
        moments = [self.as_of.timestamp()]
        if self.never_claimed is not None:
            moments.append(moment_of(self.never_claimed))
        if self.requeued_at is not None:
            moments.append(self.requeued_at.timestamp())
        return max(_START, datetime.fromtimestamp(min(moments), UTC) - TRAIL)


class QueueWatermark:
    """The low watermark of the queue, or of one worker's part of it. `forget` it when the connection is lost."""

    def __init__(
        self, *, late_check_seconds: float = LATE_CHECK_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._check = Pace(factor=0, least_seconds=CHECK_SECONDS, clock=clock)
        self._late_check = Pace(factor=0, least_seconds=late_check_seconds, clock=clock)
        self._sweep = Pace(factor=SWEEP_FACTOR, least_seconds=SWEEP_SECONDS, clock=clock)
        self.since = ALL

    @property
    def due(self) -> bool:
        """Whether to update the watermark before it is used."""
        return self._check.due

    def forget(self) -> None:
        """Begin at the start of the index again, since another server may have taken over."""
        self.since = ALL
        for pace in (self._check, self._late_check, self._sweep):
            pace.hurry()

    async def update(self, first_since: Callable[[Since], Awaitable[First]]) -> None:
        """Find the first queued stream, and move the watermark there."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._check.timed())
            since = self.since
            if self._sweep.due:
                # A sweep sees everything that a late check would.
                stack.enter_context(self._sweep.timed())
                stack.enter_context(self._late_check.timed())
                since = ALL
            elif self._late_check.due:
                stack.enter_context(self._late_check.timed())
                since = Since(max(_START, since.moment - LATE))
            first = await first_since(since)
        self.since = Since(first.watermark)
