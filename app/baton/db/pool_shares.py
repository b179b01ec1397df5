"""Whose turn it is to use the pod's database pool, so that one tenant's requests cannot keep the others out.

A pod's requests wait here, in a line for each tenant, and not in the pool's own line, which is first come, first
served. A connection that becomes free goes to the tenant that has the fewest. While more than one tenant asks, none
has more than its share. One that is alone may have all connections but one, which the next tenant finds free.

Each request says once for whom it works, by `act_for`; tasks that it starts inherit that. What works for all, such as
the listener, the poll and the census, has no tenant and waits for nobody here.

Everything runs on one event loop and takes no lock. At most `places` are taken, and each is given back.
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

# How long a request waits for its tenant's turn. It is shorter than a query's own time, so that the client is given
# the reason.
WAIT_SECONDS: Final = 5.0
# Requests of one tenant that wait at once: more would not get their turn in time.
MOST_WAITING: Final = 2000
# For this long after two tenants have asked by turns, neither may have more than its share.
SHARED_SECONDS: Final = 60.0
RETRY_AFTER_SECONDS: Final = 1

_tenant: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("baton_tenant", default=None)


def act_for(tenant: str | None) -> None:
    """Have the queries that this task makes from now on count for a tenant: for tasks that end with their request."""
    _tenant.set(tenant)


def acting_for() -> str | None:
    """Return for whom this task works; None is for all."""
    return _tenant.get()


class Shares:
    """The places of one pool, and the lines for them.

    `share` is the part of the places that one tenant may have while others ask, at least one place.
    `on_refused` is called for each request that is refused.
    """

    def __init__(self, places: int, share: float, on_refused: Callable[[], None] = lambda: None) -> None:
        self.in_use: Counter[str] = Counter()
        self._places = places
        self._alone = max(1, places - 1)
        self._share = max(1, min(self._alone, int(places * share)))
        self._free = places
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._on_refused = on_refused
        self._last_tenant: str | None = None
        self._shared_until = 0.0

    async def enter(self, tenant: str) -> None:
        """Take a place, and wait for it at most `WAIT_SECONDS`. Give it back by `leave`.

        Raises:
            TooManyQueries: the tenant's other requests have used its share for all that time.
        """
        self._note(tenant)
        if tenant not in self._lines and self._may_enter(tenant):
            self._take(tenant)
        else:
            await self._wait(tenant)

    def leave(self, tenant: str) -> None:
        """Give a place back; the next one in line has it at once."""
        self._free += 1
        self.in_use[tenant] -= 1
        if not self.in_use[tenant]:
            del self.in_use[tenant]
        self._call_next()

    def waiting(self, tenant: str) -> int:
        """Return how many requests of a tenant wait."""
        return len(self._lines.get(tenant, ()))

    def _note(self, tenant: str) -> None:
        """Notice that more than one tenant asks."""
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
        self._lines.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # Its turn came while it was given up.
                self.leave(tenant)
            else:
                self._quit(tenant, turn)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def _quit(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant, deque())
        # One that was cancelled may have been passed over, and is not in line any more.
        with contextlib.suppress(ValueError):
            line.remove(turn)
        if not line:
            self._lines.pop(tenant, None)

    def _call_next(self) -> None:
        """Give the free places to those in line: first to the tenant that has the fewest."""
        while able := [tenant for tenant in self._lines if self._may_enter(tenant)]:
            tenant = min(able, key=self.in_use.__getitem__)
            # The line goes to the back, so that tenants that have as many take turns.
            line = self._lines.pop(tenant)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line
            if not turn.done():
                self._take(tenant)
                turn.set_result(None)

    def _refusal(self) -> TooManyQueries:
        self._on_refused()
        return TooManyQueries(
            "Too many of your requests are at work at once. Send fewer, or try again.",
            RETRY_AFTER_SECONDS,
        )
