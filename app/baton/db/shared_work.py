"""Work that many wait for: it is done once for all of them, in a context that is not that of the first."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from . import pool_shares

Result = TypeVar("Result")


def shared_task(work: Coroutine[Any, Any, Result], *, for_all: bool = False) -> asyncio.Task[Result]:
    """Start what many requests wait for. Each of them has to shield it.

    Its queries count for the tenant of the first request, since one tenant's work is shared by that tenant's requests
    only; or, `for_all`, for no tenant.
    """
    context = contextvars.Context()
    if not for_all:
        context.run(pool_shares.act_for, pool_shares.acting_for())
    return asyncio.create_task(work, context=context)


def seen(task: asyncio.Task[Any]) -> None:
    """Take note of a task's error, which those who wait for it get too, if there are any left."""
    if not task.cancelled():
        task.exception()


class RecentAnswers:
    """Answers to questions that are asked again and again: each is found once in `seconds`, however many ask."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def get(self, key: Hashable, find: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the answer to `key`, which `find` finds. What it raises is raised, and not kept."""
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
