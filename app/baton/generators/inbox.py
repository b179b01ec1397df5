"""The inbox of a stream, as its generator sees it: the inputs that people send while the answer is written.

An inbox belongs to one run. Where inputs come from is up to its source: memory, or the database of a worker. The inbox
counts what it has given out. A state that the generator saves covers these inputs, and the next run begins after them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol


class InputSource(Protocol):
    """Where the inputs of one stream come from."""

    async def next(self, after: int) -> Sequence[Any]:
        """Wait until the stream has inputs after a number, and return their data, in order: at least one."""

    def has(self, after: int) -> bool:
        """Whether the stream is known to have inputs after a number."""


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

    async def next(self, after: int) -> Sequence[Any]:
        """Wait for inputs after a number, and return them."""
        while not self.has(after):
            self._added.clear()
            await self._added.wait()
        return self._data[after:]


class InputReceiver(Protocol):
    """Gives a request its inputs: `Inbox`, or `WaitingInbox`."""

    def receive(self, timeout: float | None) -> Any:
        """Return the next input to await; to code that has no event loop, the input itself."""


class Inbox:
    """Gives one run the inputs of its stream, in order.

    `received` is how many it has given out, counting those before `after`, where it begins. `waits` is how many calls
    of `receive` are waiting, and `ended_at` when the last one ended (`time.monotonic`).
    """

    def __init__(self, source: InputSource | None = None, after: int = 0) -> None:
        self._source = source or InputMemory()
        self._by_itself = source is None
        self._read: deque[Any] = deque()
        self._turn = asyncio.Lock()
        self.received = after
        self.waits = 0
        self.ended_at = 0.0

    def begin(self, after: int) -> None:
        """Begin after a number: the generator is called with a state that covers the inputs up to it."""
        self._read.clear()
        self.received = after

    async def receive(self, timeout: float | None) -> Any:
        """Return the data of the next input; None if none comes within `timeout` seconds."""
        self.waits += 1
        try:
            async with asyncio.timeout(timeout if timeout != 0 else None):
                async with self._turn:
                    return await self._next(at_once=timeout == 0)
        except TimeoutError:
            return None
        finally:
            self.waits -= 1
            self.ended_at = time.monotonic()

    async def _next(self, *, at_once: bool) -> Any:
        if not self._read:
            if at_once and not self._source.has(self.received):
                return None
            self._read.extend(await self._source.next(self.received))
        self.received += 1
        return self._read.popleft()
