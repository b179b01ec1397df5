"""Whether workers may still append what a failover lost.

After a failover the log may lack events that clients have. The worker that wrote them appends them again, and then
moves the stream to the current history of the database (`worker.log_comparison`). If it cannot, the stream ends. Until
one of them has happened, a pod must not take the shorter log for the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from uuid import UUID

from ..db import streams
from ..db.postgres import Pool, translated
from ..errors import Unavailable

UNSETTLED = "The database has failed over, and the end of this answer is being restored. It continues in a moment."


class Settling:
    """The streams that are not settled since a failover, for at most `seconds` after this pod met the first of them.

    `renew` reads the history of the database again. After a restored snapshot it only changes once a pod or a worker
    has noticed that a counter has fallen, and a client that returns at once must not be faster than that.
    """

    def __init__(self, pool: Pool, seconds: float, renew: Callable[[], Awaitable[None]]) -> None:
        self._pool = pool
        self._renew = renew
        self._seconds = seconds
        self._history: str | None = None  # in which this pod has met an unsettled stream
        self._until = 0.0  # on the event loop's clock

    async def unsettled(self, stream_ids: Collection[UUID]) -> set[UUID]:
        """Return which of these streams may get back what they lost. Read their logs again after this, not before.

        Raises:
            Unavailable: the database does not answer.
        """
        await self._renew()
        async with translated(self._pool):
            found, history = await streams.of_older_history(self._pool, stream_ids)
        now = asyncio.get_running_loop().time()
        if found and history != self._history:
            self._history, self._until = history, now + self._seconds
        return found if now < self._until else set()

    async def require_settled(self, stream_id: UUID) -> None:
        """Refuse to take the log of a stream for complete while it is not settled.

        Raises:
            Unavailable: it is not settled, or the database does not answer.
        """
        if await self.unsettled([stream_id]):
            raise Unavailable(UNSETTLED)
