"""Who follows streams on a pod: counted, and bounded, in all, by tenant, and by stream.

The counts are those of one pod, and need nobody else's. A stream's are kept by the tenant that asks: so what others
try with an id that is not theirs takes no place, and tells them nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from typing import Final, TypeVar
from uuid import UUID

from ..errors import PodFull, TooManySubscribers
from ..observability.metrics import PodMetrics
from ..observability.metrics.pod_metrics import Limit

Key = TypeVar("Key")

RETRY_AFTER_SECONDS: Final = 5
# Clients come and go: one that leaves a full pod is not to bring the next one at once, and another after it.
ROOM_AGAIN: Final = 0.95


class Hysteresis:
    """Whether a number has reached its limit, and has not fallen clearly below it since."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reached = False
        self._low = min(limit - 1, int(limit * ROOM_AGAIN))

    def note(self, number: int) -> None:
        """Learn what the number is now."""
        if number >= self.limit:
            self.reached = True
        elif number <= self._low:
            self.reached = False


class SubscriberLimits:
    """The subscribers of a pod."""

    def __init__(self, metrics: PodMetrics, *, max_pod: int, max_tenant: int, max_stream: int) -> None:
        self.changed = asyncio.Event()  # set when a subscriber joins or leaves; the census clears it
        self._metrics = metrics
        self._max_pod = max_pod
        self._max_tenant = max_tenant
        self._max_stream = max_stream
        self._level = Hysteresis(max_pod)
        self._tenants: Counter[str] = Counter()
        self._streams: Counter[tuple[str, UUID]] = Counter()

    @property
    def full(self) -> bool:
        """Whether new clients are better sent to other pods."""
        return self._level.reached

    def newest(self, most: int) -> dict[UUID, int]:
        """Return how many follow each stream here, of the newest `most` that are followed."""
        numbers: Counter[UUID] = Counter()
        for (_, stream_id), count in self._streams.items():
            numbers[stream_id] += count
        if len(numbers) <= most:
            return dict(numbers)
        return {stream_id: numbers[stream_id] for stream_id in heapq.nlargest(most, numbers)}

    def require_room(self, tenant: str, stream_id: UUID | None = None) -> None:
        """Refuse one subscriber more; without a stream, one of a stream that is yet to be created.

        Raises:
            PodFull, TooManySubscribers: there is no room.
        """
        if self._metrics.subscribers >= self._max_pod:
            self._note("pod_subscribers")
            raise PodFull("Too many people follow answers just now. Try again in a moment.", RETRY_AFTER_SECONDS)
        if self._tenants[tenant] >= self._max_tenant:
            self._note("tenant_subscribers")
            raise TooManySubscribers(
                f"Your limit of {self._max_tenant} open connections is reached. Close some, or try again later.",
                RETRY_AFTER_SECONDS,
            )
        if stream_id is not None and self._streams[tenant, stream_id] >= self._max_stream:
            self._note("stream_subscribers")
            raise TooManySubscribers(
                f"The limit of {self._max_stream} viewers of this answer is reached. Try again later.",
                RETRY_AFTER_SECONDS,
            )

    def join(self, tenant: str, stream_id: UUID) -> None:
        """Take a place. Give it back by `leave`.

        Raises:
            PodFull, TooManySubscribers: there is none.
        """
        self.require_room(tenant, stream_id)
        self._tenants[tenant] += 1
        self._streams[tenant, stream_id] += 1
        self._count(+1)

    def leave(self, tenant: str, stream_id: UUID) -> None:
        """Give a place back."""
        _take_one(self._tenants, tenant)
        _take_one(self._streams, (tenant, stream_id))
        self._count(-1)

    def _count(self, change: int) -> None:
        self._metrics.subscribers += change
        self._level.note(self._metrics.subscribers)
        self.changed.set()

    def _note(self, limit: Limit) -> None:
        self._metrics.rejected[limit] += 1


def _take_one(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
