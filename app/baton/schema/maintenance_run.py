"""One run of `baton maintain`: it creates partitions ahead, deletes what has expired, and drops empty partitions.

A run uses one connection, under the role that owns the schema. Of several concurrent runs, one works and the others
stop. Each step is a short transaction of its own that the next run can build on, so a run may be interrupted anywhere:

1. Create partitions ahead, each as wide as the policy asks for.
2. Raise the horizon (see `retention`), and commit it before anything is deleted.
3. Delete the rows of ended streams below the horizon in small batches, with their idempotency keys and producers. Full
   rate buckets, which carry no information, are deleted too, and so are states and results of steps whose streams are
   not live.
4. Detach and then drop the partitions that lie wholly below the horizon, if no stream in them has a row any more.
5. Delete the batches of expired streams in the partitions that a stream still needs. A stream may run for a week, and
   until it ends its partition would keep the text of all others of its day.

A partition that a stream still needs is never dropped. A partition is at least a day old when it is checked, and every
row that uses it has an id from its days. Ids come from the database's clock, and the transaction that creates a row
lasts at most as long as a pod waits for it, 10 s, so no row can appear between the check and the drop. An ended stream
is never claimed or queued again, and an append joins the stream's row: once that row is deleted, a late append writes
nothing. An append that began before uses the log, and the detachment waits for it.

A run deletes by its own horizon only, never by a higher one that an earlier run committed. After `BATON_RETENTION_DAYS`
was raised, or a clock had run ahead, streams that are to be kept must survive.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

import asyncpg

from ..db import event_log, partitions, rate_buckets, retention
from ..db.partitions import LOG, Partition
from ..db.postgres import MAINTENANCE_LOCK, MIGRATION_LOCK, Connection
from .retention_policy import Policy, due_of, keeper_of

BATCH_ROWS: Final = 500
STATEMENT_SECONDS: Final = 60
# Long enough for autovacuum to give way: Postgres cancels it after `deadlock_timeout`.
LOCK_SECONDS: Final = 5.0

# Another session blocked the step. What was started stays, and a later run continues.
BLOCKED: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError)

Say = Callable[[str], None]


class MaintenanceRun:
    """One run over a connection of its own, which the caller closes afterwards. `say` gets a line for each change."""

    def __init__(
        self,
        connection: Connection,
        policy: Policy,
        say: Say,
        *,
        lock_seconds: float = LOCK_SECONDS,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._say = say
        self._lock_seconds = lock_seconds
        self._batch_rows = batch_rows

    async def run(self) -> None:
        """Do all steps, unless another run is working."""
        async with _lock(self._connection, MAINTENANCE_LOCK) as alone:
            if not alone:
                self._say("Another `baton maintain` is running, so this one does nothing.")
                return
            await self._set_timeouts()
            await self._create_partitions()
            now = await partitions.now(self._connection)
            horizon = self._policy.horizon(now)
            await retention.raise_horizon(self._connection, horizon)
            await self._delete_rows(horizon, now)
            await self._delete_leftovers(horizon)
            async with _lock(self._connection, MIGRATION_LOCK) as free:
                if free:
                    await self._drop_partitions(horizon)
                else:
                    self._say("A migration is running. The next run drops expired partitions.")
            await self._empty_partitions(horizon)
            self._say(f"Streams created before {partitions.day_of(horizon)} (UTC) have expired.")

    async def _set_timeouts(self) -> None:
        """Bound each step, whatever the database's defaults are."""
        for name, seconds in (("lock_timeout", self._lock_seconds), ("statement_timeout", STATEMENT_SECONDS)):
            await self._connection.execute("SELECT set_config($1, $2, false)", name, f"{seconds * 1000:.0f}ms")

    async def _create_partitions(self) -> None:
        width_days = self._policy.width_days
        if await partitions.set_width(self._connection, width_days):
            self._say(f"New partitions hold {amount(width_days, 'day')} each.")
        try:
            names = await partitions.create_ahead(self._connection, self._policy.days_ahead)
        except BLOCKED:
            user = await partitions.user_of(self._connection, LOG, altering=True)
            self._say(f"No partition was created: {LOG} is in use by {user or 'a transaction'}. The next run retries.")
        else:
            for name in names:
                self._say(f"Created partition {name}.")

    async def _delete_rows(self, horizon: UUID, now: float) -> None:
        stream_count = key_count = 0
        last = UUID(int=0)
        while deleted := await retention.delete_streams(self._connection, last, horizon, self._batch_rows):
            stream_count, last = stream_count + len(deleted), deleted[-1]
        first, end = (datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in (0, now))
        while expired := await retention.delete_keys(self._connection, first, end, self._batch_rows):
            key_count, first = key_count + len(expired), expired[-1]
        await rate_buckets.delete_full(self._connection)
        if stream_count or key_count:
            self._say(
                f"Deleted {amount(stream_count, 'stream')} and {amount(key_count, 'idempotency key')} that had expired."
            )

    async def _delete_leftovers(self, horizon: UUID) -> None:
        count = 0
        for table in retention.RUN_TABLES:
            last: UUID | None = UUID(int=0)
            while last is not None:
                last, deleted = await retention.delete_leftovers(self._connection, table, last, self._batch_rows)
                count += deleted
        if count:
            self._say(f"Deleted {amount(count, 'row')} of states, steps and inputs whose streams have ended.")
        if calls := await retention.delete_stop_calls(self._connection, horizon):
            self._say(f"Deleted {amount(calls, 'call')} that no worker could make.")

    async def _drop_partitions(self, horizon: UUID) -> None:
        await self._drop_detached()
        found = await partitions.attached(self._connection)
        await self._unmark(found)
        due = due_of(found, horizon)
        for partition in due.partitions:
            kept = await keeper_of(self._connection, partition)
            if kept is not None:
                self._say(f"Kept partition {partition.name}: it holds stream {kept.stream_id}, which is {kept.status}.")
            elif not await self._detach_and_drop(partition):
                return
        if due.foreign is not None:
            self._say(
                f"Another session is detaching partition {due.foreign}. If that was interrupted, finish it with "
                f"ALTER TABLE {LOG} DETACH PARTITION {due.foreign} FINALIZE."
            )

    async def _empty_partitions(self, horizon: UUID) -> None:
        """Delete the batches of expired streams in the partitions that were not dropped."""
        for partition in due_of(await partitions.attached(self._connection), horizon).partitions:
            if not partition.detaching:
                await self._empty(partition)

    async def _empty(self, partition: Partition) -> None:
        count = 0
        last: tuple[UUID, int] | None = (partition.first, 0)
        while last is not None:
            last, deleted = await event_log.delete_expired(self._connection, partition, last, self._batch_rows)
            count += deleted
        if count:
            self._say(f"Deleted {amount(count, 'row')} of expired streams from partition {partition.name}.")

    async def _drop_detached(self) -> None:
        for name, marked in (await partitions.detached(self._connection)).items():
            if not marked:
                self._say(f"Left {name} alone: it looks like a partition that was detached on purpose, to keep it.")
            elif await self._is_free(name):
                await self._drop(name)

    async def _unmark(self, found: list[Partition]) -> None:
        """Remove the marks of a run that was interrupted before it detached. Partitions to drop are marked again."""
        for partition in found:
            if partition.marked and not partition.detaching:
                try:
                    await partitions.unmark(self._connection, partition.name)
                except BLOCKED:
                    self._report_user(partition.name, await partitions.user_of(self._connection, partition.name))

    async def _detach_and_drop(self, partition: Partition) -> bool:
        """Detach a partition and drop it; return whether another one can be detached after it."""
        if partition.detaching and not await self._is_free(partition.name, pending=partition.name):
            return False
        try:
            await partitions.detach(self._connection, partition)
        except BLOCKED:
            self._report_user(partition.name, await partitions.user_of(self._connection, LOG, partition.name))
            return False
        await self._drop(partition.name)
        return True

    async def _drop(self, name: str) -> None:
        try:
            await partitions.drop(self._connection, name)
        except BLOCKED:
            self._report_user(name, await partitions.user_of(self._connection, name))
        else:
            self._say(f"Dropped partition {name}.")

    async def _is_free(self, name: str, *, pending: str | None = None) -> bool:
        """Check before asking for an exclusive lock: a parallel pg_dump fails if another session only waits for one."""
        user = await partitions.user_of(self._connection, name, pending=pending)
        if user is not None:
            self._report_user(name, user)
        return user is None

    def _report_user(self, name: str, user: str | None) -> None:
        self._say(f"Partition {name} is in use by {user or 'a transaction'}. The next run retries.")


@contextlib.asynccontextmanager
async def _lock(connection: Connection, key: int) -> AsyncIterator[bool]:
    """Try to take an advisory lock; yield whether it was free. After an error the lock ends with its session."""
    taken = await connection.fetchval("SELECT pg_try_advisory_lock($1)", key)
    yield taken
    if taken:
        await connection.execute("SELECT pg_advisory_unlock($1)", key)


def amount(count: int, noun: str) -> str:
    """Return a count with its noun, in the singular or the plural."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
