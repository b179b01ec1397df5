"""Admission: held streams go into line when they are due.

A queued stream without a position is *held*, and no worker claims it. `held_until` says why: it starts later; or it is
due and waits for this module, after an input or a deadline woke it, or after an application's own transaction created
it; or it is `infinity`: its tenant has as many streams running or in line as it may, and the stream is *parked*.

Workers admit the streams of their own generators. The limit of a tenant is strict: the tenant's streams are counted and
admitted under an advisory lock, so that each worker sees what the one before it has admitted. Other statements only
lower the count: a stream that is given back goes from running to in line.

What is held is read without a watermark, so that nothing is missed; the reads are paced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from .postgres import Connection
from .queue_lines import IN_LINE, position

# The most streams that one call admits. It is one transaction, and the first of them wait for the last.
MOST: Final = 100
_HELD: Final = "status = 'queued' AND queue_position IS NULL"

_DUE = f"""
SELECT id, tenant, generator FROM baton.stream
WHERE {_HELD} AND held_until <= clock_timestamp() AND generator = ANY ($1)
ORDER BY held_until LIMIT $2
FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608
_LOOK = f"""
SELECT EXISTS (SELECT FROM baton.stream
               WHERE {_HELD} AND held_until <= clock_timestamp() AND generator = ANY ($1)),
       ARRAY (SELECT tenant FROM unnest($2::text[]) AS freed (tenant)
              WHERE EXISTS (SELECT FROM baton.stream AS s
                            WHERE {_HELD} AND s.tenant = freed.tenant AND held_until = 'infinity'))
"""  # noqa: S608
_ADMIT = f"""
UPDATE baton.stream AS s
SET held_until = NULL, queue_position = {position("s.tenant", "s.priority", "$2::text[]", "$3")}
WHERE id = $1 AND {_HELD}
RETURNING id
"""  # noqa: S608

# The limit of a tenant.
_ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('baton.running ' || $1, 0))"
_COUNT = f"""
SELECT count(*) FROM baton.stream
WHERE tenant = $1 AND status NOT IN ('completed', 'failed', 'cancelled') AND (status = 'running' OR {IN_LINE})
"""  # noqa: S608
_OF_TENANT = f"""
SELECT id, generator FROM baton.stream
WHERE {_HELD} AND tenant = $1 AND (held_until <= clock_timestamp() OR held_until = 'infinity')
  AND generator = ANY ($2)
ORDER BY epoch = 0, priority DESC, id LIMIT $3
FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608
_PARK = f"UPDATE baton.stream SET held_until = 'infinity' WHERE id = ANY ($1) AND {_HELD}"  # noqa: S608
# Each step finds the next tenant by the index, whatever number of streams each has.
_PARKED_TENANTS = f"""
WITH RECURSIVE tenants AS (
    (SELECT tenant FROM baton.stream WHERE {_HELD} AND held_until = 'infinity' ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM baton.stream
            WHERE {_HELD} AND held_until = 'infinity' AND tenant > t.tenant ORDER BY tenant LIMIT 1)
    FROM tenants AS t WHERE t.tenant IS NOT NULL
)
SELECT t.tenant FROM tenants AS t
WHERE EXISTS (SELECT FROM baton.stream WHERE {_HELD} AND tenant = t.tenant AND held_until = 'infinity'
              AND generator = ANY ($1))
LIMIT $2
"""  # noqa: S608
_RELEASE = f"""
UPDATE baton.stream SET held_until = clock_timestamp()
WHERE id IN (SELECT id FROM baton.stream WHERE {_HELD} AND held_until = 'infinity' AND generator = ANY ($1) LIMIT $2
             FOR NO KEY UPDATE SKIP LOCKED) AND {_HELD}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Admitting:
    """How a worker admits: the streams of its generators, each into its line.

    `since` is a position before which no stream of these generators is in line. `most_running`: how many streams of a
    tenant may run or be in line; None means any number.
    """

    generators: Sequence[str]
    line_of: Callable[[str], Sequence[str]]
    since: datetime
    most_running: int | None = None


async def look(
    connection: Connection, generators: Sequence[str], freed: Collection[str] = ()
) -> tuple[bool, Collection[str]]:
    """Return whether a stream is due, and which of the tenants that may have room have parked streams."""
    is_due, with_parked = await connection.fetchrow(_LOOK, generators, list(freed))  # type: ignore[misc]
    return is_due, with_parked


async def admit(connection: Connection, how: Admitting, freed: Collection[str] = ()) -> int:
    """Admit streams that are due, `MOST` at most; return how many were found due.

    `freed`: tenants that may have room for parked streams.
    """
    async with connection.transaction():
        due = await connection.fetch(_DUE, how.generators, MOST)
        if how.most_running is None:
            for stream_id, _tenant, generator in due:
                await _admit(connection, how, stream_id, generator)
        else:
            # Sorted, so that two workers that admit for the same tenants do not wait for each other.
            for tenant in sorted({row["tenant"] for row in due} | set(freed)):
                waiting = [row["id"] for row in due if row["tenant"] == tenant]
                await _admit_of_tenant(connection, how, how.most_running, tenant, waiting)
    return len(due)


async def parked_tenants(connection: Connection, generators: Sequence[str]) -> list[str]:
    """Return tenants with parked streams of these generators: `MOST` at most."""
    return [row[0] for row in await connection.fetch(_PARKED_TENANTS, generators, MOST)]


async def release_parked(connection: Connection, generators: Sequence[str]) -> None:
    """Make parked streams due, since no limit holds them any more: `MOST` at most."""
    await connection.execute(_RELEASE, generators, MOST)


async def _admit(connection: Connection, how: Admitting, stream_id: UUID, generator: str) -> None:
    await connection.execute(_ADMIT, stream_id, how.line_of(generator), how.since)


async def _admit_of_tenant(
    connection: Connection, how: Admitting, most_running: int, tenant: str, due: Iterable[UUID]
) -> None:
    """Admit as many of a tenant's streams as it has room for, the interrupted ones first, and park the others."""
    await connection.execute(_ONE_BY_ONE, tenant)
    room = most_running - await connection.fetchval(_COUNT, tenant)
    admitted = set()
    if room > 0:
        for stream_id, generator in await connection.fetch(_OF_TENANT, tenant, how.generators, min(room, MOST)):
            await _admit(connection, how, stream_id, generator)
            admitted.add(stream_id)
    if parked := [stream_id for stream_id in due if stream_id not in admitted]:
        await connection.execute(_PARK, parked)
