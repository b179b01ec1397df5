"""The calls of generators' `stop` that are still to be made, in `baton.stop_call`.

The statement that ends a stream early moves the stream's state here (`stream_states`). A worker that offers the
generator takes the call: it raises `due_at` by a lease, so that another worker takes the call if this one dies. Two
workers may make the same call, one after the other, which `stop` must allow. A call is deleted once it has succeeded,
or after a bounded time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson

from .postgres import Connection

# The limit must choose the rows before they are locked, and only once.
_TAKE: Final = """
WITH due AS MATERIALIZED (
    SELECT stream_id FROM baton.stop_call
    WHERE generator = ANY ($1) AND due_at <= clock_timestamp()
    ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE baton.stop_call AS c
SET due_at = clock_timestamp() + make_interval(secs => $3::double precision), tries = c.tries + 1
FROM due WHERE c.stream_id = due.stream_id
RETURNING c.stream_id, c.generator, c.state, c.tries,
          extract(epoch FROM clock_timestamp() - c.created_at)::double precision AS age
"""

_DELETE: Final = "DELETE FROM baton.stop_call WHERE stream_id = ANY ($1)"

_POSTPONE: Final = """
UPDATE baton.stop_call AS c SET due_at = clock_timestamp() + make_interval(secs => p.seconds)
FROM unnest($1::uuid[], $2::double precision[]) AS p (stream_id, seconds) WHERE c.stream_id = p.stream_id
"""

_DELETE_OLD: Final = """
DELETE FROM baton.stop_call WHERE created_at < clock_timestamp() - make_interval(secs => $1::double precision)
RETURNING stream_id, generator
"""


@dataclass(frozen=True, slots=True)
class StopCall:
    """A call to make: the generator's name, the state to give it, how often it was tried, and for how long it is due.

    `tries` counts this one.
    """

    stream_id: UUID
    generator: str
    state: Any
    tries: int
    age_seconds: float


async def take(connection: Connection, generators: Sequence[str], most: int, lease_seconds: float) -> list[StopCall]:
    """Take up to `most` calls that are due, of these generators; no other worker takes them before the lease ends."""
    rows = await connection.fetch(_TAKE, generators, most, lease_seconds)
    return [StopCall(row[0], row[1], orjson.loads(row[2]), row[3], row[4]) for row in rows]


async def delete(connection: Connection, stream_ids: Collection[UUID]) -> None:
    """Delete calls that were made, or given up."""
    await connection.execute(_DELETE, list(stream_ids))


async def postpone(connection: Connection, seconds: Mapping[UUID, float]) -> None:
    """Make each call due after its number of seconds; 0 makes them due for any worker now."""
    await connection.execute(_POSTPONE, list(seconds.keys()), list(seconds.values()))


async def delete_older(connection: Connection, seconds: float) -> list[tuple[UUID, str]]:
    """Delete the calls that nobody could make for this long; return their streams and generators."""
    return [(row[0], row[1]) for row in await connection.fetch(_DELETE_OLD, seconds)]
