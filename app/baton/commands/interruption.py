"""Stops a command on a signal: the first one cancels its work, and later ones do not disturb the cleanup."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ..errors import ConfigurationError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNAL_SECONDS: Final = 0.1

Result = TypeVar("Result")


class Interrupted(Exception):
    """A signal cancelled the work, which has cleaned up. `numbers` are all signals that arrived."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers

    @property
    def exit_status(self) -> int:
        """The exit status of a process that a signal ended."""
        return 128 + self.numbers[0]


async def interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    """Await the work; cancel it on SIGINT, SIGTERM or SIGHUP.

    Raises:
        Interrupted: one of these signals arrived.
    """
    numbers: list[int] = []
    task = asyncio.create_task(work)

    def stop(number: int) -> None:
        if not numbers:
            task.cancel()
        numbers.append(number)

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except (asyncio.CancelledError, ConfigurationError):
        # A Ctrl-C also reaches initdb, which fails before the loop has handled the signal.
        await asyncio.sleep(SIGNAL_SECONDS)
        if not numbers:
            raise
        # Nothing is left to stop, and another signal must not change the exit status.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        raise Interrupted(numbers) from None
