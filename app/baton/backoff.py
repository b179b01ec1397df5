"""Waiting longer after each failure, up to a cap, by a random part of it (AWS's "full jitter")."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """The pauses between tries at one thing."""

    def __init__(self, *, first_seconds: float = 0.1, cap_seconds: float = 5.0) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._failures = 0

    def reset(self) -> None:
        """Begin again at the shortest pause, after a success."""
        self._failures = 0

    def next_seconds(self) -> float:
        """Count a failure; return how long to wait after it."""
        longest = min(self._cap_seconds, self._first_seconds * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        return random.uniform(longest / 2, longest)

    async def sleep(self) -> None:
        """Count a failure, and wait."""
        await asyncio.sleep(self.next_seconds())
