"""Whether a worker's lease lasted until the database went back in time.

After a failover that lost the end of the database, the rows may give a worker a stream that another worker took over in
the lost part, and clients have seen what the other one wrote. No worker takes over a stream before its owner has been
silent for a whole lease, during which the others continue their heartbeats. So the heartbeats that survived the
failover tell both cases apart: each one has raised its worker's counter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from ..db import worker_rows
from ..db.postgres import Connection


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """When this worker raised its counter, by its own monotonic clock, and all workers' counters just before."""

    at: float
    counters: Mapping[UUID, int]


class LeaseHistory:
    """Remembers the worker's last heartbeat in each history of the database."""

    def __init__(self, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._last: dict[str, Heartbeat] = {}

    def note(self, history: str, heartbeat: Heartbeat) -> None:
        """Remember a heartbeat that the database has confirmed."""
        self._last[history] = heartbeat

    async def lasted(self, connection: Connection, history: str, worker_id: UUID | None) -> bool:
        """Return whether no other worker took this worker's streams before the database left a history.

        True within a lease after the last heartbeat. Later, true unless another worker's counter has risen by half a
        lease of heartbeats since then: that worker may have taken them over.
        """
        last = self._last.get(history)
        if last is None:
            return False
        if time.monotonic() - last.at < self._lease_seconds:
            return True
        heartbeats = self._lease_seconds / self._heartbeat_seconds / 2
        counters = await worker_rows.counters(connection)
        return all(
            counter - last.counters.get(other_id, 0) < heartbeats
            for other_id, counter in counters.items()
            if other_id != worker_id
        )
