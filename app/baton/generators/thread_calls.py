"""Steps and inputs of plain generators: the thread of a generator waits while the worker's event loop does the work.

So whatever holds for the step of an async generator holds for these: where functions run, what is kept, and that the
stream is not silent in the meantime. Only the end differs. Once the generator is closed, its calls are cancelled, and
they raise `GeneratorExit`, as a `yield` does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from typing import Any

from .inbox import InputReceiver
from .steps import StepCall, StepRunner, on_event_loop


class ThreadCalls:
    """Runs coroutines for one stream's thread, and the threads that this one starts. Only `run` may be called there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Wait for what `call` returns on the loop, and return its result.

        Where an event loop runs, return a future to await.

        Raises:
            GeneratorExit: the generator was closed.
        """
        future = asyncio.run_coroutine_threadsafe(self._run(call), self._loop)
        if on_event_loop():
            return asyncio.wrap_future(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise GeneratorExit from None

    def close(self) -> None:
        """Cancel the calls that run, and run no more."""
        self._closed = True
        for task in self._running:
            task.cancel()

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._closed:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await call()
        finally:
            self._running.discard(task)


class WaitingSteps:
    """The steps of a plain generator."""

    def __init__(self, calls: ThreadCalls, steps: StepRunner) -> None:
        self._calls = calls
        self._steps = steps

    def call(self, step: StepCall) -> Any:
        """Wait for a step, and return its result.

        Raises:
            GeneratorExit: the generator was closed.
            StepError: the name, the function or the arguments are unusable.
        """
        return self._calls.run(lambda: self._steps.call(step))


class WaitingInbox:
    """The inbox of a plain generator."""

    def __init__(self, calls: ThreadCalls, inbox: InputReceiver) -> None:
        self._calls = calls
        self._inbox = inbox

    def receive(self, timeout: float | None) -> Any:
        """Wait for the next input, and return its data; None if none comes in time.

        Raises:
            GeneratorExit: the generator was closed.
        """
        return self._calls.run(lambda: self._inbox.receive(timeout))
