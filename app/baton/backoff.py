"""Exponential backoff with full jitter: a random pause between zero and a bound that doubles with each failure.

So clients that failed at the same moment spread their retries over the whole bound. AWS compares kinds of jitter in
"Exponential Backoff And Jitter" (2015).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")


class Backoff:
    """The pauses between attempts at one thing.

    `first_seconds` bounds the first pause and `cap_seconds` the longest one; no pause is shorter than `least_seconds`.
    """

    def __init__(self, *, first_seconds: float = 0.1, cap_seconds: float = 5.0, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._failures = 0

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._failures = 0

    def next_seconds(self) -> float:
        """Count a failure; return the seconds to wait after it."""
        longest = min(self._cap_seconds, self._first_seconds * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        return random.uniform(min(self._least_seconds, longest), longest)

    async def sleep(self) -> None:
        """Count a failure and wait."""
        await asyncio.sleep(self.next_seconds())


async def retry(
    work: Callable[[Backoff], Awaitable[Result]],
    *,
    errors: tuple[type[Exception], ...],
    on_failure: Callable[[Exception], None] = lambda _error: None,
    backoff: Backoff | None = None,
) -> Result:
    """Run `work` until it returns, and return its result. After one of `errors`, call `on_failure` and wait.

    Work that runs forever resets the backoff that it is given whenever it has succeeded at something. All other errors
    are raised.
    """
    backoff = backoff or Backoff()
    while True:
        require_not_cancelled()
        try:
            return await work(backoff)
        except errors as error:
            on_failure(error)
        await backoff.sleep()


def require_not_cancelled() -> None:
    """Raise CancelledError if the task was cancelled, and what it awaited has swallowed that.

    `asyncio.wait_for` of Python 3.11 does, if what it waits for ends at the same moment; drivers connect with it. A
    task that went on would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
