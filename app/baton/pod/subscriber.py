"""One client's place in a stream on this pod: a cursor that moves over what its relay holds.

A subscriber has no queue. It takes what follows its cursor, or is handed the next batch in the turn of the loop in
which the relay applies it. Only its own methods move the cursor. Everything runs on the pod's event loop, and one task
at a time waits on a subscriber.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ..db.event_log import Batch
from .relay import Relay

OnBatch = Callable[[Batch], bool]


class Subscriber:
    """One client's place in a stream: `cursor` is the last event number that it was given."""

    __slots__ = ("_cursor", "_on_batch", "_tapped", "_waiter", "relay", "tenant", "views")

    def __init__(self, relay: Relay, cursor: int, tenant: str, *, views: bool = True) -> None:
        self.relay = relay
        self.tenant = tenant  # whose limit it counts against
        self.views = views  # keeps a stream alive that ends without viewers
        self._cursor = cursor
        self._tapped = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_batch: OnBatch | None = None

    @property
    def cursor(self) -> int:
        """The number of the last event that it was given."""
        return self._cursor

    @property
    def finished(self) -> bool:
        """Whether it was given the last event of an ended stream."""
        return self.relay.ended and self._cursor >= self.relay.tail

    @property
    def waiting(self) -> bool:
        """Whether a task waits for it to wake."""
        return self._waiter is not None

    async def wait(self, on_batch: OnBatch | None = None) -> None:
        """Wait for events, for the stream's end, or for a tap.

        While it waits, `on_batch` is called with each next batch except the terminal one. If it returns True, the batch
        counts as taken and the wait continues. So a batch reaches a client without waking a task.
        """
        if self._tapped or self.relay.over or self._cursor < self.relay.tail:
            return
        self._on_batch = on_batch
        try:
            await self._woken()
        finally:
            self._on_batch = None

    async def wait_for_more(self) -> None:
        """Skip all events so far, and wait for the next one, for the stream's end, or for a new tap."""
        self._cursor = self.relay.tail
        self._tapped = False
        await self.wait()

    async def pause(self, seconds: float) -> None:
        """Wait this many seconds, whatever events come. The stream's end or a tap ends the wait early."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._tapped or self.relay.ended or self.relay.over):
                    await self._woken()

    async def take(self, *, until_tapped: bool = False) -> list[Batch]:
        """Return the batches that follow the cursor, and move it past them. The first may begin before the cursor.

        A subscriber behind the relay's window waits for the database here. With `until_tapped`, a tap ends that wait,
        and nothing is returned; the read continues, and the next call shares it.

        Raises:
            Unavailable: the database does not answer.
        """
        if self._cursor >= self.relay.tail:
            return []
        batches = self.relay.window_after(self._cursor)
        if batches is None:
            page = self.relay.page_after(self._cursor)
            if until_tapped and not await self._awaited(page):
                return []
            batches = await asyncio.shield(page)
        if batches:
            self._cursor = batches[-1].last_seq
        return batches

    def give(self, batch: Batch) -> None:
        """Give the batch at the relay's tail to `on_batch` if the cursor is right before it, or wake the waiter."""
        if (
            self._on_batch is not None
            and self._cursor == batch.first_seq - 1
            and not (self._tapped or batch.terminal)
            and self._on_batch(batch)
        ):
            self._cursor = batch.last_seq
        else:
            self.wake()

    def tap(self) -> None:
        """Wake it for a reason other than events. The tap lasts until `take_tap`."""
        self._tapped = True
        self.wake()

    def take_tap(self) -> bool:
        """Return whether it was tapped, and clear the tap."""
        tapped, self._tapped = self._tapped, False
        return tapped

    def wake(self) -> None:
        """End its wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _awaited(self, page: asyncio.Task[list[Batch]]) -> bool:
        """Wait for a page or a tap; return whether the page is there."""
        page.add_done_callback(self._wake_for_page)
        try:
            while not (page.done() or self._tapped):
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
