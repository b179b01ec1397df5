"""How many clients may follow streams on a pod: in all, per tenant, and per stream.

Each pod counts its own clients only. A stream's count is kept for each tenant that asks for the stream. So a request
with another tenant's stream id takes none of that tenant's places, and learns nothing about it.
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
# A pod that was full has room again below this part of its limit. Otherwise each client that leaves would bring the
# next one at once.
ROOM_AGAIN: Final = 0.95


class Hysteresis:
    """Whether a number has reached its limit, and has not fallen clearly below it since."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reached = False
        self._low = min(limit - 1, int(limit * ROOM_AGAIN))

    def note(self, number: int) -> None:
        """Compare the number, as it is now, with the limit."""
        if number >= self.limit:
            self.reached = True
        elif number <= self._low:
            self.reached = False


class SubscriberLimits:
    """The subscribers of a pod, counted. The metrics read the count here, and get each rejection."""

    def __init__(self, metrics: PodMetrics, *, max_pod: int, max_tenant: int, max_stream: int) -> None:
        self.subscribers = 0
        self._changes: list[asyncio.Event] = []
        self._metrics = metrics
        self._max_pod = max_pod
        self._max_tenant = max_tenant
        self._max_stream = max_stream
        self._level = Hysteresis(max_pod)
        self._tenants: Counter[str] = Counter()
        self._streams: Counter[tuple[str, UUID]] = Counter()
        metrics.read("subscribers", lambda: self.subscribers)

    @property
    def full(self) -> bool:
        """Whether new clients should go to other pods."""
        return self._level.reached

    def changes(self) -> asyncio.Event:
        """Return a new event, which is set each time that a subscriber joins or leaves. The caller clears it."""
        self._changes.append(asyncio.Event())
        return self._changes[-1]

    def newest(self, most: int) -> dict[UUID, int]:
        """Return how many clients follow each stream here, for the newest `most` streams that have any."""
        numbers: Counter[UUID] = Counter()
        for (_, stream_id), count in self._streams.items():
            numbers[stream_id] += count
        if len(numbers) <= most:
            return dict(numbers)
        return {stream_id: numbers[stream_id] for stream_id in heapq.nlargest(most, numbers)}

    def require_room(self, tenant: str, stream_id: UUID | None = None) -> None:
        """Refuse one more subscriber if a limit is reached. Without a stream, check for one yet to be created.

        Raises:
            PodFull, TooManySubscribers: a limit is reached.
        """
        if self.subscribers >= self._max_pod:
            self._reject("pod_subscribers")
            raise PodFull("Too many people are following answers at the moment. Try again soon.", RETRY_AFTER_SECONDS)
        if self._tenants[tenant] >= self._max_tenant:
            self._reject("tenant_subscribers")
            raise TooManySubscribers(
                f"Your limit of {self._max_tenant} open connections is reached. Close some, or try again later.",
                RETRY_AFTER_SECONDS,
            )
        if stream_id is not None and self._streams[tenant, stream_id] >= self._max_stream:
            self._reject("stream_subscribers")
            raise TooManySubscribers(
                f"The limit of {self._max_stream} viewers of this answer is reached. Try again later.",
                RETRY_AFTER_SECONDS,
            )

    def join(self, tenant: str, stream_id: UUID) -> None:
        """Count one more subscriber, until `leave`.

        Raises:
            PodFull, TooManySubscribers: a limit is reached.
        """
        self.require_room(tenant, stream_id)
        self._tenants[tenant] += 1
        self._streams[tenant, stream_id] += 1
        self._change(+1)

    def leave(self, tenant: str, stream_id: UUID) -> None:
        """Count one subscriber less."""
        _take_one(self._tenants, tenant)
        _take_one(self._streams, (tenant, stream_id))
        self._change(-1)

    def _change(self, difference: int) -> None:
        self.subscribers += difference
        self._level.note(self.subscribers)
        for changed in self._changes:
            changed.set()

    def _reject(self, limit: Limit) -> None:
        self._metrics.rejected[limit] += 1


def _take_one(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
