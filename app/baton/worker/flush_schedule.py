"""When a writer flushes which outboxes.

Each flush of all outboxes is followed by a pause, the window. A stream's first event and its terminal event are urgent
and do not wait for the window: an urgent flush carries only these streams, and follows the flush before it by 5 ms at
least. It does not restart the window, since other streams would then wait forever.
"""

from __future__ import annotations

import asyncio
from typing import Final

from .outbox import Outbox

URGENT_PAUSE_SECONDS: Final = 0.005
# The pause after a flush is this many times as long as the shorter of the last two flushes took. It is at least one
# window and at most `LONGEST_WINDOW` windows.
PAUSE_PER_FLUSH: Final = 3
LONGEST_WINDOW: Final = 4


class FlushSchedule:
    """The outboxes that have something to write, and the times of flushes. It belongs to one event loop."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._ready: dict[Outbox, None] = {}
        self._urgent: dict[Outbox, None] = {}
        self._wake = asyncio.Event()
        self._at_once = False
        self._last_flush = 0.0
        self._flush_seconds = 0.0  # what the last flush of all outboxes took
        self._window_over = 0.0

    def ready(self, outbox: Outbox) -> None:
        """Note that an outbox has something to write."""
        if outbox.urgent:
            self._urgent[outbox] = None
            self._wake.set()
        else:
            if not self._ready:
                self._wake.set()
            self._ready[outbox] = None

    def forget(self, outbox: Outbox) -> None:
        """Note that an outbox has nothing to write any more."""
        self._ready.pop(outbox, None)
        self._urgent.pop(outbox, None)

    def flush_at_once(self) -> None:
        """Make a flush due now, even with no outbox in it."""
        self._at_once = True
        self._wake.set()

    async def next_flush(self) -> tuple[list[Outbox], bool]:
        """Wait until a flush is due; return its outboxes, and whether these are all that have something to write."""
        loop = asyncio.get_running_loop()
        while True:
            if self._at_once:
                self._at_once = False
                return [], False
            now = loop.time()
            window_over = self._window_over
            urgent_at = self._last_flush + URGENT_PAUSE_SECONDS
            if (self._ready or self._urgent) and now >= window_over:
                due = list(self._urgent | self._ready)
                self._ready.clear()
                self._urgent.clear()
                return due, True
            if self._urgent and now >= urgent_at:
                due = list(self._urgent)
                self._urgent.clear()
                for outbox in due:
                    self._ready.pop(outbox, None)
                return due, False
            self._wake.clear()
            deadline = min(urgent_at, window_over) if self._urgent else window_over if self._ready else None
            timer = None if deadline is None else loop.call_at(deadline, self._wake.set)
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    def flushed(self, started_at: float, *, all_outboxes: bool) -> None:
        """Note that a flush, which started at a moment of the event loop's clock, is done."""
        self._last_flush = asyncio.get_running_loop().time()
        if all_outboxes:
            self._window_over = self._last_flush + self._pause_after(self._last_flush - started_at)

    def _pause_after(self, flush_seconds: float) -> float:
        """Return the window, or a longer pause if flushes take long, so that the database gets fewer, larger ones.

        The shorter of the last two flushes counts: one slow flush alone must not make all streams wait twice.
        """
        shorter, self._flush_seconds = min(flush_seconds, self._flush_seconds), flush_seconds
        return max(self._window_seconds, min(shorter * PAUSE_PER_FLUSH, self._window_seconds * LONGEST_WINDOW))
