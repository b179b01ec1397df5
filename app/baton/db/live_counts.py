"""How many of a tenant's streams have not ended, counted without reading those that have.

The index of live streams keeps an entry for each ended stream until vacuum removes it, which it cannot do while an old
snapshot is open. So a pod remembers, for each tenant, the live streams below a *split*, which is an id. A create counts
the streams above it, which are few, and adds the number of the remembered ones. That number can only be too high: some
of the streams below the split may have ended since, and none can appear. Near the tenant's limit the remembered streams
are looked up by their primary key, so that the count is exact there.

None can appear because the split stays below a *high watermark*: an id below which no transaction can create a stream
any more. Each create notes when its transaction began, and the transaction's id, which it takes before the stream gets
its own. Once a later snapshot shows that no transaction with a lower id is in progress, all streams that were created
before that moment are committed, or never will be.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from ..stream_ids import first_id

# Pods of the previous release assign the stream's id first, and the transaction's id microseconds later.
SLACK: Final = timedelta(seconds=0.01)
MARK_EVERY: Final = timedelta(seconds=0.02)
# A transaction that is in progress for longer does not create a stream: the pod has given up by then.
LONGEST: Final = timedelta(seconds=15)
# A clock that was set back may leave streams below the split that were never counted. A recount finds them.
RECOUNT_SECONDS: Final = 300.0
RECOUNT_FACTOR: Final = 1000
MOST_TENANTS: Final = 10_000
MOST_IDS: Final = 100_000
_LOWEST: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a transaction began, its id (None: it has written nothing), and `pg_current_snapshot()` as text."""

    began: datetime
    transaction_id: int | None
    snapshot: str


@dataclass(slots=True)
class _Tenant:
    split: UUID = _LOWEST
    older: set[UUID] = field(default_factory=set)
    recount_at: float = 0.0
    forgotten: bool = False


class HighWatermark:
    """The id below which every stream that will ever exist is visible."""

    def __init__(self) -> None:
        self.id = _LOWEST
        self._marks: deque[tuple[datetime, int]] = deque()
        self._long_transaction_id = 0

    def note(self, moment: Moment) -> None:
        """Learn from what a statement saw."""
        marks = self._marks
        while marks and moment.began - marks[0][0] > LONGEST:
            self._long_transaction_id = marks[0][1]
            self._raise(marks.popleft()[0])
        oldest = oldest_in_progress(moment.snapshot, self._long_transaction_id)
        while marks and marks[0][1] <= oldest:
            self._raise(marks.popleft()[0])
        if moment.transaction_id is None:
            return
        # Replies may arrive in a different order from the one in which their transactions began.
        if not marks or (moment.began - marks[-1][0] > MARK_EVERY and moment.transaction_id > marks[-1][1]):
            marks.append((moment.began, moment.transaction_id))

    def _raise(self, began: datetime) -> None:
        self.id = max(self.id, first_id((began - SLACK).timestamp()))


@dataclass(frozen=True, slots=True)
class CountPlan:
    """How to count: the streams from `split` on, the ones in `checked` that are still live, and `unchecked` others."""

    split: UUID
    checked: Sequence[UUID]
    unchecked: int
    learn: Callable[[Sequence[UUID] | None, Sequence[UUID], Moment], None]
    """Call it with the streams found live, from `split` on (None: too many) and in `checked`, and the moment."""


NOTHING: Final = CountPlan(_LOWEST, (), 0, lambda _recent, _older, _moment: None)


class LiveCounts:
    """What a pod remembers of all tenants. It is bounded: the tenants whose last create is oldest are forgotten."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._ids = 0
        self._watermark = HighWatermark()

    def plan(self, tenant: str, *, exact: bool = False) -> CountPlan:
        """Return how to count a tenant's streams: with a count that may be too high, or exactly."""
        known = self._tenants.setdefault(tenant, _Tenant())
        self._tenants.move_to_end(tenant)
        self._forget_some()
        now, watermark = self._clock(), self._watermark.id
        if now >= known.recount_at:
            # Other creates of this tenant use what is known in the meantime.
            known.recount_at = now + RECOUNT_SECONDS
            return CountPlan(_LOWEST, (), 0, partial(self._learn_all, known, (watermark, now)))
        checked = tuple(known.older) if exact else ()
        unchecked = 0 if exact else len(known.older)
        return CountPlan(known.split, checked, unchecked, partial(self._learn, known, watermark, checked=checked))

    def _learn_all(
        self,
        known: _Tenant,
        asked: tuple[UUID, float],
        recent: Sequence[UUID] | None,
        _older: Sequence[UUID],
        moment: Moment,
    ) -> None:
        watermark, asked_at = asked
        if recent is not None:
            known.recount_at = asked_at + max(RECOUNT_SECONDS, RECOUNT_FACTOR * (self._clock() - asked_at))
            if not known.forgotten:
                self._ids -= len(known.older)
            known.older.clear()
            known.split = _LOWEST
        self._learn(known, watermark, recent, (), moment, checked=())

    def _learn(
        self,
        known: _Tenant,
        watermark: UUID,
        recent: Sequence[UUID] | None,
        older: Sequence[UUID],
        moment: Moment,
        *,
        checked: Sequence[UUID],
    ) -> None:
        """Remember what was found. `watermark` is its value from before the query."""
        self._watermark.note(moment)
        before = len(known.older)
        known.older.difference_update(set(checked).difference(older))
        if recent is not None and watermark > known.split:
            known.older.update(item for item in recent if known.split <= item < watermark)
            known.split = watermark
        if not known.forgotten:
            self._ids += len(known.older) - before

    def _forget_some(self) -> None:
        while len(self._tenants) > 1 and (len(self._tenants) > MOST_TENANTS or self._ids > MOST_IDS):
            _, forgotten = self._tenants.popitem(last=False)
            forgotten.forgotten = True
            self._ids -= len(forgotten.older)


def oldest_in_progress(snapshot: str, above: int) -> int:
    """Return the lowest id of a transaction in progress, from `above` on, or else the next id."""
    _, following, listed = snapshot.split(":")
    in_progress = (int(item) for item in listed.split(",") if item)
    return min((item for item in in_progress if item >= above), default=int(following))
