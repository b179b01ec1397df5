"""What stands between a run and its generator: it writes between two events, and notices a generator that waits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self, cast

from ..generators import GenerationRequest, Generator, Yielded
from ..generators.inbox import InputReceiver
from ..generators.threaded import Threaded
from .outbox import MemoryOutbox


class Reception:
    """The calls of `receive` that wait for an input which is not there.

    `blocked` is set while the generator itself waits in one of them, so that it yields nothing before an input comes.
    """

    def __init__(self) -> None:
        self.blocked = asyncio.Event()
        self.timed = False  # the generator waits for a limited time
        self.asked = asyncio.Event()  # the run has taken all events, and asks for the next one
        self._waiting: set[asyncio.Future[bool]] = set()

    def release(self, *, expired: bool = False) -> None:
        """Let all calls look again, or return None."""
        self.blocked.clear()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(expired)

    async def wait(self, timeout: float | None, *, blocks: bool) -> bool:
        """Wait until there may be an input; return whether the time is over."""
        waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        if blocks:
            self.timed = timeout is not None
            self.blocked.set()
        try:
            # Time passes only when the test says so, unless the generator does something else meanwhile.
            async with asyncio.timeout(None if blocks else timeout):
                return await waiting
        except TimeoutError:
            return True
        finally:
            self._waiting.discard(waiting)


class WatchedInbox:
    """The inbox of one run (see `generators.inbox.InputReceiver`)."""

    def __init__(
        self, inbox: InputReceiver, reception: Reception, outbox: MemoryOutbox, blocks: Callable[[], bool]
    ) -> None:
        self._inbox = inbox
        self._reception = reception
        self._outbox = outbox
        self._blocks = blocks

    async def receive(self, timeout: float | None) -> Any:
        """Return the next input; None if none comes in time."""
        settled = False
        while (found := await self._inbox.receive(0)) is None:
            if timeout == 0:
                return None
            if not settled:
                await self._settle()
            elif await self._reception.wait(timeout, blocks=self._blocks()):
                return None
            settled = not settled
        return found

    async def _settle(self) -> None:
        """Let the run take what was yielded before, and write it, as a worker does while a generator waits."""
        # The thread of a plain generator runs ahead.
        await asyncio.sleep(0)
        await self._reception.asked.wait()
        self._outbox.write()


class WatchedGenerator:
    """The generator of one run. Its other attributes are those of the generator."""

    def __init__(
        self,
        generator: Generator,
        outbox: MemoryOutbox,
        reception: Reception,
        is_its_task: Callable[[asyncio.Task[Any] | None], bool],
    ) -> None:
        self._generator = generator
        self._outbox = outbox
        self._reception = reception
        self._is_its_task = is_its_task

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Return the events."""
        # Only its own thread calls a plain generator, and only its own task an async one, unless it starts others.
        plain = isinstance(self._generator, Threaded)
        inbox = WatchedInbox(
            request.inbox,
            self._reception,
            self._outbox,
            lambda: plain or self._is_its_task(asyncio.current_task()),
        )
        events = self._generator(dataclasses.replace(request, inbox=inbox))
        if not hasattr(events, "aclose"):
            return events
        return cast("AsyncGenerator[Yielded, None]", WatchedEvents(events, self._outbox, self._reception))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


class WatchedEvents:
    """The events of one run. Before each further one, the outbox may write, or lose its worker."""

    def __init__(self, events: AsyncGenerator[Yielded, None], outbox: MemoryOutbox, reception: Reception) -> None:
        self._events = events
        self._outbox = outbox
        self._reception = reception

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Yielded:
        """Return the next event. After a kill there is none, and the run stops this."""
        self._outbox.advance()
        if self._outbox.killed:
            await asyncio.Event().wait()
        self._reception.asked.set()
        try:
            return await anext(self._events)
        finally:
            self._reception.asked.clear()

    async def aclose(self) -> None:
        """Close the generator. What it raises after a kill would be lost with its process."""
        with contextlib.suppress(*((Exception,) if self._outbox.killed else ())):
            await self._events.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)
