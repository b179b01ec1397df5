"""Steps of plain generators: the thread of a generator waits while its step runs on the worker's event loop.

So whatever holds for the step of an async generator holds for these: where functions run, what is kept, and that the
stream is not silent in the meantime. Only the end differs. Once the generator is closed, its steps are cancelled, and
`call` raises `GeneratorExit`, as a `yield` does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

from .steps import StepCall, StepRunner, on_event_loop


class WaitingSteps:
    """Runs steps for one stream's thread, and the threads that this one starts. Only `call` may be called there."""

    def __init__(self, steps: StepRunner) -> None:
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def call(self, step: StepCall) -> Any:
        """Wait for a step, and return its result. Where an event loop runs, return a future to await.

        Raises:
            GeneratorExit: the generator was closed.
            StepError: the name, the function or the arguments are unusable.
        """
        future = asyncio.run_coroutine_threadsafe(self._run(step), self._loop)
        if on_event_loop():
            return asyncio.wrap_future(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise GeneratorExit from None

    def close(self) -> None:
        """Cancel the steps that run, and run no more."""
        self._closed = True
        for task in self._running:
            task.cancel()

    async def _run(self, step: StepCall) -> Any:
        if self._closed:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self._steps.call(step)
        finally:
            self._running.discard(task)
