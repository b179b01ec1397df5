"""A limit on how many streams of a model run at once in one worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .answer_record import current_record


class Concurrency:
    """The places of one model. Streams that find none wait in their order; `most` None means no limit.

    A worker claims no more streams than there is room for. Streams of other models that fall back on this one may still
    have to wait. All of it runs on one event loop.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._taken = 0
        self._places = None if most is None else asyncio.Semaphore(most)

    @property
    def taken(self) -> int:
        """How many streams have a place or wait for one."""
        return self._taken

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it. The wait does not count as silence of the stream."""
        if self._places is None:
            yield
            return
        self._taken += 1
        try:
            with current_record().wait():
                await self._places.acquire()
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._taken -= 1
