"""How fast each caller may create streams, in all pods together: a token bucket for each, in `baton.token_bucket`.

A row holds one moment, at which its bucket will be full again; each token that is taken puts that off by 1/rate (this
is the GCRA, as ATM's cells were policed by it). So a row whose moment has passed says no more than no row does, and may
be deleted at any time.

The table is UNLOGGED: nothing is written to the WAL but the commit, for which nobody waits, and a crash of Postgres
forgets the buckets. Measured (Postgres 18, `fsync` on, a local socket): a token takes 0.24 ms, where `SELECT 1` takes
0.19; eight connections take 11,000 tokens a second from one bucket, and as many are refused; 58 bytes of WAL for each,
and all updates within a second are made in place.

A bucket in use is one row of many versions, and while an old snapshot is open all of them stay. So its key ends with
the second in which it was last updated, its `slot`: the highest slot leads to the newest versions, and no statement
reads those of the seconds before. A row stays one row, which is locked by each update, so that none is counted twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .postgres import Connection, Pool

# $3 seconds make a token, and $4 is how many the bucket holds. Where there is no token, nothing is written. A moment
# that is too far away to be true is that of a clock that was put back, or of other settings: the bucket begins again.
# One that waited for another update meets its version, whose slot is not lower. Nothing is returned of no bucket.
_TAKE = """
WITH latest AS (
    SELECT slot, full_at FROM baton.token_bucket WHERE tenant = $1 AND caller = $2 ORDER BY slot DESC LIMIT 1
), next AS (
    SELECT clock_timestamp() + make_interval(secs => $3::double precision) AS full_at,
           floor(extract(epoch FROM clock_timestamp()))::bigint AS slot
), taken AS (
    UPDATE baton.token_bucket AS b
    SET slot = greatest(b.slot, next.slot), full_at = CASE
        WHEN b.full_at > next.full_at + make_interval(secs => $3 * $4::integer + 60) THEN next.full_at
        ELSE greatest(b.full_at + make_interval(secs => $3), next.full_at)
    END
    FROM next
    WHERE b.tenant = $1 AND b.caller = $2 AND b.slot >= (SELECT slot FROM latest)
      AND (b.full_at <= next.full_at + make_interval(secs => $3 * ($4 - 2))
           OR b.full_at > next.full_at + make_interval(secs => $3 * $4 + 60))
    RETURNING true
)
SELECT true AS taken, 0.0::double precision AS wait FROM taken
UNION ALL
SELECT false, extract(epoch FROM full_at - clock_timestamp())::double precision - $3 * ($4 - 1)
FROM latest WHERE NOT EXISTS (SELECT FROM taken)
"""

# A bucket has no key of its own to be unique by, so the first tokens of a caller are taken one by one.
_ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('baton.token_bucket ' || length($1) || $1 || $2, 0))"
_MAKE = """
INSERT INTO baton.token_bucket (tenant, caller, slot, full_at)
VALUES ($1, $2, floor(extract(epoch FROM clock_timestamp()))::bigint,
        clock_timestamp() + make_interval(secs => $3::double precision))
"""

_DELETE_FULL = "DELETE FROM baton.token_bucket WHERE full_at < clock_timestamp()"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and `burst` at once after a pause."""

    per_second: float
    burst: int


async def take(pool: Pool, tenant: str, caller: str, rate: Rate) -> int | None:
    """Take a token; return None, or where there is none, after how many seconds there will be one."""
    async with pool.acquire() as connection:
        return await take_in(connection, tenant, caller, rate)


async def take_in(connection: Connection, tenant: str, caller: str, rate: Rate) -> int | None:
    """Do the same over a connection."""
    arguments = tenant, caller, 1 / rate.per_second, rate.burst
    row = await connection.fetchrow(_TAKE, *arguments)
    # One that is refused for no time has seen a bucket that was deleted meanwhile, since it was full.
    if row is None or not (row["taken"] or row["wait"] > 0):
        async with connection.transaction():
            await connection.execute(_ONE_BY_ONE, tenant, caller)
            row = await connection.fetchrow(_TAKE, *arguments)
            if row is None:
                await connection.execute(_MAKE, *arguments[:3])
                return None
    return None if row["taken"] else max(1, math.ceil(row["wait"]))


async def delete_full(connection: Connection) -> None:
    """Delete the buckets that say nothing any more."""
    await connection.execute(_DELETE_FULL)
