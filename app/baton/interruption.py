"""Signals that ask a command to stop: the first cancels its work, and the tidying up is not disturbed by more."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Interrupted(Exception):
    """The work was cancelled by a signal, and has tidied up. `numbers` are all signals that came."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + self.numbers[0]


async def interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    """Await the work, which SIGINT, SIGTERM or SIGHUP cancels.

    Raises:
        Interrupted: one of them came.
    """
    numbers: list[int] = []
    task = asyncio.create_task(work)

    def stop(number: int) -> None:
        if not numbers:
            task.cancel()
        numbers.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not numbers:
            raise
        raise Interrupted(numbers) from None
