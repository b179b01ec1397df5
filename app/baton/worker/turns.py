"""Notices a generator that yields without ever awaiting: the event loop does not turn, and its neighbors starve."""

from __future__ import annotations

import asyncio
import time
from typing import Final

# How long the loop may stand still before the run that holds it is told to give way; at most twice that.
TURN_SECONDS: Final = 0.005


class Turns:
    """Watches whether an event loop turns. All runs of a worker share one, and an event costs one comparison."""

    __slots__ = ("_expected", "look_at")

    def __init__(self) -> None:
        self.look_at = time.monotonic() + TURN_SECONDS  # call `stands` from then on
        self._expected = False

    def stands(self, now: float) -> bool:
        """Return whether the loop has not turned since the last look, so that the caller has to give way."""
        self.look_at = now + TURN_SECONDS
        if self._expected:
            return True
        self._expected = True
        asyncio.get_running_loop().call_soon(self._turned)
        return False

    def _turned(self) -> None:
        self._expected = False
