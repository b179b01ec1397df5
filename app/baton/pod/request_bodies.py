"""The bytes of request bodies that a pod holds at once, over all requests.

A conversation with images has tens of megabytes, and each message sends it whole. BATON_MAX_BODY_BYTES bounds one body.
This bounds all bodies together, by the bytes that have arrived: a client that announces many bytes and sends few takes
little room. The first bytes of each body are free, so ordinary requests are never refused because other clients send
images. One tenant always leaves room for another tenant's largest body.

A body counts from its first byte until its content is stored in the database or refused: then `release` returns its
room. A body that finds no room is refused, since half-read bodies that wait for each other would wait forever. A large
body, once it has arrived, waits for its turn: to parse, check and store a conversation takes four times its memory for
a moment, and only one body at a time does so. A body whose turn does not come within `TURN_SECONDS` is refused, too.
All of this runs on the event loop of the pod.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from ..errors import RequestMemoryFull
from ..observability.metrics import PodMetrics

# Of each body. All connections of a pod together hold at most 640 MB of free bytes, and usually a thousandth of that.
FREE_BYTES: Final = 65_536
RETRY_AFTER_SECONDS: Final = 2
# Larger bodies, and larger inputs of streams, are parsed and stored one at a time.
LARGE_BYTES: Final = 1 << 20
# The work on one body takes less than a second. Proxies give up a request after a minute.
TURN_SECONDS: Final = 30.0


class RequestBodies:
    """The bodies that a pod holds, counted. The metrics read the count here, and get each rejection."""

    def __init__(self, metrics: PodMetrics, *, max_bytes: int, max_body_bytes: int) -> None:
        self.size_bytes = 0  # held now, without the free bytes of each body
        self._metrics = metrics
        self._max_bytes = max(max_bytes, max_body_bytes)
        self._max_tenant_bytes = max(self._max_bytes - max_body_bytes, max_body_bytes)
        self._tenants: Counter[str] = Counter()
        self.turn = asyncio.Lock()
        metrics.read("body_bytes", lambda: self.size_bytes)
        self.turn_seconds = TURN_SECONDS

    def open(self, tenant: str) -> Body:
        """Begin to count a body of a tenant's request."""
        return Body(self, tenant)

    def take(self, tenant: str, size: int) -> None:
        """Take room for this many bytes.

        Raises:
            RequestMemoryFull: there is no room.
        """
        if self.size_bytes + size > self._max_bytes or self._tenants[tenant] + size > self._max_tenant_bytes:
            self._metrics.rejected["total_body_bytes"] += 1
            raise RequestMemoryFull(
                "Too many large messages are being sent at once. Wait a moment, and send this one again.",
                RETRY_AFTER_SECONDS,
                operator=f"requests hold {self.size_bytes} of the {self._max_bytes} bytes of "
                f"BATON_MAX_TOTAL_BODY_BYTES; one "
                f"tenant may hold {self._max_tenant_bytes}",
            )
        self.size_bytes += size
        self._tenants[tenant] += size

    async def take_turn(self) -> None:
        """Wait for the turn to work on a large body.

        Raises:
            RequestMemoryFull: it did not come in time.
        """
        try:
            async with asyncio.timeout(self.turn_seconds):
                await self.turn.acquire()
        except TimeoutError:
            self._metrics.rejected["bodies_turn"] += 1
            raise RequestMemoryFull(
                "Too many large messages are being sent at once. Wait a moment, and send this one again.",
                RETRY_AFTER_SECONDS,
                operator=f"a large body waited {self.turn_seconds:g} s for others to be parsed and stored; look for a "
                "slow database, or add pods",
            ) from None

    def give_back(self, tenant: str, size: int) -> None:
        """Return room."""
        self.size_bytes -= size
        self._tenants[tenant] -= size
        if not self._tenants[tenant]:
            del self._tenants[tenant]


class Body:
    """One body: how many of its bytes have arrived, and how many of those take room."""

    __slots__ = ("_bodies", "_counted", "_has_turn", "_tenant", "size_bytes")

    def __init__(self, bodies: RequestBodies, tenant: str) -> None:
        self._bodies = bodies
        self._tenant = tenant
        self._counted = 0
        self._has_turn = False
        self.size_bytes = 0

    def grow(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            RequestMemoryFull: there is no room for them.
        """
        self.size_bytes += size
        more = max(0, self.size_bytes - FREE_BYTES) - self._counted
        if more > 0:
            self._bodies.take(self._tenant, more)
            self._counted += more

    async def wait_for_turn(self, size: int) -> None:
        """Wait until no other large body is being processed. A small one, by its `size` in bytes, does not wait.

        The turn lasts until `release`, or `give_turn_away`.

        Raises:
            RequestMemoryFull: the turn did not come in time.
        """
        if size > LARGE_BYTES and not self._has_turn:
            await self._bodies.take_turn()
            self._has_turn = True

    def give_turn_away(self) -> bool:
        """Give the turn to the next body; return whether this one had it."""
        had_turn, self._has_turn = self._has_turn, False
        if had_turn:
            self._bodies.turn.release()
        return had_turn

    def release(self) -> None:
        """Return the room and the turn, as the content is dropped. Further calls do nothing."""
        self.give_turn_away()
        if self._counted:
            self._bodies.give_back(self._tenant, self._counted)
            self._counted = 0
