"""The moment from which on queued streams are looked for.

The queue's index keeps an entry for each stream that has passed through the queue until vacuum may remove it. While an
old snapshot is open (a `pg_dump`, a forgotten transaction), it may not, and a statement that begins at the start of the
index reads all of them. So each statement begins at a *floor*: a moment before which no stream is known to be queued.

The floor is remembered, so it can be wrong: a row that commits late lies below it, and so may one that was stamped by a
clock that has been set back. Looks for the first queued stream make up for that. Each begins at the floor, which trails
by a moment; now and then one begins ten seconds below; rarely, one begins at the start of the index. What a look finds
becomes the floor, whether that is higher or lower. A look never skips a locked row, as a claim does.

Moments are those of the database's clock. They are compared with each other only, never with a clock of this process.
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

# A create commits within milliseconds of the moment in its id; where that takes longer, the wider look finds it.
TRAIL: Final = timedelta(seconds=0.1)
LATE: Final = timedelta(seconds=10)
LOOK_SECONDS: Final = 0.05
LATE_LOOK_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 60.0
SWEEP_FACTOR: Final = 1000
_START: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Since:
    """Where a statement begins: streams that were never claimed at an id, those that were given back at a moment."""

    moment: datetime = _START

    @property
    def id(self) -> UUID:
        """The smallest id of a stream that was created since."""
        return first_id(self.moment.timestamp())


ALL: Final = Since()


@dataclass(frozen=True, slots=True)
class First:
    """What a look has found, as of a moment: the first stream that was never claimed, and when one was given back."""

    never_claimed: UUID | None
    given_back_at: datetime | None
    as_of: datetime

    @property
    def floor(self) -> datetime:
        """Where the floor belongs. An id that was made up may be of any time."""
        moments = [self.as_of.timestamp()]
        if self.never_claimed is not None:
            moments.append(moment_of(self.never_claimed))
        if self.given_back_at is not None:
            moments.append(self.given_back_at.timestamp())
        return max(_START, datetime.fromtimestamp(min(moments), UTC) - TRAIL)


class QueueFloor:
    """The floor of the queue, or of one worker's part of it. `forget` it when the connection is lost."""

    def __init__(
        self, *, late_look_seconds: float = LATE_LOOK_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = Pace(factor=0, least_seconds=LOOK_SECONDS, clock=clock)
        self._late_look = Pace(factor=0, least_seconds=late_look_seconds, clock=clock)
        self._sweep = Pace(factor=SWEEP_FACTOR, least_seconds=SWEEP_SECONDS, clock=clock)
        self.since = ALL

    @property
    def due(self) -> bool:
        """Whether to look for the first queued stream before the floor is used."""
        return self._look.due

    def forget(self) -> None:
        """Begin at the start again, since another server may have taken over."""
        self.since = ALL
        for pace in (self._look, self._late_look, self._sweep):
            pace.hurry()

    async def look(self, first_since: Callable[[Since], Awaitable[First]]) -> None:
        """Look for the first queued stream, and put the floor there."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._look.timed())
            since = self.since
            if self._sweep.due:
                # A sweep sees what a late look would.
                stack.enter_context(self._sweep.timed())
                stack.enter_context(self._late_look.timed())
                since = ALL
            elif self._late_look.due:
                stack.enter_context(self._late_look.timed())
                since = Since(max(_START, since.moment - LATE))
            first = await first_since(since)
        self.since = Since(first.floor)
