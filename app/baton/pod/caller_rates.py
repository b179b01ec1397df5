"""How fast each caller may read from, or append to, this pod: a token bucket for each, in memory.

Both are too frequent to write a row of the database for each. So each pod counts its own: what a request uses up is
mostly that pod's. A request takes one token. A list that turns out to cost more takes the rest afterwards, so a caller
can owe tokens, and then waits longer.

A bucket is stored as the moment at which it will be full again (the GCRA, as in `db.rate_buckets`). A full bucket is
the same as no bucket. So memory is bounded: beyond `MOST_CALLERS` the least recently used bucket is dropped.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ..db.rate_buckets import Rate

# A refusal is sent after this delay. So a caller that ignores `Retry-After` keeps its own connections waiting, and
# costs the pod little time.
REFUSAL_SECONDS: Final = 1.0
MOST_CALLERS: Final = 10_000
# A list costs one more token for each group of this many rows that it reads.
ROWS_PER_TOKEN: Final = 20


class CallerRates:
    """The buckets of all callers for one kind of request, by tenant and name. It runs on one event loop, unlocked."""

    def __init__(self, rate: Rate, *, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._seconds_per_token = 1 / rate.per_second
        self._now = now
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def take(self, tenant: str, caller: str) -> int | None:
        """Take a token and return None; if there is none, return in how many seconds there will be one."""
        full_at, now = self._full_at.get((tenant, caller), 0.0), self._now()
        wait = full_at - now - self._seconds_per_token * (self.rate.burst - 1)
        # Less than this is a rounding error.
        if wait > 1e-9:
            return max(1, math.ceil(wait))
        self._put_off(tenant, caller, 1)
        return None

    def charge_rows(self, tenant: str, caller: str, rows: int) -> None:
        """Take what a list cost beyond its one token. This is never refused: the list is already done."""
        if tokens := rows // ROWS_PER_TOKEN:
            self._put_off(tenant, caller, tokens)

    def _put_off(self, tenant: str, caller: str, tokens: int) -> None:
        key = (tenant, caller)
        self._full_at[key] = max(self._full_at.get(key, 0.0), self._now()) + tokens * self._seconds_per_token
        self._full_at.move_to_end(key)
        if len(self._full_at) > MOST_CALLERS:
            self._full_at.popitem(last=False)
