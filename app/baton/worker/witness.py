"""Whether a worker can vouch that its streams were its own until the database went back in time.

After a failover that lost the end of the database, the rows may say that a stream is a worker's although another one
took it over in the lost part, and clients have seen what that one wrote. Nobody takes over a stream before its worker
has been silent for a whole lease, during which the others keep beating. So the beats that survived tell both cases
apart. A beat raises a worker's counter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from ..db import worker_rows
from ..db.postgres import Connection


@dataclass(frozen=True, slots=True)
class Beat:
    """When this worker raised its counter, by its own monotonic clock, and all workers' counters just before."""

    at: float
    counters: Mapping[UUID, int]


class Witness:
    """Remembers the worker's last beat in each history of the database."""

    def __init__(self, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._last: dict[str, Beat] = {}

    def note(self, history: str, beat: Beat) -> None:
        """Remember a beat that the database has confirmed."""
        self._last[history] = beat

    async def vouch(self, connection: Connection, history: str, worker_id: UUID | None) -> bool:
        """Return whether nobody took this worker's streams before the database left a history.

        True within a lease after its last beat. Later, true unless another worker's counter has risen by half a lease
        of beats since: then that worker may have taken them over.
        """
        last = self._last.get(history)
        if last is None:
            return False
        if time.monotonic() - last.at < self._lease_seconds:
            return True
        beats = self._lease_seconds / self._heartbeat_seconds / 2
        counters = await worker_rows.counters(connection)
        return all(
            counter - last.counters.get(other_id, 0) < beats
            for other_id, counter in counters.items()
            if other_id != worker_id
        )
