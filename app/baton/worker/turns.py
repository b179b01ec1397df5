"""Notices a generator that yields without ever awaiting: the event loop does not turn, and its neighbors starve."""

from __future__ import annotations

import asyncio
import time
from typing import Final

# How long a generator may yield without a turn of the loop.
TURN_SECONDS: Final = 0.005


class Turns:
    """Counts the turns of an event loop, but only those that follow a look. All runs of a worker share one."""

    __slots__ = ("_expected", "number")

    def __init__(self) -> None:
        self.number = 0
        self._expected = False

    def look(self) -> int:
        """Return the number of turns so far, which differs at the next look if the loop has turned in the meantime."""
        if not self._expected:
            self._expected = True
            asyncio.get_running_loop().call_soon(self._turned)
        return self.number

    def _turned(self) -> None:
        self._expected = False
        self.number += 1


class Turn:
    """One run's view of the turns. An event of a generator that awaits costs one comparison of numbers."""

    __slots__ = ("_number", "_turns", "look_at")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._number = -1
        self.look_at = time.monotonic() + TURN_SECONDS  # call `is_kept` from then on

    def is_kept(self, now: float) -> bool:
        """Return whether the loop has not turned since the last look, so that this run has to give way."""
        self.look_at = now + TURN_SECONDS
        before, self._number = self._number, self._turns.look()
        return before == self._number
