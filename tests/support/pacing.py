"""The pace of a fake provider's tokens, which a test controls."""

from __future__ import annotations

import asyncio


class Pace:
    """Allows `allowed` tokens in all, one each `interval_seconds`; `release` allows more."""

    def __init__(self, *, interval_seconds: float = 0.0, allowed: float = float("inf")) -> None:
        self.interval_seconds = interval_seconds
        self.allowed = allowed
        self._changed = asyncio.Event()

    def release(self, tokens: float = float("inf")) -> None:
        """Allow this many more tokens."""
        self.allowed += tokens
        self._changed.set()

    async def wait(self) -> None:
        """Wait until the next token may come, and count it."""
        await asyncio.sleep(self.interval_seconds)
        while self.allowed < 1:
            self._changed.clear()
            await self._changed.wait()
        self.allowed -= 1
