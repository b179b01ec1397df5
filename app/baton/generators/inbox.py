"""The inbox of a stream, as its generator sees it: the inputs that people send while the answer is written.

An inbox belongs to one run. Where inputs come from is up to its source: memory, or the database of a worker. The inbox
counts what it has given out. A state that the generator saves covers these inputs, and the next run begins after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from .steps import on_event_loop


class InputSource(Protocol):
    """Where the inputs of one stream come from. They are numbered 1, 2, 3 …"""

    def has(self, after: int) -> bool:
        """Whether there may be inputs after a number."""

    async def read(self, after: int) -> Sequence[Any]:
        """Return the data of inputs after a number, in order; nothing if there are none yet."""

    async def wait(self, after: int) -> None:
        """Wait until there may be inputs after a number."""


class InputMemory:
    """Inputs in memory, for a generator that runs without a worker, as in a unit test."""

    def __init__(self, data: Sequence[Any] = ()) -> None:
        self._data = list(data)
        self._added = asyncio.Event()

    def add(self, data: Any) -> None:
        """Add an input."""
        self._data.append(data)
        self._added.set()

    def has(self, after: int) -> bool:
        """Whether there are inputs after a number."""
        return len(self._data) > after

    async def read(self, after: int) -> Sequence[Any]:
        """Return the inputs after a number."""
        return self._data[after:]

    async def wait(self, after: int) -> None:
        """Wait until there are inputs after a number."""
        while not self.has(after):
            self._added.clear()
            await self._added.wait()


class InputReceiver(Protocol):
    """Gives a request its inputs: `Inbox`, or `WaitingInbox`."""

    def receive(self, timeout: float | None) -> Any:
        """Return the next input to await; to code that has no event loop, the input itself."""


class Inbox:
    """Gives one run the inputs of its stream, in order.

    It begins after the input `began_after`, and `received` is how many it has given out, counting those. `waits` is how
    many calls of `receive` are waiting, and `ended_at` when the last one ended (`time.monotonic`).
    """

    def __init__(self, source: InputSource | None = None, after: int = 0) -> None:
        self._source = source or InputMemory()
        self._by_itself = source is None
        self._read: deque[Any] = deque()
        self._reading = asyncio.Lock()
        self.received = self.began_after = after
        self.waits = 0
        self.ended_at = 0.0

    def begin(self, after: int) -> None:
        """Begin after a number: the generator is called with a state that covers the inputs up to it."""
        self._read.clear()
        self.received = self.began_after = after

    def receive(self, timeout: float | None) -> Any:
        """Return the data of the next input to await: None if none comes within `timeout` seconds.

        Without a worker and without an event loop, as in a unit test of a plain generator, return the data.
        """
        receiving = self._receive(timeout)
        return asyncio.run(receiving) if self._by_itself and not on_event_loop() else receiving

    async def _receive(self, timeout: float | None) -> Any:
        """Wait for an input that is not there, but no longer than `timeout`. Reading one that is there takes its time.

        A timeout that ended reads would let a caller that asks again and again never get an input.
        """
        clock = asyncio.get_running_loop()
        until = None if timeout is None else clock.time() + timeout
        self.waits += 1
        try:
            while not await self._is_there():
                if until is not None and clock.time() >= until:
                    return None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await self._source.wait(self.received)
            self.received += 1
            return self._read.popleft()
        finally:
            self.waits -= 1
            self.ended_at = time.monotonic()

    async def _is_there(self) -> bool:
        """Return whether the next input has been read, and read it if it may be there. One call reads at a time."""
        if not self._read:
            async with self._reading:
                if not self._read and self._source.has(self.received):
                    self._read.extend(await self._source.read(self.received))
        return bool(self._read)
