"""A thread beside the worker's event loop, with a loop of its own: what runs there does not stop if a generator blocks.

Neither loop touches what belongs to the other. The thread hands values that nobody changes to the worker's loop
(`Owner.call`), in order. It may read numbers of the worker, whose values may be a moment old.

A stopped process stops the thread too, and so does C code that holds the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

STOP_SECONDS: Final = 5


class Owner:
    """The event loop that started a thread, as that thread sees it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    def call(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the loop call this soon. Calls keep their order. A loop that is closed calls nothing more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def task(self) -> asyncio.Task[Any] | None:
        """Return the task that the loop is running at this moment."""
        return asyncio.current_task(self._loop)

    def stack(self) -> str:
        """Return where the loop's thread is at this moment."""
        frame = sys._current_frames().get(self._thread_id)
        return "" if frame is None else "".join(traceback.format_stack(frame))


Service: TypeAlias = Callable[[Owner], Coroutine[Any, Any, None]]


class SideThread:
    """Runs services in a thread while its owner's `run()` runs."""

    def __init__(self, *services: Service) -> None:
        self._services = services

    async def run(self) -> None:
        """Run the services until cancelled, and raise what one of them raises."""
        owner, stop = Owner(), asyncio.Event()
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        loop = runner.get_loop()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def work() -> None:
            error: BaseException | None = None
            try:
                with runner:
                    runner.run(self._serve(owner, stop))
            except BaseException as caught:  # noqa: BLE001
                error = caught
            owner.call(_end, ended, error)

        # A daemon, so that the process can end even if this thread hangs.
        # Its log records belong to what its owner works for.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="baton heartbeat", daemon=True).start()
        try:
            await asyncio.shield(ended)
        finally:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
            await asyncio.wait([ended], timeout=STOP_SECONDS)

    async def _serve(self, owner: Owner, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        tasks = [stopping, *(asyncio.create_task(service(owner)) for service in self._services)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.cancelled():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
