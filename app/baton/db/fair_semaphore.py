"""A fair semaphore for the connections of a pod's database pool: one tenant's requests cannot starve the others.

A pod's requests wait here, in a queue for each tenant, and not in the pool's own queue, which is first come, first
served. A connection that becomes free goes to the tenant that has the fewest. While several tenants ask, none gets more
than its share. A tenant that is alone may have all connections except one, which the next tenant finds free.

Each request sets its tenant once by `set_tenant`, and the tasks that it starts inherit it. Work for all tenants, such
as the listener, the polls and the sampler, has no tenant and does not wait here.

Everything runs on one event loop and takes no lock. At most `places` are taken, and each one is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from ..errors import TooManyQueries

# How long a request waits for its tenant's turn. Shorter than the bound of a query, so that the client gets the reason.
WAIT_SECONDS: Final = 5.0
# The most requests of one tenant that wait at once: more would not get their turn in time.
MOST_WAITING: Final = 2000
# Shares apply for this long after requests of two different tenants followed each other.
SHARED_SECONDS: Final = 60.0
RETRY_AFTER_SECONDS: Final = 1

_tenant: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("baton_tenant", default=None)


def set_tenant(tenant: str | None) -> None:
    """Count the queries of this task for a tenant from now on. The task must end with its request."""
    _tenant.set(tenant)


def current_tenant() -> str | None:
    """Return the tenant that this task works for; None means all tenants."""
    return _tenant.get()


class FairSemaphore:
    """The places of one pool, and a queue for each tenant that waits for one.

    `share` is the part of the places that one tenant may have while others ask. It is at least one place.
    `on_refused` is called for each request that is refused.
    """

    def __init__(self, places: int, share: float, on_refused: Callable[[], None] = lambda: None) -> None:
        self.in_use: Counter[str] = Counter()
        self._alone = max(1, places - 1)
        self._share = max(1, min(self._alone, int(places * share)))
        self._free = places
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._on_refused = on_refused
        self._last_tenant: str | None = None
        self._shared_until = 0.0

    async def acquire(self, tenant: str) -> None:
        """Take a place, and wait for it for `WAIT_SECONDS` at most. Give it back by `release`.

        Raises:
            TooManyQueries: the tenant's other requests used its share for all that time.
        """
        self._note(tenant)
        if tenant not in self._queues and self._may_enter(tenant):
            self._take(tenant)
        else:
            await self._wait(tenant)

    def release(self, tenant: str) -> None:
        """Give a place back. The next request in the queues gets it at once."""
        self._free += 1
        self.in_use[tenant] -= 1
        if not self.in_use[tenant]:
            del self.in_use[tenant]
        self._wake_next()

    def waiting(self, tenant: str) -> int:
        """Return how many requests of a tenant wait."""
        return len(self._queues.get(tenant, ()))

    def _note(self, tenant: str) -> None:
        """Notice that several tenants ask."""
        if self._last_tenant not in {None, tenant}:
            self._shared_until = time.monotonic() + SHARED_SECONDS
        self._last_tenant = tenant

    def _may_enter(self, tenant: str) -> bool:
        alone = time.monotonic() >= self._shared_until
        return self._free > 0 and self.in_use[tenant] < (self._alone if alone else self._share)

    def _take(self, tenant: str) -> None:
        self._free -= 1
        self.in_use[tenant] += 1

    async def _wait(self, tenant: str) -> None:
        if self.waiting(tenant) >= MOST_WAITING:
            raise self._refusal()
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # Its turn came while it was being given up.
                self.release(tenant)
            else:
                self._quit(tenant, turn)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def _quit(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(tenant, deque())
        # A turn that was cancelled may have been passed over, and is not in the queue any more.
        with contextlib.suppress(ValueError):
            queue.remove(turn)
        if not queue:
            self._queues.pop(tenant, None)

    def _wake_next(self) -> None:
        """Give the free places to waiting requests, first to the tenant that has the fewest places."""
        while able := [tenant for tenant in self._queues if self._may_enter(tenant)]:
            tenant = min(able, key=self.in_use.__getitem__)
            # The queue moves to the end, so that tenants with equally many places take turns.
            queue = self._queues.pop(tenant)
            turn = queue.popleft()
            if queue:
                self._queues[tenant] = queue
            if not turn.done():
                self._take(tenant)
                turn.set_result(None)

    def _refusal(self) -> TooManyQueries:
        self._on_refused()
        return TooManyQueries(
            "Too many of your requests are in progress at once. Send fewer, or try again.",
            RETRY_AFTER_SECONDS,
        )
