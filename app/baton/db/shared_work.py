"""Work that many requests wait for: it runs once for all of them, not in the context of the first."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from . import fair_semaphore

Result = TypeVar("Result")


def shared_task(work: Coroutine[Any, Any, Result], *, for_all: bool = False) -> asyncio.Task[Result]:
    """Start work that many requests wait for. Each of them has to shield it.

    Its queries count for the tenant of the first request, since only that tenant's requests share it. With `for_all`
    they count for no tenant.
    """
    context = contextvars.Context()
    if not for_all:
        context.run(fair_semaphore.set_tenant, fair_semaphore.current_tenant())
    return asyncio.create_task(work, context=context)


def seen(task: asyncio.Task[Any]) -> None:
    """Mark a task's error as retrieved. Requests that still wait for the task get it too."""
    if not task.cancelled():
        task.exception()


class RecentAnswers:
    """A cache of answers to repeated questions: each answer is found once in `seconds`, however many ask."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def get(self, key: Hashable, find: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the cached answer to `key`, or call `find` for it. Its errors are raised and not cached."""
        now = time.monotonic()
        self._forget(now)
        if key not in self._asked:
            task = shared_task(find())
            task.add_done_callback(seen)
            self._asked[key] = (now, task)
        found: Result = await asyncio.shield(self._asked[key][1])
        return found

    def _forget(self, now: float) -> None:
        for key, (asked_at, task) in list(self._asked.items()):
            failed = task.done() and (task.cancelled() or task.exception() is not None)
            if failed or (task.done() and now - asked_at >= self._seconds):
                del self._asked[key]
