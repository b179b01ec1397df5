"""Plain generators: functions that are not async. Each running stream has a thread of its own, so they may block.

The thread calls the function and iterates over what it returns. It runs ahead of the event loop by at most
`MOST_AHEAD` events, and then waits. The loop takes all events that are there at once, so a fast generator wakes it
once for many events.

What always holds:

- The function runs in a copy of the stream's context, so its log records and spans belong to the stream.
- After `aclose` the generator is closed in its own thread, at its next `yield`: it gets `GeneratorExit` there, and its
  `finally` blocks run. If it waits for a step, it gets `GeneratorExit` there, at once. `aclose` returns once the thread
  has ended.
- After a state that comes before the first event, the thread waits until the loop asks for more. Then it is saved.
- A thread cannot be interrupted. One that does not come back is named in the log, and the process does not wait for it
  at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import inspect
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Self, cast

from ..errors import InvalidEvent
from .protocol import GenerationRequest, Yielded
from .thread_calls import ThreadCalls, WaitingInbox, WaitingSteps

logger = logging.getLogger(__name__)

MOST_AHEAD: Final = 64
# A little less than a run waits for a generator that it has cancelled.
ABANDON_SECONDS: Final = 4.5

PlainGenerator = Callable[[GenerationRequest], Iterable[Yielded]]


def is_plain(candidate: Any) -> bool:
    """Return whether this is a function, or an object that can be called, and neither async nor a class."""
    if inspect.isclass(candidate) or not callable(candidate):
        return False
    asks = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return not any(ask(called) for called in (candidate, type(candidate).__call__) for ask in asks)


class Threaded:
    """Makes a generator of a plain function. Its other attributes are those of the function."""

    def __init__(self, function: PlainGenerator) -> None:
        self._function = function

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Return the events. The thread starts with the first one that is asked for."""
        return cast("AsyncGenerator[Yielded, None]", ThreadedEvents(self._function, request))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


class ThreadedEvents:
    """The events of one stream, from its thread. The public methods belong to the event loop."""

    def __init__(self, function: PlainGenerator, request: GenerationRequest) -> None:
        self._function = function
        self._calls = ThreadCalls()
        self._request = dataclasses.replace(
            request,
            steps=WaitingSteps(self._calls, request.steps),
            inbox=WaitingInbox(self._calls, request.inbox),
        )
        self._name = getattr(function, "__qualname__", type(function).__qualname__)
        self._thread: threading.Thread | None = None
        self._ready = asyncio.Event()  # something has changed since the loop began to wait
        self._taken: deque[Yielded] = deque()
        # What follows is shared by the thread and the loop, under the lock.
        self._changed = threading.Condition(threading.Lock())
        self._items: deque[Yielded] = deque()
        self._waits = False  # the loop waits for the thread
        self._begun = False  # the thread has yielded an event
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None

    @property
    def place(self) -> str:
        """The function, for messages. The thread may have passed the `yield` of the event that they are about."""
        code = getattr(inspect.unwrap(self._function), "__code__", None)
        return self._name if code is None else f"{code.co_filename}:{code.co_firstlineno}, in {self._name}"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Yielded:
        """Return the next event.

        Raises:
            StopAsyncIteration: the generator has returned.
            CancelledError: a step was cancelled because another worker has the stream, or from inside.
            Exception: what the generator has raised.
        """
        if not self._taken:
            await self._take()
        if self._taken:
            return self._taken.popleft()
        error, self._error = self._error, None
        raise error or StopAsyncIteration

    async def aclose(self) -> None:
        """Close the generator at its next `yield` or in its step, and wait for the end of its thread."""
        self._calls.close()
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify()
        self._taken.clear()
        if self._thread is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABANDON_SECONDS):
                await self._until_ended()
        if not self._ended:
            logger.error("%s does not come back, and is abandoned. It is here:\n%s", self._thread.name, self._stack())
            await self._until_ended()
        if self._error is not None and not isinstance(self._error, asyncio.CancelledError):
            raise self._error

    async def _take(self) -> None:
        """Take all events that are there. If there are none, wait for the first one, or for the end."""
        if self._thread is None:
            self._start()
        while True:
            with self._changed:
                if self._items or self._ended:
                    self._taken, self._items = self._items, self._taken
                    self._changed.notify()
                    return
                self._wait_from_now_on()
            await self._ready.wait()

    async def _until_ended(self) -> None:
        while True:
            with self._changed:
                if self._ended:
                    return
                self._wait_from_now_on()
            await self._ready.wait()

    def _wait_from_now_on(self) -> None:
        self._waits = True
        self._ready.clear()
        self._changed.notify()

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._work,),
            name=f"The thread of {self._name} for stream {self._request.stream_id}",
            daemon=True,
        )
        self._thread.start()

    def _stack(self) -> str:
        assert self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    # The methods from here on run in the thread.

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            self._iterate()
        except BaseException as caught:  # noqa: BLE001
            error = caught
            if isinstance(caught, GeneratorExit):
                error = asyncio.CancelledError()
            elif isinstance(caught, StopAsyncIteration) or not isinstance(caught, Exception):
                # In a task it would look like the end of the stream, or end the whole worker.
                error = RuntimeError(f"The generator raised {type(caught).__name__}.")
                error.__cause__ = caught
        with self._changed:
            self._ended, self._error = True, error
            self._wake()

    def _iterate(self) -> None:
        events = _iterator(self._function(self._request))
        try:
            for item in events:
                if not self._put(item):
                    return
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _put(self, item: Yielded) -> bool:
        """Hand an event to the loop; return False if it wants no more."""
        with self._changed:
            while len(self._items) >= MOST_AHEAD and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append(item)
            self._wake()
            if not self._begun and isinstance(item, Mapping) and item.get("type") == "state":
                while not self._waits and not self._closed:
                    self._changed.wait()
            if isinstance(item, Mapping) and item.get("type") == "wait":
                # It ends the run, so nothing after it may run ahead.
                while not self._closed:
                    self._changed.wait()
            self._begun = self._begun or not _is_about_runs(item)
            return not self._closed

    def _wake(self) -> None:
        """Wake the loop if it waits. It may have been closed at the end of the process."""
        if self._waits:
            self._waits = False
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ready.set)


def _is_about_runs(item: Yielded) -> bool:
    """Return whether this is no event, but for the runs of the stream."""
    return not item or (isinstance(item, Mapping) and item.get("type") in {"state", "continue"})


def _iterator(returned: Any) -> Iterator[Yielded]:
    """Return an iterator over what a plain function has returned.

    Raises:
        InvalidEvent: it is one event, or cannot be iterated over. A `str` would be iterated over by characters.
    """
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise InvalidEvent(
            "A generator that is defined with `def` must `yield` its events or return an iterable of them, "
            f"not {type(returned).__name__}."
        )
    return iter(returned)
