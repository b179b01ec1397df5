"""What `baton maintain` does: creates partitions ahead, deletes what has expired, and drops empty partitions.

It runs under the role that owns the schema, from cron or as a loop; of several at once one works. Each step is a short
transaction of its own and leaves things as the next run can go on with them, so it may be cut off anywhere:

1. Partitions are created ahead, for as many days each as the policy asks for.
2. The horizon is raised (see `retention`), and committed before anything is deleted.
3. The rows of ended streams below it are deleted in small batches, with their idempotency keys. Full buckets, which
   say nothing, go too.
4. Partitions that lie wholly below it, and of which no stream has a row any more, are detached and then dropped.

No partition goes that a stream still needs. One lies at least a day in the past when it is looked at, and every row
that it serves has an id from then. Rows get their ids from the database's clock, and a transaction that creates one
lasts as long as a pod waits for it, 10 s, so no row can appear between that look and the drop. A row that has ended is
not claimed or queued again, and appends join the row: without it a late one writes nothing. One that began before the
row was deleted uses the log, and the detachment waits for it.

Only the horizon of this run is used for deleting, not a higher one that was committed before: raising
`BATON_RETENTION_DAYS`, or a clock that had gone ahead, must not cost a stream that is to be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from .. import stream_ids
from ..backoff import Backoff, retry
from ..db import partitions, rate_buckets, retention
from ..db.partitions import LOG, Partition
from ..db.postgres import CONNECTION_ERRORS, MAINTENANCE_LOCK, MIGRATION_LOCK, Connection, connect
from ..db.retention import Kept
from ..db.schema_revision import check_schema
from ..errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch

logger = logging.getLogger(__name__)

DAY_SECONDS: Final = partitions.DAY_SECONDS
BATCH_ROWS: Final = 500
STATEMENT_SECONDS: Final = 60
# Long enough for autovacuum to give way, which takes Postgres its `deadlock_timeout`.
LOCK_SECONDS: Final = 5.0

# Somebody else was in the way. What was begun stands, and a later run goes on with it.
_IN_THE_WAY: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """For how many days ahead there are to be partitions, and for how many whole days streams are kept.

    `partition_days` is for how many days a new partition is made; without it as few as keep their number small.
    """

    days_ahead: int
    retention_days: int
    partition_days: int | None = None

    @property
    def width_days(self) -> int:
        """For how many days a new partition is made."""
        return self.partition_days or partitions.width_for(self.retention_days, self.days_ahead)

    def horizon(self, moment: float) -> UUID:
        """Return the smallest id that is kept at a moment: that of the beginning of a day (UTC)."""
        today = moment // DAY_SECONDS * DAY_SECONDS
        return stream_ids.first_id(max(0, today - self.retention_days * DAY_SECONDS))


async def maintain(dsn: str, policy: Policy, *, say: Say, dry_run: bool = False) -> None:
    """Do it once; with `dry_run`, only say what there is to do.

    Raises:
        DatabaseUnreachable: there is no connection to be had, or it was lost.
        SchemaMismatch: the migrations have not run, or this code is older than the schema.
        ConfigurationError: Postgres refuses a step, for want of rights for instance.
    """
    with _refusals():
        connection = await connect(dsn, command_timeout_seconds=STATEMENT_SECONDS + 5, name="baton maintain")
        try:
            await check_schema(connection)
            if dry_run:
                await foresee(connection, policy, say)
            else:
                await Pass(connection, policy, say).run()
        finally:
            connection.terminate()


async def keep_maintaining(dsn: str, policy: Policy, *, every_seconds: float, say: Say) -> None:
    """Do it again and again until cancelled. An outage is waited for, but not at the start.

    Raises:
        DatabaseUnreachable: there is no connection to be had at the start.
        SchemaMismatch: at the start, or when the schema has changed meanwhile.
        ConfigurationError: Postgres refuses a step at the start.
    """
    await maintain(dsn, policy, say=say)
    await asyncio.sleep(every_seconds)

    async def keep_on(backoff: Backoff) -> None:
        while True:
            await maintain(dsn, policy, say=say)
            backoff.reset()
            await asyncio.sleep(every_seconds)

    def on_failure(error: Exception) -> None:
        if isinstance(error, SchemaMismatch):
            raise error
        logger.warning("%s It is tried again.", error)

    backoff = Backoff(first_seconds=1, cap_seconds=min(60.0, every_seconds))
    await retry(keep_on, errors=(ConfigurationError,), on_failure=on_failure, backoff=backoff)


class Pass:
    """One run over a connection of its own, which is to be closed after it."""

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
        """Do all steps, unless another run is at work."""
        async with _lock(self._connection, MAINTENANCE_LOCK) as alone:
            if not alone:
                self._say("Another `baton maintain` is at work, and this one leaves it to that.")
                return
            await self._set_timeouts()
            await self._create_partitions()
            now = await partitions.now(self._connection)
            horizon = self._policy.horizon(now)
            await retention.raise_horizon(self._connection, horizon)
            await self._delete_rows(horizon, now)
            async with _lock(self._connection, MIGRATION_LOCK) as migrated:
                if migrated:
                    await self._drop_partitions(horizon)
                else:
                    self._say("A migration is at work, and partitions are left to the next run.")
            self._say(f"Streams created before {partitions.day_of(horizon)} (UTC) have expired.")

    async def _set_timeouts(self) -> None:
        """Bound each step, whatever the database's defaults are."""
        for name, seconds in (("lock_timeout", self._lock_seconds), ("statement_timeout", STATEMENT_SECONDS)):
            await self._connection.execute("SELECT set_config($1, $2, false)", name, f"{seconds * 1000:.0f}ms")

    async def _create_partitions(self) -> None:
        width_days = self._policy.width_days
        if await partitions.set_width(self._connection, width_days):
            self._say(f"New partitions are made for {_days(width_days)} each.")
        try:
            names = await partitions.create_ahead(self._connection, self._policy.days_ahead)
        except _IN_THE_WAY:
            user = await partitions.user_of(self._connection, LOG, altering=True)
            self._say(f"No partition was created: {LOG} is in use by {user or 'a transaction'}. The next run does it.")
        else:
            for name in names:
                self._say(f"Created partition {name}.")

    async def _delete_rows(self, horizon: UUID, now: float) -> None:
        streams = keys = 0
        last = UUID(int=0)
        while deleted := await retention.delete_streams(self._connection, last, horizon, self._batch_rows):
            streams, last = streams + len(deleted), deleted[-1]
        first, end = (datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in (0, now))
        while over := await retention.delete_keys(self._connection, first, end, self._batch_rows):
            keys, first = keys + len(over), over[-1]
        await rate_buckets.delete_full(self._connection)
        if streams or keys:
            self._say(f"Deleted {_streams(streams)}, and {_keys(keys)} whose time was over.")

    async def _drop_partitions(self, horizon: UUID) -> None:
        await self._drop_detached()
        found = await partitions.attached(self._connection)
        await self._unmark(found)
        due = due_of(found, horizon)
        for partition in due.partitions:
            kept = await _keeper(self._connection, partition)
            if kept is not None:
                self._say(f"Partition {partition.name} is kept: stream {kept.stream_id} in it is {kept.status}.")
            elif not await self._remove(partition):
                return
        if due.foreign is not None:
            self._say(
                f"Partition {due.foreign} is being detached by somebody else. If that was cut off, finish it: "
                f"ALTER TABLE {LOG} DETACH PARTITION {due.foreign} FINALIZE."
            )

    async def _drop_detached(self) -> None:
        for name, marked in (await partitions.detached(self._connection)).items():
            if not marked:
                self._say(f"{name} looks like a partition that somebody has detached, and is left alone.")
            elif await self._is_free(name):
                await self._drop(name)

    async def _unmark(self, found: list[Partition]) -> None:
        """Take away what a run that was cut off before it could detach has left. Those that go are marked again."""
        for partition in found:
            if partition.marked and not partition.detaching:
                try:
                    await partitions.unmark(self._connection, partition.name)
                except _IN_THE_WAY:
                    self._tell_user(partition.name, await partitions.user_of(self._connection, partition.name))

    async def _remove(self, partition: Partition) -> bool:
        """Detach and drop; return whether another one may be detached after it."""
        if partition.detaching and not await self._is_free(partition.name, pending=partition.name):
            return False
        try:
            await partitions.detach(self._connection, partition)
        except _IN_THE_WAY:
            self._tell_user(partition.name, await partitions.user_of(self._connection, LOG, partition.name))
            return False
        await self._drop(partition.name)
        return True

    async def _drop(self, name: str) -> None:
        try:
            await partitions.drop(self._connection, name)
        except _IN_THE_WAY:
            self._tell_user(name, await partitions.user_of(self._connection, name))
        else:
            self._say(f"Dropped partition {name}.")

    async def _is_free(self, name: str, *, pending: str | None = None) -> bool:
        """Look before asking for an exclusive lock: a parallel pg_dump fails when one is only waited for."""
        user = await partitions.user_of(self._connection, name, pending=pending)
        if user is not None:
            self._tell_user(name, user)
        return user is None

    def _tell_user(self, name: str, user: str | None) -> None:
        self._say(f"Partition {name} is in use by {user or 'a transaction'}, and is left to the next run.")


@dataclass(frozen=True, slots=True)
class Due:
    """The partitions that go unless a stream keeps them, and the name of one that somebody else is detaching."""

    partitions: list[Partition]
    foreign: str | None = None


def due_of(found: list[Partition], horizon: UUID) -> Due:
    """Decide what is to become of the log's partitions."""
    # Postgres detaches no other while the detachment of one is pending.
    pending = [item for item in found if item.detaching]
    for item in pending:
        if not item.marked:
            return Due([], foreign=item.name)
    return Due(pending + [item for item in found if not item.detaching and item.end <= horizon])


async def _keeper(connection: Connection, partition: Partition, *, live: bool = False) -> Kept | None:
    """Return a stream for which a partition is kept; with `live`, one that will not be deleted before."""
    # That was looked at before its detachment began, and since then nobody reads or writes it.
    if partition.detaching:
        return None
    return await retention.oldest_within(connection, partition.first, partition.end, live=live)


async def foresee(connection: Connection, policy: Policy, say: Say) -> None:
    """Say what a run would do now."""
    now = await partitions.now(connection)
    horizon = policy.horizon(now)
    found = await partitions.attached(connection)
    if await partitions.width(connection) != policy.width_days:
        say(f"Would make new partitions for {_days(policy.width_days)} each.")
    for name in await partitions.missing(connection, policy.days_ahead, policy.width_days):
        say(f"Would create partition {name}.")
    streams, keys = await retention.count(connection, horizon)
    say(f"Would delete {_streams(streams)} created before {partitions.day_of(horizon)} (UTC), and {_keys(keys)}.")
    for name, marked in (await partitions.detached(connection)).items():
        say(f"Would {'drop' if marked else 'leave alone'} {name}, which is detached.")
    due = due_of(found, horizon)
    for item in due.partitions:
        live = await _keeper(connection, item, live=True)
        if live is None:
            say(f"Would drop partition {item.name}.")
        else:
            say(f"Would keep partition {item.name}: stream {live.stream_id} in it is {live.status}.")
    if due.foreign is not None:
        say(f"Would drop no partition, since somebody else is detaching {due.foreign}.")


@contextlib.asynccontextmanager
async def _lock(connection: Connection, key: int) -> AsyncIterator[bool]:
    """Try to take an advisory lock; yield whether it was free. After an error the session is closed, and so is it."""
    taken = await connection.fetchval("SELECT pg_try_advisory_lock($1)", key)
    yield taken
    if taken:
        await connection.execute("SELECT pg_advisory_unlock($1)", key)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say in one sentence what kept it from its work."""
    try:
        yield
    except _IN_THE_WAY as error:  # before those of the connection, which a statement that took too long is one of
        raise ConfigurationError(
            f"The maintenance was held up for too long, or cancelled: {error}. What was done stands, and the next run "
            "goes on."
        ) from error
    except CONNECTION_ERRORS as error:
        raise DatabaseUnreachable(
            f"The connection to the database was lost: {error!r}. What was done stands, and the next run goes on."
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"The maintenance could not run: {error}. `baton maintain` needs the role that ran `baton migrate`."
        ) from error
    except asyncpg.PostgresError as error:
        raise ConfigurationError(f"The maintenance could not run: {error}.") from error


def _days(count: int) -> str:
    return f"{count} day{'' if count == 1 else 's'}"


def _streams(count: int) -> str:
    return f"{count} stream{'' if count == 1 else 's'}"


def _keys(count: int) -> str:
    return f"{count} idempotency key{'' if count == 1 else 's'}"
