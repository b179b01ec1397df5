"""Pages of a stream for the Durable Streams protocol: its messages after an offset, and whether more follow.

`read_page` reads the database, and no relay. So a client reads its own writes on every pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from starlette.requests import Request

from ..db import event_log
from ..db.event_log import Batch, Tail
from ..db.postgres import translated
from ..db.stream_ending import REWOUND
from ..dialects.durable import last_message, messages
from ..errors import Unavailable
from ..events import MAX_SEQ
from ..pod.settling import UNSETTLED
from .durable_paths import Addressed
from .following import subscribe
from .request import damaged, pool_of, shard_of

# How often a page is read again because something came between two reads of the log.
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a stream: its messages as the log has them, up to the message `number`."""

    content: Sequence[str]
    number: int
    up_to_date: bool
    closed: bool


async def read_page(request: Request, there: Addressed, after: int) -> Page:
    """Read a page of the log after event number `after`.

    Raises:
        CursorBeyondTail: the stream does not reach that far.
        LogDamaged: events are missing.
        Unavailable: a failover lost the end of the log, and it may come back; or the database does not answer.
    """
    pool, stream_id = pool_of(request, there.stream.id), there.stream.id
    if after >= MAX_SEQ:
        await _require_reached(request, stream_id, after)
    lost = False
    for _ in range(_TRIES):
        async with translated(pool):
            batches = await event_log.read(pool, stream_id, after)
            _require_whole(batches, stream_id, after)
            if batches and (batches[-1].terminal or not _is_full(batches)):
                return page_of(there, batches, after, up_to_date=True, closed=batches[-1].terminal)
            tail = await event_log.read_tail(pool, stream_id)
        if batches:
            up_to_date = batches[-1].last_seq >= tail.last_seq
            return page_of(there, batches, after, up_to_date=up_to_date, closed=False)
        if tail.last_seq == after and not _is_rewound(tail):
            if there.stream.ended and tail.outcome is None:
                raise damaged(stream_id)
            return Page((), after, up_to_date=True, closed=tail.outcome is not None)
        if tail.last_seq <= after:
            await _require_reached(request, stream_id, after)
        # The relay of this pod still has what the log has lost in a failover.
        lost = tail.last_seq < after
    raise Unavailable(UNSETTLED if lost else "The stream changes too fast to be read. Try again.")


async def _require_reached(request: Request, stream_id: UUID, after: int) -> None:
    """Refuse an offset beyond the log, unless a failover is the reason and the log gets back what it lost."""
    subscriber = await subscribe(request, stream_id, after)
    shard_of(request, stream_id).relays.unsubscribe(subscriber)


def page_of(there: Addressed, batches: Sequence[Batch], after: int, *, up_to_date: bool, closed: bool) -> Page:
    """Return the page of these batches, which follow event number `after`."""
    found = [line for batch in batches for line in messages(there.kind, batch, after)]
    last_seq = batches[-1].last_seq if batches else after
    number = last_message(there.kind, last_seq, ended=bool(batches) and batches[-1].terminal)
    return Page(found, number, up_to_date, closed)


def end_of(there: Addressed, tail: Tail) -> Page:
    """Return the page at the end so far, which has no messages."""
    closed = tail.outcome is not None
    return Page((), last_message(there.kind, tail.last_seq, ended=closed), up_to_date=True, closed=closed)


def _require_whole(batches: Sequence[Batch], stream_id: UUID, after: int) -> None:
    expected = after + 1
    for number, batch in enumerate(batches):
        if batch.first_seq > expected or (number and batch.first_seq != expected):
            raise damaged(stream_id)
        expected = batch.last_seq + 1


def _is_full(batches: Sequence[Batch]) -> bool:
    """Whether there may be more behind a page."""
    size = sum(len(batch.events.encode()) for batch in batches)
    return len(batches) >= event_log.PAGE_ROWS or size >= event_log.PAGE_BYTES


def _is_rewound(tail: Tail) -> bool:
    return tail.outcome is not None and tail.outcome.code == REWOUND.code
