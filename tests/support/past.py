"""Streams of past days, and the partitions that hold them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg

from baton import stream_ids
from baton.db import event_log, partitions
from baton.db.event_log import Append
from baton.db.postgres import Connection
from baton.events import encode_text
from baton.outcome import Outcome
from baton.schema.maintenance_run import MaintenanceRun
from baton.schema.retention_policy import DAY_SECONDS, Policy

KEPT_DAYS = 5
POLICY = Policy(days_ahead=1, retention_days=KEPT_DAYS)


async def maintained(
    connection: Connection, policy: Policy = POLICY, *, lock_seconds: float = 5, batch_rows: int = 500
) -> list[str]:
    """Run maintenance once; return the lines that it reports."""
    said: list[str] = []
    await MaintenanceRun(connection, policy, said.append, lock_seconds=lock_seconds, batch_rows=batch_rows).run()
    return said


async def day(connection: Connection, days_ago: int) -> float:
    """Return the start of a day, in seconds since 1970."""
    return (await partitions.now(connection)) // DAY_SECONDS * DAY_SECONDS - days_ago * DAY_SECONDS


async def old_partition(connection: Connection, days_ago: int) -> str:
    """Create the partition of a day as the database's function does; return its name."""
    begins = await day(connection, days_ago)
    name = partitions.name_of(begins)
    if await connection.fetchval("SELECT to_regclass($1)", name) is None:
        await connection.execute(f"CREATE TABLE {name} (LIKE baton.batch INCLUDING ALL)")
        first, end = stream_ids.first_id(begins), stream_ids.first_id(begins + DAY_SECONDS)
        await connection.execute(
            f"ALTER TABLE baton.batch ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}')"
        )
    return name


async def old_stream(
    connection: Connection, days_ago: int, *, batches: int = 1, ended: bool = True, at_seconds: float = 3600
) -> UUID:
    """Insert a stream of a past day with some batches of one event, ended after them or running under epoch 1."""
    await old_partition(connection, days_ago)
    stream_id = id_at(await day(connection, days_ago) + at_seconds)
    await connection.execute(
        "INSERT INTO baton.stream (id, generator, input, on_worker_lost, status, epoch) "
        "VALUES ($1, 'test', 'null', 'retry', 'running', 1)",
        stream_id,
    )
    for seq in range(1, batches + 1):
        await append(connection, stream_id, seq)
    if ended:
        await append(connection, stream_id, batches + 1, Outcome.completed("stop"))
    return stream_id


async def append(connection: Connection, stream_id: UUID, seq: int, outcome: Outcome | None = None) -> None:
    events = outcome.encode() if outcome else encode_text(f"token {seq}")
    assert await event_log.append(connection, [Append(stream_id, 1, seq, seq, events, outcome)]) == {stream_id}


def id_at(moment: float) -> UUID:
    """Return an id as the database would have created it at that moment."""
    noise = uuid4().int & ((1 << 76) - 1)
    return UUID(int=stream_ids.first_id(moment).int | 7 << 76 | noise & ~(3 << 62) | 2 << 62)


async def exists(connection: Connection, name: str) -> bool:
    return await connection.fetchval("SELECT to_regclass($1)", name) is not None


async def has_row(connection: Connection, stream_id: UUID) -> bool:
    return await connection.fetchval("SELECT true FROM baton.stream WHERE id = $1", stream_id) is not None


async def state(connection: Connection, name: str) -> str:
    """Return whether a partition is attached, pending (its detachment was interrupted), detached or gone."""
    if not await exists(connection, name):
        return "gone"
    pending = await connection.fetchval("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = $1::regclass", name)
    return {None: "detached", False: "attached", True: "pending"}[pending]


class Breaking(asyncpg.Connection):
    """A connection whose session is terminated after `answers_left` statements."""

    answers_left = 0
    killer: Connection

    async def execute(self, *args: Any, **kwargs: Any) -> str:
        answer = await super().execute(*args, **kwargs)
        await self._count()
        return answer

    async def fetch(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super().fetch(*args, **kwargs)
        await self._count()
        return answer

    async def fetchval(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super().fetchval(*args, **kwargs)
        await self._count()
        return answer

    async def fetchrow(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super().fetchrow(*args, **kwargs)
        await self._count()
        return answer

    async def _count(self) -> None:
        self.answers_left -= 1
        if self.answers_left == 0:
            assert await self.killer.fetchval("SELECT pg_terminate_backend($1, 5000)", self.get_server_pid())
