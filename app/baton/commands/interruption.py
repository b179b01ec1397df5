"""Signals that ask a command to stop: the first cancels its work, and the tidying up is not disturbed by more."""

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
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except (asyncio.CancelledError, ConfigurationError):
        # A Ctrl-C reaches initdb too, which fails of it before the loop has heard the signal.
        await asyncio.sleep(SIGNAL_SECONDS)
        if not numbers:
            raise
        # Nothing is left to be stopped, and one more shall not change the exit status.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        raise Interrupted(numbers) from None
