"""The relays of a pod: one for each stream that has a subscriber here. Notifications and polls reach them through this.

Anyone with access to the database can send notifications. Only what a worker signed (see `db.signing_keys`) is applied.
An unsigned notification makes the pod compare the relays it names with the log: all of them in one query, at most ten
times a second. A slow poll over all relays finds what no notification announced.

Everything here runs on one event loop, and nothing awaits between a check and the action that depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

import asyncpg

from ..backoff import Backoff, retry
from ..db import event_log, external_streams, notifications, retention, streams
from ..db.event_log import NOTHING, Standing
from ..db.postgres import Pool, translated
from ..errors import CursorBeyondTail, LogDamaged, Unavailable
from ..observability.metrics import DatabaseMetrics, PodMetrics
from .notification_verifier import NotificationVerifier
from .relay import Relay
from .settling import Settling
from .subscriber import Subscriber
from .subscriber_limits import SubscriberLimits

logger = logging.getLogger(__name__)

LINGER_SECONDS: Final = 5
# How long a pod remembers that a log has a gap: clients that reconnect are refused, and stop reconnecting.
DAMAGED_LINGER_SECONDS: Final = 300
# The pause between two reads of the log that unsigned notifications cause, however many there are.
DOUBT_SECONDS: Final = 0.1


class RelayRegistry:
    """All relays of a pod, by stream."""

    def __init__(
        self,
        pool: Pool,
        metrics: PodMetrics,
        counts: DatabaseMetrics,
        limits: SubscriberLimits,
        *,
        verifier: NotificationVerifier,
        settling: Settling,
        window_bytes: int,
        poll_seconds: float,
        with_events: bool = True,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._counts = counts
        self._limits = limits
        self._verifier = verifier
        self._settling = settling
        self._window_bytes = window_bytes
        self._poll_seconds = poll_seconds
        self._with_events = with_events  # take events from notifications
        self._poll_now = asyncio.Event()
        self._poll_all = False
        self._poll_due_at = 0.0  # on the event loop's clock
        self._suspects: set[Relay] = set()  # named by unsigned notifications
        self.answered_at = time.monotonic()  # when the database last answered a poll
        self._relays: dict[str, Relay] = {}

    async def subscribe(self, stream_id: UUID, cursor: int, tenant: str = "", *, views: bool = True) -> Subscriber:
        """Join a tenant's stream after the cursor. Call `unsubscribe` at the end.

        With `views` false, it does not count as a viewer of a stream that ends without viewers.

        Raises:
            StreamNotFound: the tenant has no such stream.
            StreamExpired: it is older than the retention time.
            CursorBeyondTail: the log does not reach that far.
            PodFull, TooManySubscribers: a limit of subscribers is reached.
            Unavailable: the database does not answer, or has failed over and the log may get back what it lost.
        """
        if (known := self._relays.get(stream_id.hex)) is not None and known.loaded:
            # What it holds may be of an older history of the database. Then this drops it.
            await self._verifier.renew()
        self._limits.join(tenant, stream_id)
        relay = self._relays.get(stream_id.hex)
        if relay is None or (relay.over and not relay.damaged):
            # It is registered before it reads the log, so that it misses no notification from now on.
            relay = Relay(stream_id, self._pool, self._metrics, self._settling, window_bytes=self._window_bytes)
            self._relays[stream_id.hex] = relay
            self._counts.relays = len(self._relays)
        subscriber = Subscriber(relay, cursor, tenant, views=views)
        relay.add(subscriber)
        try:
            await relay.load()
            if relay.tenant != tenant:
                raise await retention.absence(self._pool, stream_id)
            if relay.damaged:
                raise LogDamaged(f"A part of the answer {stream_id} is missing, so it cannot be followed.")
            if cursor > relay.tail and not relay.ended:
                await relay.catch_up()
            if cursor > relay.tail and not relay.ended:
                await self.settle(relay)
            if cursor > relay.tail:
                raise CursorBeyondTail(
                    f"The stream has {relay.tail} events so far, and the cursor is {cursor}. "
                    "Start again without a cursor."
                )
            relay.require_history(cursor)
        except BaseException:
            self.unsubscribe(subscriber)
            raise
        return subscriber

    async def settle(self, relay: Relay) -> None:
        """Read the log to its end for a client that has more than it, unless a failover may be the reason.

        Raises:
            Unavailable: a failover lost the end of the log, and it may come back; or the database does not answer.
        """
        await self._settling.require_settled(relay.stream_id)
        await relay.catch_up()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Leave a stream."""
        relay = subscriber.relay
        relay.remove(subscriber)
        self._limits.leave(subscriber.tenant, relay.stream_id)

    def hear(self, payload: str) -> None:
        """Apply a notification about appended batches. Its signature is checked if it names a stream followed here."""
        self._counts.notifications += 1
        announcements = list(notifications.unpack(payload, self._relays))
        if not announcements:
            return
        if not self._verifier.verifies(notifications.EVENTS_CHANNEL, payload):
            self._counts.unverified_notifications += 1
            self._suspects.update([self._relays[item.stream] for item in announcements])
            self._poll_now.set()
            return
        committed_at = notifications.committed_at(payload)
        if committed_at is not None:
            self._metrics.notification_seconds.observe(max(0, time.time() - committed_at))
        for announcement in announcements:
            self._relays[announcement.stream].hear(announcement, committed_at, with_events=self._with_events)

    def catch_up_all(self) -> None:
        """Read the log for every relay, after a time in which notifications may have been missed."""
        for relay in self._relays.values():
            if not relay.loaded:
                relay.hint()
        # The poll finds out which of the others lag behind.
        self._poll_all = True
        self._poll_now.set()

    def distrust_all(self) -> None:
        """Compare all relays with the log, and drop the ended ones: the database may have gone back in time.

        The tail of a running relay shows whether the log lost what the relay holds, and the relay stays while that may
        come back. An ended relay is dropped, because it is never compared: nothing follows an end.
        """
        for relay in list(self._relays.values()):
            if relay.ended or relay.over:
                self._drop(relay)
        self._poll_all = True
        self._poll_now.set()

    def tap_all(self) -> None:
        """Tap every subscriber."""
        for relay in self._relays.values():
            for subscriber in relay.subscribers:
                subscriber.tap()

    async def run(self) -> None:
        """Poll until cancelled: all relays every `poll_seconds`, and more often the relays that may lag behind."""
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
                    self._suspects.clear()  # they are among all
                    self._poll_due_at = loop.time() + self._poll_seconds
                    self._drop_idle()
                    await self._compare(self._relays.values())
                else:
                    await self._compare(self._take_suspects())
            backoff.reset()
            await asyncio.sleep(DOUBT_SECONDS)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The log cannot be polled: %r", error)
        self._poll_all = True

    async def note_watched(self, interval_seconds: float) -> None:
        """Record at intervals which streams have viewers here: without any, a stream may end or expire."""
        while True:
            await asyncio.sleep(interval_seconds)
            watched = [item for item in self._relays.values() if item.has_viewers]
            ending = [item.stream_id for item in watched if item.ends_unwatched and not item.ended]
            kept = [item.stream_id for item in watched if item.has_ttl]
            try:
                async with translated(self._pool):
                    if ending:
                        await streams.note_watched(self._pool, ending)
                    if kept:
                        await external_streams.touch_all(self._pool, kept)
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning("The pod cannot record which streams are watched: %r", error)

    def _take_suspects(self) -> set[Relay]:
        suspects, self._suspects = self._suspects, set()
        return suspects

    def _drop_idle(self) -> None:
        """Drop the relays that have had no subscriber for a while."""
        now = time.monotonic()
        for key, relay in list(self._relays.items()):
            relay.forget_pages()
            linger_seconds = DAMAGED_LINGER_SECONDS if relay.damaged else 0 if relay.over else LINGER_SECONDS
            if relay.idle_since is not None and now - relay.idle_since > linger_seconds:
                del self._relays[key]
        self._counts.relays = len(self._relays)
        self._counts.window_bytes = sum(relay.window_bytes for relay in self._relays.values())

    async def _compare(self, relays: Iterable[Relay]) -> None:
        """Find the relays that lag behind the log, and the ones that hold what the log has lost."""
        before = {relay: relay.tail for relay in relays if not (relay.ended or relay.over)}
        if not before:
            return
        tails = await event_log.tails(self._pool, [relay.stream_id for relay in before])
        self.answered_at = time.monotonic()
        unsettled = await self._unsettled(before, tails)
        for relay, tail_before in before.items():
            found = tails.get(relay.stream_id)
            if relay.stream_id in unsettled:
                continue
            if found is None or found.seq < tail_before:
                self._drop(relay)
            elif found.seq > relay.tail:
                relay.hint()
            elif found.ended and found.seq == relay.tail and not relay.ended and relay.loaded:
                # The log lost its end, and a new end has the number of an event that was sent before.
                self._drop(relay)

    async def _unsettled(self, before: Mapping[Relay, int], tails: dict[UUID, Standing]) -> set[UUID]:
        """Return the streams whose logs lost what their relays had, and may get it back. Update the other tails."""
        shorter = [relay.stream_id for relay, tail in before.items() if tails.get(relay.stream_id, NOTHING).seq < tail]
        if not shorter:
            return set()
        unsettled = await self._settling.unsettled(shorter)
        tails |= await event_log.tails(self._pool, [item for item in shorter if item not in unsettled])
        return unsettled

    def _drop(self, relay: Relay) -> None:
        relay.leave()
        # Another relay may have taken its place.
        if self._relays.get(relay.stream_id.hex) is relay:
            del self._relays[relay.stream_id.hex]
