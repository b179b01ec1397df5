"""The pods' rows: what each says of itself, again and again, while it lives.

A pod takes its row away when it leaves. One that dies leaves it behind, and shows by it since when it has been silent,
until another pod forgets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

from .postgres import Connection, Pool

PodState: TypeAlias = Literal["ready", "full", "draining", "not ready"]

# A row that nobody has written for so long is taken away.
FORGOTTEN_SECONDS: Final = 600
# Streams whose viewers a pod notes, at most: those of the newest.
MOST_WATCHED: Final = 500

_NOTE = """
WITH forgotten AS (
    DELETE FROM baton.pod WHERE id IN (
        SELECT id FROM baton.pod WHERE id <> $1 AND noted_at < clock_timestamp() - make_interval(secs => $2)
        FOR UPDATE SKIP LOCKED)
)
INSERT INTO baton.pod AS p (id, name, version, state, listener, subscribers, connections, deliveries, watched, viewers,
                            watched_from)
VALUES ($1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
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
    """What a pod says of itself.

    `deliveries`: how often the delay from commit to socket fell into which bucket. `viewers`: how many follow each
    stream there, of the newest `MOST_WATCHED`.
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
    """A pod as the database sees it. What is said of viewers is whole for streams from `watched_from` on.

    `replaced`: another pod has started under its name since this one last wrote its row.
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


async def note(executor: Connection | Pool, said: Note) -> None:
    """Write a pod's row, and take away those of pods that have been silent for long."""
    watched_from = min(said.viewers) if len(said.viewers) >= MOST_WATCHED else None
    await executor.execute(
        _NOTE,
        said.id,
        FORGOTTEN_SECONDS,
        said.name,
        said.version,
        said.state,
        said.listener,
        said.subscribers,
        said.connections,
        said.deliveries,
        list(said.viewers),
        list(said.viewers.values()),
        watched_from,
    )


async def remove(executor: Connection | Pool, pod_id: UUID) -> None:
    """Take a pod's row away: it has left."""
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
    """Return how many follow each of these streams on these pods; nothing of a stream that is too old to be known."""
    known_from = max((pod.watched_from for pod in living if pod.watched_from is not None), default=None)
    rows = await executor.fetch(_VIEWERS, stream_ids, [pod.id for pod in living])
    found = {row[0]: row[1] for row in rows}
    return {item: found.get(item, 0) for item in stream_ids if known_from is None or item >= known_from}
