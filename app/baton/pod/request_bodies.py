"""The bytes of request bodies that a pod holds at once, over all requests.

A conversation with images is tens of megabytes, and comes whole with each message. How large one may be is bounded
by BATON_MAX_BODY_BYTES. How many of them a pod can hold is bounded here, by what has arrived of them: a client that
announces much and sends little takes little. The first bytes of each body are free, so ordinary requests are never
refused because others send images. One tenant leaves room for the largest body of another.

A body counts from its first byte until its content is in the database, or refused: then `release` gives its room back.
A body that finds no room is refused, since bodies that wait for each other, each half read, would all wait forever.
Once a large one is whole it waits for its turn: to parse, check and store a conversation takes four times its memory
for a moment, and one at a time does so. A body whose turn does not come within `TURN_SECONDS` is refused, too. All of
this runs on the event loop of the pod.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from ..db.streams import LARGE_BYTES
from ..errors import BodiesFull
from ..observability.metrics import PodMetrics

# Of each body. All connections of a pod together hold 640 MB of these at most, and usually a thousandth of that.
FREE_BYTES: Final = 65_536
RETRY_AFTER_SECONDS: Final = 2
# The work on one body takes less than a second. Proxies give a request up after a minute.
TURN_SECONDS: Final = 30.0


class Bodies:
    """The bodies that a pod holds."""

    def __init__(
        self, metrics: PodMetrics, *, max_bytes: int, max_body_bytes: int, turn_seconds: float = TURN_SECONDS
    ) -> None:
        self._metrics = metrics
        self._max_bytes = max(max_bytes, max_body_bytes)
        self._max_tenant_bytes = max(self._max_bytes - max_body_bytes, max_body_bytes)
        self._tenants: Counter[str] = Counter()
        self.turn = asyncio.Lock()
        self.turn_seconds = turn_seconds

    @property
    def size_bytes(self) -> int:
        """What is held, but for the free bytes of each body."""
        return self._metrics.body_bytes

    def open(self, tenant: str) -> Body:
        """Begin to count a body of a tenant's request."""
        return Body(self, tenant)

    def take(self, tenant: str, size: int) -> None:
        """Take room for this many bytes.

        Raises:
            BodiesFull: there is none.
        """
        if self.size_bytes + size > self._max_bytes or self._tenants[tenant] + size > self._max_tenant_bytes:
            self._metrics.rejected["bodies_bytes"] += 1
            raise BodiesFull(
                "Too many large messages are being sent at once. Wait a moment, and send this one again.",
                RETRY_AFTER_SECONDS,
                operator=f"requests hold {self.size_bytes} of the {self._max_bytes} bytes of BATON_BODIES_BYTES, of "
                f"which one tenant may have {self._max_tenant_bytes}",
            )
        self._metrics.body_bytes += size
        self._tenants[tenant] += size

    async def take_turn(self) -> None:
        """Wait for the turn to work on a large body.

        Raises:
            BodiesFull: it did not come in time.
        """
        try:
            async with asyncio.timeout(self.turn_seconds):
                await self.turn.acquire()
        except TimeoutError:
            self._metrics.rejected["bodies_turn"] += 1
            raise BodiesFull(
                "Too many large messages are being sent at once. Wait a moment, and send this one again.",
                RETRY_AFTER_SECONDS,
                operator=f"a large body waited {self.turn_seconds:g} s for others to be parsed and stored; look for a "
                "slow database, or add pods",
            ) from None

    def give_back(self, tenant: str, size: int) -> None:
        """Give room back."""
        self._metrics.body_bytes -= size
        self._tenants[tenant] -= size
        if not self._tenants[tenant]:
            del self._tenants[tenant]


class Body:
    """One body: how many of its bytes have arrived, and how many of them count."""

    __slots__ = ("_bodies", "_counted", "_has_turn", "_tenant", "size_bytes")

    def __init__(self, bodies: Bodies, tenant: str) -> None:
        self._bodies = bodies
        self._tenant = tenant
        self._counted = 0
        self._has_turn = False
        self.size_bytes = 0

    def grow(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            BodiesFull: there is no room for them.
        """
        self.size_bytes += size
        more = max(0, self.size_bytes - FREE_BYTES) - self._counted
        if more > 0:
            self._bodies.take(self._tenant, more)
            self._counted += more

    async def wait_for_turn(self, size: int) -> None:
        """Wait until no other large body is worked on; a small one, by its `size` in bytes, need not wait.

        The turn lasts until the body is released.

        Raises:
            BodiesFull: the turn did not come in time.
        """
        if size > LARGE_BYTES and not self._has_turn:
            await self._bodies.take_turn()
            self._has_turn = True

    def give_turn_away(self) -> bool:
        """Let the next one have its turn; return whether this one had it."""
        had_turn, self._has_turn = self._has_turn, False
        if had_turn:
            self._bodies.turn.release()
        return had_turn

    def release(self) -> None:
        """Count nothing more, and let the next one have its turn: the content is dropped. It may be called again."""
        self.give_turn_away()
        if self._counted:
            self._bodies.give_back(self._tenant, self._counted)
            self._counted = 0
