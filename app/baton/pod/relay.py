"""A pod's live copies of streams: one `Relay` for each that somebody here follows, shared by all its subscribers.

A relay keeps a window of the newest batches. Subscribers have cursors, not queues: each takes what follows its own
cursor from the window, and one that has fallen behind the window reads pages from the log until it is back inside. So a
slow client costs nobody memory and loses nothing.

The log is the truth, and a notification is a hint. What always holds of a relay that is loaded: its window is a
gap-free run of batches that ends at its tail, and its tail is the end of a batch. A batch that starts at tail + 1 is
applied, one that ends at or before the tail is ignored, and anything else makes the relay read the log. One read at a
time runs for each relay; a hint that comes meanwhile marks it dirty, and it reads again. A slow poll over all relays
finds what no notification announced.

Any role may send notifications. Only what a worker signed (see `signing_keys`) is applied. Anything else makes the pod
compare the relays that it names with the log, all of them in one query and ten times a second at most.

Everything here runs on one event loop, and nothing awaits between looking and acting on what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

import asyncpg

from ..backoff import Backoff, retry
from ..db import event_log, notifications, retention, streams
from ..db.event_log import Batch
from ..db.notifications import Announcement
from ..db.postgres import Pool, translated
from ..db.shared_work import seen, shared_task
from ..db.stream_ending import REWOUND
from ..errors import CursorBeyondTail, LogDamaged, Unavailable
from ..observability import traceparent
from ..observability.metrics import PodMetrics
from ..observability.traceparent import TraceParent
from ..outcome import Outcome
from .subscriber_limits import SubscriberLimits
from .trusted_notifications import Trust

logger = logging.getLogger(__name__)

OnBatch = Callable[[Batch], bool]

LINGER_SECONDS: Final = 5
# So long a pod remembers that a log has a hole: clients that come back are refused, and do not come back again.
DAMAGED_LINGER_SECONDS: Final = 300
PAGES_KEPT: Final = 4
# Encodings are several times as large as events: those of older batches are made again for the few who come for them.
ENCODED_BATCHES_KEPT: Final = 64
# What a subscriber takes at once, so that one that then reads nothing does not hold more.
TAKE_BYTES: Final = 65_536
# The pause between two looks at the log that unsigned notifications cause, however many there are.
DOUBT_SECONDS: Final = 0.1


class Subscriber:
    """One client's place in a stream: `cursor` is the last number that it was given."""

    __slots__ = ("_on_batch", "_waiter", "cursor", "relay", "tapped", "tenant")

    def __init__(self, relay: Relay, cursor: int, tenant: str) -> None:
        self.relay = relay
        self.cursor = cursor
        self.tenant = tenant  # whose place it takes
        self.tapped = False  # woken for another reason than events
        self._waiter: asyncio.Future[None] | None = None
        self._on_batch: OnBatch | None = None

    @property
    def finished(self) -> bool:
        """Whether it has been given all that there will ever be."""
        return self.relay.ended and self.cursor >= self.relay.tail

    async def wait(self, on_batch: OnBatch | None = None) -> None:
        """Wait for events, for the stream's end, or for a tap.

        Meanwhile `on_batch` is given each batch that comes next, other than the last one. Where it returns True the
        batch is taken, and the wait goes on: so a batch reaches a client without a task that wakes up for it.
        """
        if self.tapped or self.relay.over or self.cursor < self.relay.tail:
            return
        self._on_batch = on_batch
        try:
            await self._woken()
        finally:
            self._on_batch = None

    async def pause(self, seconds: float) -> None:
        """Wait so long, whatever events come, but not beyond the stream's end or a tap."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self.tapped or self.relay.ended or self.relay.over):
                    await self._woken()

    async def take(self, *, until_tapped: bool = False) -> list[Batch]:
        """Return what follows the cursor and move it there; the first batch may begin before the cursor.

        Behind the window this waits for the database. With `until_tapped`, a tap ends that wait and nothing is
        returned; the read continues, and the next call shares it.

        Raises:
            Unavailable: the database does not answer.
        """
        if self.cursor >= self.relay.tail:
            return []
        batches = self.relay.window_after(self.cursor)
        if batches is None:
            page = self.relay.page_after(self.cursor)
            if until_tapped and not await self._awaited(page):
                return []
            batches = await asyncio.shield(page)
        if batches:
            self.cursor = batches[-1].last_seq
        return batches

    async def _awaited(self, page: asyncio.Task[list[Batch]]) -> bool:
        """Wait for a page or a tap; return whether the page is there."""
        page.add_done_callback(self._wake_for_page)
        try:
            while not (page.done() or self.tapped):
                await self._woken()
        finally:
            page.remove_done_callback(self._wake_for_page)
        return page.done()

    def _wake_for_page(self, _page: asyncio.Task[list[Batch]]) -> None:
        self.wake()

    async def _woken(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def give(self, batch: Batch) -> None:
        """Have it know of a batch that is at the relay's tail now."""
        if (
            self._on_batch is not None
            and self.cursor == batch.first_seq - 1
            and not (self.tapped or batch.terminal)
            and self._on_batch(batch)
        ):
            self.cursor = batch.last_seq
        else:
            self.wake()

    def tap(self) -> None:
        """Wake it although there may be no events."""
        self.tapped = True
        self.wake()

    def wake(self) -> None:
        """Wake it."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Relay:
    """One stream on this pod."""

    def __init__(self, stream_id: UUID, pool: Pool, metrics: PodMetrics, *, window_bytes: int) -> None:
        self.stream_id = stream_id
        self.tenant = ""  # whose stream it is, once it is loaded
        self.traceparent: TraceParent | None = None  # of the span that created it
        self.ends_unwatched = False  # the stream ends when nobody watches it
        self.tail = 0
        self.ended = False  # the terminal event is at the tail
        self.rewound = False  # it says that the log lost what came before it
        self.ended_at: float | None = None  # since when, in seconds since 1970, as far as is known here
        self.over = False  # nothing more will come from here
        self.damaged = False  # that is because the log has a hole
        self.idle_since: float | None = time.monotonic()
        self.subscribers: set[Subscriber] = set()
        self._pool = pool
        self._metrics = metrics
        self._window: deque[Batch] = deque()
        self.window_bytes = 0
        self._max_window_bytes = window_bytes
        self._loading: asyncio.Task[None] | None = None
        self.loaded = False
        self._reading: asyncio.Task[None] | None = None
        self._dirty = False
        self._pages: dict[int, asyncio.Task[list[Batch]]] = {}

    async def load(self) -> None:
        """Read the stream's newest batches, once for all that wait for it.

        Raises:
            StreamNotFound: there is no such stream.
            StreamExpired: it is older than what is kept.
            Unavailable: the database does not answer.
        """
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = shared_task(self._load())
            self._loading.add_done_callback(seen)
        await asyncio.shield(self._loading)

    async def catch_up(self) -> None:
        """Read the log from the tail on, and again as long as hints come meanwhile. Shares a read that is under way."""
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
        """Hear that the log may hold more."""
        self._dirty = True
        if self.loaded and (self._reading is None or self._reading.done()):
            self._reading = shared_task(self._read_on())
            self._reading.add_done_callback(_log_failure)

    def leave(self) -> None:
        """Let everybody go: there is nothing more to be had."""
        self.over = True
        self._wake_all()

    def damage(self, cursor: int) -> None:
        """Learn that what follows the cursor is not in the log, though later events are."""
        logger.error(
            "The log of stream %s has a hole after event %d.",
            self.stream_id,
            cursor,
            extra={"stream_id": str(self.stream_id)},
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
        """Return the read of a page of the log after the cursor: one for all subscribers at the same place.

        Its waiters have to shield it. It fails with `Unavailable` if the database does not answer.
        """
        page = self._pages.get(cursor)
        if page is None or (page.done() and (page.cancelled() or page.exception() is not None)):
            page = self._pages[cursor] = shared_task(self._read_page(cursor))
            page.add_done_callback(seen)
            while len(self._pages) > PAGES_KEPT:
                del self._pages[next(iter(self._pages))]
        return page

    def require_history(self, cursor: int) -> None:
        """Refuse a cursor that may stand behind events which the log lost.

        The end of a stream whose log was rewound has the number of one of them. So a cursor at that number says
        nothing: its client may have got either event.

        Raises:
            CursorBeyondTail: the log was rewound to before that event.
        """
        if self.rewound and cursor >= self.tail:
            raise CursorBeyondTail(
                f"This stream's events were lost after number {self.tail - 1} in a failover or a restore, and "
                f"the cursor says {cursor}. Start again without a cursor."
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
                # It went between the two reads.
                raise await retention.absence(self._pool, self.stream_id)
        self._metrics.log_reads += 1
        self.tenant = stream.tenant
        self.traceparent = traceparent.parse(stream.traceparent)
        self.ends_unwatched = stream.unwatched_timeout is not None
        self.ended_at = stream.ended_at
        if batches:
            self.tail = batches[0].first_seq - 1
            self._apply_all(batches)
        if stream.ended and not self.ended:
            # Its row was closed with its terminal event in one statement, so somebody has taken that away.
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
            batches = await event_log.read(self._pool, self.stream_id, cursor)
            found = _run_after(batches, cursor)
            there = (
                event_log.NOTHING
                if found
                else (await event_log.tails(self._pool, [self.stream_id])).get(self.stream_id)
            )
        self._metrics.log_reads += 1
        if there is None:
            # It was erased, or has expired: whoever comes back is told so.
            self.leave()
        elif self._is_contradicted(found, there.seq):
            # The database went back in time, and the next poll lets this go. Until then nobody gets a mixture.
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


class Relays:
    """All relays of a pod."""

    def __init__(
        self,
        pool: Pool,
        metrics: PodMetrics,
        subscriber_limits: SubscriberLimits,
        trust: Trust,
        *,
        window_bytes: int,
        poll_seconds: float,
        with_events: bool = True,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._subscriber_limits = subscriber_limits
        self._trust = trust
        self._window_bytes = window_bytes
        self._poll_seconds = poll_seconds
        self._with_events = with_events  # take events from notifications
        self._poll_now = asyncio.Event()
        self._poll_all = False
        self._poll_due_at = 0.0  # on the event loop's clock
        self._doubted: set[Relay] = set()  # named by notifications that cannot be believed
        self.answered_at = time.monotonic()  # when the database last answered a poll
        self._relays: dict[str, Relay] = {}

    async def subscribe(self, stream_id: UUID, cursor: int, tenant: str = "") -> Subscriber:
        """Join a tenant's stream after the cursor. Call `unsubscribe` at the end.

        Raises:
            StreamNotFound: the tenant has no such stream.
            StreamExpired: it is older than what is kept.
            CursorBeyondTail: the log does not reach that far.
            PodFull, TooManySubscribers: there is no room for one more.
            Unavailable: the database does not answer.
        """
        if (known := self._relays.get(stream_id.hex)) is not None and known.loaded:
            # What it holds may be of an older history of the database; then this lets it go.
            await self._trust.renew()
        self._subscriber_limits.join(tenant, stream_id)
        relay = self._relays.get(stream_id.hex)
        if relay is None or (relay.over and not relay.damaged):
            # It stands here before it reads the log, so that no notification from now on is missed.
            relay = Relay(stream_id, self._pool, self._metrics, window_bytes=self._window_bytes)
            self._relays[stream_id.hex] = relay
            self._metrics.relays = len(self._relays)
        subscriber = Subscriber(relay, cursor, tenant)
        relay.subscribers.add(subscriber)
        relay.idle_since = None
        try:
            await relay.load()
            if relay.tenant != tenant:
                raise await retention.absence(self._pool, stream_id)
            if relay.damaged:
                raise LogDamaged(f"A part of the answer {stream_id} is missing, and it cannot be followed.")
            if cursor > relay.tail and not relay.ended:
                await relay.catch_up()
            if cursor > relay.tail:
                raise CursorBeyondTail(
                    f"The stream has {relay.tail} events so far, and the cursor says {cursor}. "
                    "Start again without a cursor."
                )
            relay.require_history(cursor)
        except BaseException:
            self.unsubscribe(subscriber)
            raise
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Leave a stream."""
        relay = subscriber.relay
        relay.subscribers.discard(subscriber)
        self._subscriber_limits.leave(subscriber.tenant, relay.stream_id)
        if not relay.subscribers:
            relay.idle_since = time.monotonic()

    def hear(self, payload: str) -> None:
        """Apply a notification about appended batches. Its signature is checked if it names a stream followed here."""
        self._metrics.notifications += 1
        announcements = list(notifications.unpack(payload, self._relays))
        if not announcements:
            return
        if not self._trust.believes(notifications.EVENTS_CHANNEL, payload):
            self._metrics.unverified_notifications += 1
            self._doubted.update([self._relays[item.stream] for item in announcements])
            self._poll_now.set()
            return
        committed_at = notifications.committed_at(payload)
        if committed_at is not None:
            self._metrics.notification_seconds.observe(max(0, time.time() - committed_at))
        for announcement in announcements:
            self._relays[announcement.stream].hear(announcement, committed_at, with_events=self._with_events)

    def catch_up_all(self) -> None:
        """Read on in every relay, after a time in which notifications may have been missed."""
        for relay in self._relays.values():
            if not relay.loaded:
                relay.hint()
        # The poll finds out which of the others lag behind.
        self._poll_all = True
        self._poll_now.set()

    def doubt_all(self) -> None:
        """Hear that the database may have gone back in time: compare all relays, and read the ended ones again.

        The others show by their tails that the log lost what they hold. An ended one is not compared otherwise, since
        nothing follows an end.
        """
        for relay in list(self._relays.values()):
            if relay.ended or relay.over:
                self._let_go(relay)
        self._poll_all = True
        self._poll_now.set()

    def tap_all(self) -> None:
        """Wake every subscriber to look around."""
        for relay in self._relays.values():
            for subscriber in relay.subscribers:
                subscriber.tap()

    async def run(self) -> None:
        """Poll until cancelled: all relays every `poll_seconds`, and in between those that are in doubt."""
        self._poll_due_at = asyncio.get_running_loop().time() + self._poll_seconds
        await retry(self._keep_polling, errors=(Unavailable, asyncpg.PostgresError), on_failure=self._on_failure)

    async def _keep_polling(self, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._poll_due_at):
                    await self._poll_now.wait()
            self._poll_now.clear()
            async with translated(self._pool):
                if self._poll_all or loop.time() >= self._poll_due_at:
                    self._poll_all = False
                    self._doubted.clear()  # they are among all
                    self._poll_due_at = loop.time() + self._poll_seconds
                    self._tidy()
                    await self._compare(self._relays.values())
                else:
                    await self._compare(self._take_doubted())
            backoff.reset()
            await asyncio.sleep(DOUBT_SECONDS)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The log cannot be polled: %r", error)
        self._poll_all = True

    async def note_watched(self, interval_seconds: float) -> None:
        """Write down again and again which streams are watched here, of those that end when nobody does."""
        while True:
            await asyncio.sleep(interval_seconds)
            relays = self._relays.values()
            watched = [item.stream_id for item in relays if item.ends_unwatched and item.subscribers and not item.ended]
            if not watched:
                continue
            try:
                async with translated(self._pool):
                    await streams.note_watched(self._pool, watched)
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning("What is watched cannot be noted: %r", error)

    def _take_doubted(self) -> set[Relay]:
        doubted, self._doubted = self._doubted, set()
        return doubted

    def _tidy(self) -> None:
        """Drop the relays that nobody uses."""
        now = time.monotonic()
        for key, relay in list(self._relays.items()):
            relay.forget_pages()
            linger_seconds = DAMAGED_LINGER_SECONDS if relay.damaged else 0 if relay.over else LINGER_SECONDS
            if relay.idle_since is not None and now - relay.idle_since > linger_seconds:
                del self._relays[key]
        self._metrics.relays = len(self._relays)
        self._metrics.window_bytes = sum(relay.window_bytes for relay in self._relays.values())

    async def _compare(self, relays: Iterable[Relay]) -> None:
        """Find out which relays lag behind the log, and which hold what is not in it any more, if there are any."""
        before = {relay: relay.tail for relay in relays if not (relay.ended or relay.over)}
        if not before:
            return
        tails = await event_log.tails(self._pool, [relay.stream_id for relay in before])
        self.answered_at = time.monotonic()
        for relay, tail_before in before.items():
            found = tails.get(relay.stream_id)
            if found is None or found.seq < tail_before:
                self._let_go(relay)
            elif found.seq > relay.tail:
                relay.hint()
            elif found.ended and found.seq == relay.tail and not relay.ended and relay.loaded:
                # The log lost its end, and was ended with the number of an event that was sent before.
                self._let_go(relay)

    def _let_go(self, relay: Relay) -> None:
        relay.leave()
        # Another may stand in its place by now.
        if self._relays.get(relay.stream_id.hex) is relay:
            del self._relays[relay.stream_id.hex]


def _head(batches: list[Batch]) -> list[Batch]:
    """The first batches that make up `TAKE_BYTES`, and at least one."""
    size = 0
    for count, batch in enumerate(batches):
        size += len(batch.events)
        if size > TAKE_BYTES:
            return batches[: max(1, count)]
    return batches


def _run_after(batches: list[Batch], cursor: int) -> list[Batch]:
    """The batches up to the first hole, of which the first begins right after the cursor, or around it."""
    expected = cursor + 1
    for count, batch in enumerate(batches):
        if batch.first_seq > expected:
            return batches[:count]
        expected = batch.last_seq + 1
    return batches


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("A relay could not read the log, and the next poll will try again: %r", error)
