"""Partitions of the log: one for each day of streams or for several, created ahead, and dropped once they have expired.

Each partition costs a statement on the whole log three locks, and every session some memory. So there are `MOST` at
most: where streams are kept for longer than a year, a new partition holds several days. `baton.partitioning` holds that
number for all processes that create partitions. Existing partitions stay as they are. Each one begins and ends between
two days.

There is no default partition: creating any later partition would scan its rows, and Postgres refuses to detach a
partition concurrently beside it.

No step makes appends or reads wait. `DETACH PARTITION … CONCURRENTLY` marks the partition, so that new statements leave
it out, waits without a lock for the statements that use the log, and then locks the partition alone. It cannot run in a
transaction. If it is interrupted, the partition is left "pending" and must be finalized. Then the table, which has no
parent any more, is dropped. A comment marks a table that is to be dropped, so that one that an operator detached stays.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from ..stream_ids import first_id, moment_of
from .postgres import Connection, Pool

_CREATE = "SELECT baton.create_partitions($1)"

_WIDTH = "SELECT days FROM baton.partitioning"
_SET_WIDTH = """
INSERT INTO baton.partitioning AS p (days) VALUES ($1)
ON CONFLICT (single) DO UPDATE SET days = excluded.days WHERE p.days <> excluded.days
RETURNING days
"""

# From the catalog only, which every role may read.
_ATTACHED = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds,
       i.inhdetachpending AS detaching, obj_description(c.oid, 'pg_class') IS NOT DISTINCT FROM $1 AS marked
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = (
    SELECT p.oid FROM pg_class AS p JOIN pg_namespace AS s ON s.oid = p.relnamespace
    WHERE s.nspname = 'baton' AND p.relname = 'batch')
ORDER BY 1
"""
# Tables that are marked, and tables whose names look like a partition's.
_DETACHED = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, d.description IS NOT DISTINCT FROM $1 AS marked
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_description AS d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE c.relkind = 'r' AND NOT c.relispartition
  AND (d.description = $1 OR n.nspname = 'baton' AND c.relname ~ '^batch_[0-9]{8}$')
ORDER BY 1
"""

_PENDING = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = $1::text::regclass"

# The session that has one of these tables locked, in a mode other than those of $3. Or, if the detachment of $2 is
# pending, the session with a snapshot from before it, in which the partition is still attached. Autovacuum gives way
# without help. Only some roles see when another role's transaction began.
_USER = """
WITH locked AS (
    SELECT DISTINCT pid FROM pg_locks
    WHERE locktype = 'relation' AND granted AND relation = ANY ($1::text[]::regclass[])
      AND mode <> ALL ($3::text[])
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), pending AS (
    SELECT age(xmin) AS age FROM pg_inherits WHERE inhrelid = $2::text::regclass AND inhdetachpending
)
SELECT a.pid, a.usename, a.application_name
FROM pg_stat_activity AS a LEFT JOIN locked USING (pid) LEFT JOIN pending ON age(a.backend_xmin) >= pending.age
WHERE (locked.pid IS NOT NULL OR pending.age IS NOT NULL)
  AND a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
ORDER BY a.xact_start NULLS LAST
LIMIT 1
"""

_TAKEN = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL"

_NOW = "SELECT extract(epoch FROM clock_timestamp())::double precision"

# The locks of readers and writers, which do not conflict with attaching a partition.
_HARMLESS: Final = ("AccessShareLock", "RowShareLock", "RowExclusiveLock")

LOG: Final = "baton.batch"
DAY_SECONDS: Final = 86_400
# When less time is left, an operator should act. It is a day, less the time in which workers create the next partition.
LEAST_SECONDS: Final = 22 * 3600
# Tests run with this many partitions, and with as many sessions as a server accepts by default
# (tests/integration/db/test_ceiling.py).
MOST: Final = 400
# Room for partitions that stay because a stream in them has not ended.
_SPARE: Final = 20
# A transaction that creates partitions holds seven locks for each, so one transaction creates those of 30 days.
_STEP_DAYS: Final = 30
_MARK: Final = "Expired: `baton maintain` drops it."
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \((\S+)\) TO \((\S+)\)")
_LEAST, _GREATEST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the log. It holds the streams with ids from `first` on and before `end`.

    `detaching`: its detachment has begun. `marked`: it is to be dropped.
    """

    name: str
    first: UUID
    end: UUID
    detaching: bool
    marked: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """When the partitions end: in seconds since 1970, and in seconds from now on the database's clock."""

    end: float
    left_seconds: float


async def create_ahead(executor: Connection | Pool, days_ahead: int) -> list[str]:
    """Create the missing partitions from yesterday to `days_ahead` days from today (UTC); return their names."""
    names = []
    for days in steps(days_ahead):
        names += [record[0] for record in await executor.fetch(_CREATE, days)]
    return names


def steps(days_ahead: int) -> tuple[int, ...]:
    """Return for how many days ahead to create partitions, in one transaction after another."""
    return *range(_STEP_DAYS, days_ahead, _STEP_DAYS), days_ahead


async def missing(executor: Connection | Pool, days_ahead: int, width_days: int | None = None) -> list[str]:
    """Return the names of the partitions that `create_ahead` would create, if new ones held `width_days`."""
    if width_days is None:
        width_days = await width(executor)
    there, moment = await attached(executor), await now(executor)
    return [item.name for item in planned(there, moment, days_ahead, width_days)]


def planned(there: Sequence[Partition], moment: float, days_ahead: int, width_days: int) -> list[Partition]:
    """Return the partitions that are missing, as `baton.create_partitions` determines them."""
    today = int(moment // DAY_SECONDS)
    place, goal = ids_of_day(today - 1)[0], ids_of_day(today + days_ahead + 1)[0]
    found = []
    beyond = Partition("", _GREATEST, _GREATEST, detaching=False, marked=False)
    for item in [*sorted((item for item in there if item.end > place), key=lambda item: item.first), beyond]:
        while place < min(item.first, goal):
            edge = ids_of_day((day_number(place) // width_days + 1) * width_days)[0]
            new = Partition(name_of(moment_of(place)), place, min(edge, item.first), detaching=False, marked=False)
            found.append(new)
            place = new.end
        if place >= goal:
            break
        place = item.end
    return found


async def width(executor: Connection | Pool) -> int:
    """Return how many days a new partition holds."""
    found: int | None = None
    # The schema of the previous release has no such table, and partitions of one day.
    with contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        found = await executor.fetchval(_WIDTH)
    return found or 1


async def set_width(connection: Connection, days: int) -> bool:
    """Set how many days a new partition holds, for all processes that create them; return whether that changed it."""
    return await connection.fetchval(_SET_WIDTH, days) is not None


def width_for(retention_days: int, days_ahead: int) -> int:
    """Return how many days a partition must hold so that there are at most `MOST`."""
    # Three more days: today, a day that is not dropped yet, and the surplus days in the first and the last partition.
    return math.ceil((retention_days + days_ahead + 3) / (MOST - _SPARE))


async def taken(executor: Connection | Pool, names: Sequence[str]) -> list[str]:
    """Return which of these names are taken by something other than a partition."""
    return [record[0] for record in await executor.fetch(_TAKEN, names)]


async def now(executor: Connection | Pool) -> float:
    """Return the database's time, from which ids are made, in seconds since 1970."""
    moment: float = await executor.fetchval(_NOW)
    return moment


async def attached(executor: Connection | Pool) -> list[Partition]:
    """Return the log's partitions in the order of their names, without a default one."""
    found = []
    for name, bounds, detaching, marked in await executor.fetch(_ATTACHED, _MARK):
        # A partition that was dropped a moment ago has no bounds.
        if match := _BOUNDS.fullmatch(bounds or ""):
            found.append(Partition(name, _edge(match[1]), _edge(match[2]), detaching, marked))
    return found


async def detached(executor: Connection | Pool) -> dict[str, bool]:
    """Return the tables that once were partitions, each with whether it is to be dropped."""
    return {row["name"]: row["marked"] for row in await executor.fetch(_DETACHED, _MARK)}


async def detach(connection: Connection, partition: Partition) -> None:
    """Detach a partition, or finish its detachment. This cannot run in a transaction.

    Raises:
        LockNotAvailableError: a session uses the log, or this partition, for longer than `lock_timeout`.
    """
    if partition.detaching:
        await connection.execute(f"ALTER TABLE {LOG} DETACH PARTITION {partition.name} FINALIZE")
        return
    await connection.execute(f"COMMENT ON TABLE {partition.name} IS '{_MARK}'")
    try:
        await connection.execute(f"ALTER TABLE {LOG} DETACH PARTITION {partition.name} CONCURRENTLY")
    except asyncpg.PostgresError:
        if not await connection.fetchval(_PENDING, partition.name):
            await unmark(connection, partition.name)
        raise


async def unmark(connection: Connection, name: str) -> None:
    """Remove the mark of a partition that stays attached: an operator who detaches it later means to keep it."""
    await connection.execute(f"COMMENT ON TABLE {name} IS NULL")


async def drop(connection: Connection, name: str) -> None:
    """Drop a detached table."""
    await connection.execute(f"DROP TABLE {name}")


async def user_of(
    connection: Connection, *tables: str, pending: str | None = None, altering: bool = False
) -> str | None:
    """Describe another session that has one of the tables locked, or may still see the `pending` partition attached.

    With `altering`, only sessions that block attaching a partition count, and not readers and writers.
    """
    row = await connection.fetchrow(_USER, tables, pending, _HARMLESS if altering else ())
    if row is None:
        return None
    return f"session {row['pid']} (role {row['usename']}, application {row['application_name'] or 'unnamed'})"


async def reach(executor: Connection | Pool) -> Reach:
    """Return the time until which every new stream has a partition."""
    moment = await now(executor)
    end = first_id(moment)
    for item in sorted(await attached(executor), key=lambda item: item.first):
        if not item.detaching and item.first <= end < item.end:
            end = item.end
    return Reach(moment_of(end), moment_of(end) - moment)


def name_of(moment: float) -> str:
    """Return the name of a partition that begins on the day of a moment, in seconds since 1970."""
    return f"baton.batch_{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y%m%d}"


def day_number(stream_id: UUID) -> int:
    """Return on which day (UTC) a stream was created, in days since 1970."""
    return (stream_id.int >> 80) // (DAY_SECONDS * 1000)


def ids_of_day(number: int) -> tuple[UUID, UUID]:
    """Return the smallest and the greatest id of a day's streams; the day is counted as by `day_number`."""
    milliseconds = DAY_SECONDS * 1000
    return UUID(int=number * milliseconds << 80), UUID(int=min(_GREATEST.int, ((number + 1) * milliseconds << 80) - 1))


def day_of(stream_id: UUID) -> str:
    """Return the day (UTC) on which a stream was created, as YYYY-MM-DD."""
    return f"{datetime.datetime.fromtimestamp(moment_of(stream_id), datetime.UTC):%Y-%m-%d}"


def _edge(text: str) -> UUID:
    return _LEAST if text == "MINVALUE" else _GREATEST if text == "MAXVALUE" else UUID(text.strip("'"))
