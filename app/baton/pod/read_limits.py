"""How fast each caller may read, on this pod: a token bucket for each, in memory.

There are too many reads for a row of the database each. Pods count for themselves: what a read uses up is mostly a
pod's. A read takes one token. One that turns out to have cost more takes the rest afterwards, so a caller can owe
tokens, and then waits for longer.

A bucket is one moment, at which it will be full again (the GCRA, as in `rates`). A full bucket is as good as none. So
memory is bounded: beyond `MOST_CALLERS` the bucket that was used longest ago is forgotten.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ..db.rate_buckets import Rate

# A refusal is given after this time. So a caller that does not care for `Retry-After` keeps its connections busy with
# waiting, and not the pod with refusing.
REFUSAL_SECONDS: Final = 1.0
MOST_CALLERS: Final = 10_000
# A list that looks at more rows than this costs a token for each as many.
ROWS_PER_TOKEN: Final = 20


class Reads:
    """The buckets of all callers, by tenant and name. It runs on one event loop and takes no lock."""

    def __init__(self, rate: Rate, *, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._seconds_per_token = 1 / rate.per_second
        self._now = now
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def take(self, tenant: str, caller: str) -> int | None:
        """Take a token; return None, or where there is none, after how many seconds there will be one."""
        full_at, now = self._full_at.get((tenant, caller), 0.0), self._now()
        wait = full_at - now - self._seconds_per_token * (self.rate.burst - 1)
        # What is left is the rounding of a float.
        if wait > 1e-9:
            return max(1, math.ceil(wait))
        self._put_off(tenant, caller, 1)
        return None

    def charge_rows(self, tenant: str, caller: str, rows: int) -> None:
        """Take what a list cost beyond its one token. This is never refused: it is done already."""
        if tokens := rows // ROWS_PER_TOKEN:
            self._put_off(tenant, caller, tokens)

    def _put_off(self, tenant: str, caller: str, tokens: int) -> None:
        key = (tenant, caller)
        self._full_at[key] = max(self._full_at.get(key, 0.0), self._now()) + tokens * self._seconds_per_token
        self._full_at.move_to_end(key)
        if len(self._full_at) > MOST_CALLERS:
            self._full_at.popitem(last=False)
