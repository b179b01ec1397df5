"""A pod's live copy of one stream: a `Relay`, shared by all subscribers of the stream on this pod.

A relay keeps a window of the newest batches. Subscribers have cursors, not queues: each takes what follows its own
cursor from the window. One that has fallen behind the window reads pages of the log until it is back inside. So a slow
client costs no memory and loses nothing.

The log is the truth, and a notification is a hint. What always holds of a loaded relay: its window is a gap-free run of
batches that ends at its tail, and its tail is the end of a batch. A batch that starts at tail + 1 is applied, one that
ends at or before the tail is ignored, and anything else makes the relay read the log. One read at a time runs for each
relay. A hint that comes during a read marks the relay dirty, and it reads again.

Everything here runs on one event loop, and nothing awaits between a check and the action that depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final, Protocol
from uuid import UUID

from ..db import event_log, external_streams, retention, streams
from ..db.event_log import Batch
from ..db.notifications import Announcement
from ..db.postgres import Pool, translated
from ..db.shared_work import seen, shared_task
from ..db.stream_ending import REWOUND
from ..errors import CursorBeyondTail, StreamNotFound
from ..observability import log_context, traceparent
from ..observability.metrics import PodMetrics
from ..observability.traceparent import TraceParent
from ..outcome import Outcome
from .settling import Settling

logger = logging.getLogger(__name__)

PAGES_KEPT: Final = 4
# Encodings are several times as large as events. An older batch is encoded again for the few clients that need it.
ENCODED_BATCHES_KEPT: Final = 64
# The most that a subscriber takes at once. A client that then stops reading holds no more memory than this.
TAKE_BYTES: Final = 65_536


class Recipient(Protocol):
    """What a relay gives its batches to: a `Subscriber`, whose module imports this one."""

    @property
    def waiting(self) -> bool:
        """Whether a task waits for it to wake."""
        ...

    @property
    def views(self) -> bool:
        """Whether it keeps a stream alive that ends without viewers."""
        ...

    def give(self, batch: Batch) -> None:
        """Take the batch that is now at the relay's tail."""
        ...

    def tap(self) -> None:
        """Wake for a reason other than events."""
        ...

    def wake(self) -> None:
        """Make the waiting task look at the relay again."""
        ...


class Relay:
    """One stream on this pod."""

    def __init__(
        self, stream_id: UUID, pool: Pool, metrics: PodMetrics, settling: Settling, *, window_bytes: int
    ) -> None:
        self.stream_id = stream_id
        self.tenant = ""  # whose stream it is, once it is loaded
        self.traceparent: TraceParent | None = None  # of the span that created it
        self.ends_unwatched = False  # the stream ends when it has no viewer
        self.carries_events = True  # its messages are Baton's events
        self.has_ttl = False  # it is kept for a time after it was last read or written
        self.tail = 0
        self.ended = False  # the terminal event is at the tail
        self.rewound = False  # the terminal event says that the log lost what came before it
        self.ended_at: float | None = None  # in seconds since 1970; None if this pod does not know
        self.over = False  # nothing more will come from this relay
        self.damaged = False  # it is over because the log has a gap
        self.idle_since: float | None = time.monotonic()
        self.subscribers: set[Recipient] = set()
        self._pool = pool
        self._metrics = metrics
        self._settling = settling
        self._window: deque[Batch] = deque()
        self.window_bytes = 0
        self._max_window_bytes = window_bytes
        self._loading: asyncio.Task[None] | None = None
        self.loaded = False
        self._reading: asyncio.Task[None] | None = None
        self._dirty = False
        self._pages: dict[int, asyncio.Task[list[Batch]]] = {}

    @property
    def has_viewers(self) -> bool:
        """Whether a stream that ends without viewers stays alive."""
        return any(subscriber.views for subscriber in self.subscribers)

    def add(self, subscriber: Recipient) -> None:
        """Give a subscriber the batches from now on, until `remove`."""
        self.subscribers.add(subscriber)
        self.idle_since = None

    def remove(self, subscriber: Recipient) -> None:
        """Stop giving a subscriber batches."""
        self.subscribers.discard(subscriber)
        if not self.subscribers:
            self.idle_since = time.monotonic()

    async def load(self) -> None:
        """Read the stream's newest batches, once for all that wait for it.

        Raises:
            StreamNotFound: there is no such stream.
            StreamExpired: it is older than the retention time.
            Unavailable: the database does not answer.
        """
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = shared_task(self._load())
            self._loading.add_done_callback(seen)
        await asyncio.shield(self._loading)

    async def catch_up(self) -> None:
        """Read the log from the tail on, and again while hints arrive. Callers share a read that is in progress."""
        self._dirty = True
        if self._reading is None or self._reading.done():
            self._reading = shared_task(self._read_on())
            self._reading.add_done_callback(_log_failure)
        await asyncio.shield(self._reading)

    def hear(self, announcement: Announcement, committed_at: float | None = None, *, with_events: bool = True) -> None:
        """Apply what a signed notification announces. With `with_events` false, read it from the log instead."""
        _, first, last, terminal, events = announcement
        if not self.loaded or last > self.tail:
            if self.loaded and with_events and events is not None and first == self.tail + 1:
                batch = Batch(first, last, terminal, events, committed_at=committed_at)
                self._apply(batch)
                for subscriber in self.subscribers:
                    subscriber.give(batch)
            else:
                self.hint()

    def hint(self) -> None:
        """Read the log: it may hold more."""
        self._dirty = True
        if self.loaded and (self._reading is None or self._reading.done()):
            self._reading = shared_task(self._read_on())
            self._reading.add_done_callback(_log_failure)

    def leave(self) -> None:
        """End the relay: all subscribers wake and find that nothing more will come."""
        self.over = True
        self._wake_all()

    def damage(self, cursor: int) -> None:
        """End the relay because the log lacks what follows the cursor, though it has later events."""
        logger.error(
            "The log of stream %s has a gap after event %d.",
            self.stream_id,
            cursor,
            extra=log_context.fields_of(self.stream_id),
        )
        self.damaged = True
        self._window.clear()
        self.leave()

    def window_after(self, cursor: int) -> list[Batch] | None:
        """Return the batches that follow the cursor, or None if the window begins later."""
        if not self._window or self._window[0].first_seq > cursor + 1:
            return None
        found: list[Batch] = []
        size = 0
        for batch in reversed(self._window):
            if batch.last_seq <= cursor:
                break
            found.append(batch)
            size += len(batch.events)
        found.reverse()
        return found if size <= TAKE_BYTES else _head(found)

    def page_after(self, cursor: int) -> asyncio.Task[list[Batch]]:
        """Return the read of a page of the log after the cursor: one for all subscribers at the same cursor.

        Its waiters have to shield it. It fails with `Unavailable` if the database does not answer, or has failed over
        and may get the page back.
        """
        page = self._pages.get(cursor)
        if page is None or (page.done() and (page.cancelled() or page.exception() is not None)):
            page = self._pages[cursor] = shared_task(self._read_page(cursor))
            page.add_done_callback(seen)
            while len(self._pages) > PAGES_KEPT:
                del self._pages[next(iter(self._pages))]
        return page

    def require_history(self, cursor: int) -> None:
        """Refuse a cursor that may be after events that the log lost.

        The terminal event of a rewound stream has the number of a lost event. So a cursor at that number is ambiguous:
        its client may have received either event.

        Raises:
            CursorBeyondTail: the log was rewound to before that event.
        """
        if self.rewound and cursor >= self.tail:
            raise CursorBeyondTail(
                f"This stream's events were lost after number {self.tail - 1} in a failover or a restore, and "
                f"the cursor is {cursor}. Start again without a cursor."
            )

    def forget_pages(self) -> None:
        """Drop the pages that were read for subscribers behind the window."""
        self._pages = {cursor: page for cursor, page in self._pages.items() if not page.done()}

    async def _load(self) -> None:
        self._dirty = False
        async with translated(self._pool):
            stream = await streams.get(self._pool, self.stream_id)
            if stream is None:
                raise await retention.absence(self._pool, self.stream_id)
            batches = await event_log.read_newest(self._pool, self.stream_id, self._max_window_bytes)
            if stream.ended and not batches and await streams.get(self._pool, self.stream_id) is None:
                # It was deleted between the two reads.
                raise await retention.absence(self._pool, self.stream_id)
            if stream.generator == external_streams.GENERATOR:
                external = await external_streams.get(self._pool, self.stream_id)
                if external is None:
                    raise StreamNotFound(f"There is no stream {self.stream_id}.")
                self.carries_events = external.carries_events
                self.has_ttl = external.ttl_seconds is not None
        self._metrics.log_reads += 1
        self.tenant = stream.tenant
        self.traceparent = traceparent.parse(stream.traceparent)
        self.ends_unwatched = stream.unwatched_timeout is not None
        self.ended_at = stream.ended_at
        if batches:
            self.tail = batches[0].first_seq - 1
            self._apply_all(batches)
        if stream.ended and not self.ended:
            # One statement writes the terminal event and closes the row, so something else has deleted that event.
            self.damage(self.tail)
        self.loaded = True
        if self._dirty:
            self.hint()

    async def _read_on(self) -> None:
        while self._dirty and not self.ended and not self.over:
            self._dirty = False
            more = True
            while more and not self.over:
                async with translated(self._pool):
                    batches = await event_log.read(self._pool, self.stream_id, self.tail)
                self._metrics.log_reads += 1
                more = self._apply_all(batches)

    async def _read_page(self, cursor: int) -> list[Batch]:
        async with translated(self._pool):
            found = _run_after(await event_log.read(self._pool, self.stream_id, cursor), cursor)
            there: event_log.Standing | None = event_log.NOTHING
            if not found:
                there = (await event_log.tails(self._pool, [self.stream_id])).get(self.stream_id)
                # What a failover lost may have been appended again since the first read.
                found = _run_after(await event_log.read(self._pool, self.stream_id, cursor), cursor)
        self._metrics.log_reads += 1
        if there is None:
            # The stream was erased, or has expired. Clients that reconnect get that answer.
            self.leave()
        elif self._is_contradicted(found, there.seq):
            # The database went back in time. Without the lost events no client gets more, and the next poll drops this
            # relay.
            await self._settling.require_settled(self.stream_id)
            self.leave()
            found = []
        elif not found:
            self.damage(cursor)
        return found

    def _is_contradicted(self, page: list[Batch], log_seq: int) -> bool:
        """Whether the log ends before this relay's tail: after this page, or at `log_seq` if there is no page."""
        if not page:
            return log_seq < self.tail
        end = page[-1]
        return end.terminal and (end.last_seq < self.tail or (end.last_seq == self.tail and not self.ended))

    def _apply_all(self, batches: list[Batch]) -> bool:
        """Apply what was read from the log; return whether it moved the tail."""
        before = self.tail
        for batch in batches:
            if batch.last_seq <= self.tail:
                continue
            if batch.first_seq != self.tail + 1:
                self.damage(self.tail)
                return False
            self._apply(batch)
        if self.tail > before:
            self._wake_all()
        return self.tail > before

    def _apply(self, batch: Batch) -> None:
        self._window.append(batch)
        self.window_bytes += len(batch.events)
        if len(self._window) > ENCODED_BATCHES_KEPT:
            self._window[-1 - ENCODED_BATCHES_KEPT].encodings = None
        while self.window_bytes > self._max_window_bytes and len(self._window) > 1:
            self.window_bytes -= len(self._window.popleft().events)
        self.tail = batch.last_seq
        if batch.terminal:
            self.ended = True
            self.rewound = Outcome.decode(batch.events.rpartition("\n")[2].encode()).code == REWOUND.code
            self.ended_at = self.ended_at or time.time()

    def _wake_all(self) -> None:
        for subscriber in self.subscribers:
            subscriber.wake()


def _head(batches: list[Batch]) -> list[Batch]:
    """Return the first batches that make up `TAKE_BYTES`, and at least one."""
    size = 0
    for count, batch in enumerate(batches):
        size += len(batch.events)
        if size > TAKE_BYTES:
            return batches[: max(1, count)]
    return batches


def _run_after(batches: list[Batch], cursor: int) -> list[Batch]:
    """Return the batches up to the first gap. The first one begins right after the cursor, or around it."""
    expected = cursor + 1
    for count, batch in enumerate(batches):
        if batch.first_seq > expected:
            return batches[:count]
        expected = batch.last_seq + 1
    return batches


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("A relay could not read the log. The next poll tries again: %r", error)
