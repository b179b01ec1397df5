"""The pods' rows: each pod reports its state in its row, at intervals, while it lives.

A pod deletes its row when it leaves. The row of a pod that died stays, and shows since when the pod has been silent,
until another pod deletes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

from .postgres import Connection, Pool
from .schema_revision import REVISION

PodState: TypeAlias = Literal["ready", "full", "draining", "not ready"]

# A row that was not written for this long is deleted.
FORGOTTEN_SECONDS: Final = 600
# The most streams whose viewers a pod reports: the newest ones.
MOST_WATCHED: Final = 500

_NOTE = """
WITH forgotten AS (
    DELETE FROM baton.pod WHERE id IN (
        SELECT id FROM baton.pod WHERE id <> $1 AND noted_at < clock_timestamp() - make_interval(secs => $2)
        FOR UPDATE SKIP LOCKED)
)
INSERT INTO baton.pod AS p (id, name, version, state, listener, subscribers, connections, deliveries, watched, viewers,
                            watched_from, code)
VALUES ($1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (id) DO UPDATE
SET noted_at = clock_timestamp(), state = excluded.state, listener = excluded.listener,
    subscribers = excluded.subscribers, connections = excluded.connections, deliveries = excluded.deliveries,
    watched = excluded.watched, viewers = excluded.viewers, watched_from = excluded.watched_from
"""
_REMOVE = "DELETE FROM baton.pod WHERE id = $1"
_DELIVERIES = """
SELECT extract(epoch FROM clock_timestamp())::double precision, id, deliveries FROM baton.pod
"""
_LISTED = """
SELECT id, name, version, started_at,
       extract(epoch FROM clock_timestamp() - noted_at)::double precision AS silent_seconds,
       state, listener, subscribers, connections, watched_from,
       EXISTS (SELECT FROM baton.pod AS n WHERE n.name = p.name AND n.started_at > p.noted_at) AS replaced
FROM baton.pod AS p ORDER BY name, id
"""
_VIEWERS = """
SELECT v.id, sum(v.viewers)::integer FROM baton.pod AS p, unnest(p.watched, p.viewers) AS v (id, viewers)
WHERE p.id = ANY ($2) AND v.id = ANY ($1)
GROUP BY v.id
"""


@dataclass(frozen=True, slots=True)
class Note:
    """What a pod reports.

    `deliveries`: how often the delay from commit to socket fell into each bucket. `viewers`: how many clients follow
    each stream there, for the newest `MOST_WATCHED` streams.
    """

    id: UUID
    name: str
    version: str
    state: PodState
    listener: str
    subscribers: int
    connections: int
    deliveries: Sequence[int]
    viewers: Mapping[UUID, int]


@dataclass(frozen=True, slots=True)
class ListedPod:
    """A pod, as its row describes it. Its viewers are complete for streams from `watched_from` on.

    `replaced`: another pod with its name has started since this one last wrote its row.
    """

    id: UUID
    name: str
    version: str
    started_at: datetime
    silent_seconds: float
    state: PodState
    listener: str
    subscribers: int
    connections: int
    watched_from: UUID | None
    replaced: bool


async def note(executor: Connection | Pool, report: Note) -> None:
    """Write a pod's row, and delete the rows of pods that have been silent for `FORGOTTEN_SECONDS`."""
    watched_from = min(report.viewers) if len(report.viewers) >= MOST_WATCHED else None
    await executor.execute(
        _NOTE,
        report.id,
        FORGOTTEN_SECONDS,
        report.name,
        report.version,
        report.state,
        report.listener,
        report.subscribers,
        report.connections,
        report.deliveries,
        list(report.viewers),
        list(report.viewers.values()),
        watched_from,
        REVISION,
    )


async def remove(executor: Connection | Pool, pod_id: UUID) -> None:
    """Delete the row of a pod that has left."""
    await executor.execute(_REMOVE, pod_id)


async def deliveries(executor: Connection | Pool) -> tuple[float, dict[UUID, Sequence[int]]]:
    """Return the database's time, in seconds since 1970, and the buckets of each pod's delays."""
    rows = await executor.fetch(_DELIVERIES)
    return max((row[0] for row in rows), default=0.0), {row[1]: row[2] for row in rows}


async def list_all(executor: Connection | Pool) -> list[ListedPod]:
    """List the pods that have not left, by name."""
    return [ListedPod(*row) for row in await executor.fetch(_LISTED)]


async def viewers(
    executor: Connection | Pool, stream_ids: Sequence[UUID], living: Sequence[ListedPod]
) -> dict[UUID, int]:
    """Return how many clients follow each of these streams on these pods, without streams too old to be counted."""
    known_from = max((pod.watched_from for pod in living if pod.watched_from is not None), default=None)
    rows = await executor.fetch(_VIEWERS, stream_ids, [pod.id for pod in living])
    found = {row[0]: row[1] for row in rows}
    return {item: found.get(item, 0) for item in stream_ids if known_from is None or item >= known_from}
