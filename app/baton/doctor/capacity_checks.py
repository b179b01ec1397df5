"""Checks of what the server has left: disk, connections, and transaction ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ..db import disk_space
from .finding import Case, Finding, error, ok, warning

# A pod listens. From a producer's first append on, it also appends. Its queries and hints have a pool of their own.
POD_CONNECTIONS: Final = 2
# A worker listens, appends, notifies, claims, sends heartbeats, and reads or writes records: one connection each. With
# an end hook it has more, and one for webhooks.
WORKER_CONNECTIONS: Final = 6
END_HOOK_CONNECTIONS: Final = 4
WEBHOOK_CONNECTIONS: Final = 1
# The size of a WAL segment.
ROOM_MEGABYTES: Final = 16

_NEAR_LIMIT: Final = 0.8
# Postgres stops assigning ids when the oldest is about two thousand million old.
_OLD_ID: Final = 1_500_000_000

_CONNECTIONS: Final = """
SELECT current_setting('max_connections')::integer AS most,
       current_setting('superuser_reserved_connections')::integer
       + coalesce(current_setting('reserved_connections', true), '0')::integer AS reserved,
       (SELECT sum(numbackends) FROM pg_stat_database)::integer AS used,
       d.datconnlimit AS most_of_database,
       (SELECT numbackends FROM pg_stat_database WHERE datid = d.oid) AS used_of_database,
       r.rolconnlimit AS most_of_role,
       (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid)::integer AS used_of_role
FROM pg_database AS d, pg_roles AS r
WHERE d.datname = current_database() AND r.rolname = current_user
"""

SAMPLE: Final = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, extract(epoch FROM clock_timestamp())::double precision
"""
_OLDEST_ID: Final = """
SELECT datname, age(datfrozenxid) AS age, current_setting('autovacuum_freeze_max_age')::integer AS freeze
FROM pg_database ORDER BY 2 DESC LIMIT 1
"""


async def room(case: Case) -> AsyncIterator[Finding]:
    """Is the disk full?"""
    if await disk_space.has_room(case.connection, ROOM_MEGABYTES):
        yield ok("disk", f"The database's disk has room for at least {ROOM_MEGABYTES} MB.")
    else:
        yield error(
            "disk_full",
            f"The database's disk is full: {ROOM_MEGABYTES} MB do not fit on it.",
            "Enlarge it or free space: `baton maintain` drops expired partitions, and more of them with a smaller "
            "BATON_RETENTION_DAYS. A replication slot without a consumer retains WAL.",
        )


async def connections(case: Case) -> AsyncIterator[Finding]:
    """Is there room for one more `baton serve` and one more `baton worker`, with all processes of each?"""
    row = await case.row(_CONNECTIONS)
    processes = case.settings.processes
    pod = case.settings.database_pool_size + POD_CONNECTIONS
    worker = WORKER_CONNECTIONS
    worker += END_HOOK_CONNECTIONS if case.settings.on_end else 0
    worker += WEBHOOK_CONNECTIONS if case.settings.webhook_secrets else 0
    needed = f"With these settings a pod uses up to {pod} connections, a worker {worker}."
    if processes > 1:
        needed = f"{needed[:-1]}, and a command {processes} times that (BATON_PROCESSES)."
    advice = f"{needed} Raise the limit, lower BATON_DATABASE_POOL_SIZE, or use a connection pooler."
    limits = [
        ("server", row["most"] - row["reserved"], row["used"]),
        *((what, row[f"most_of_{what}"], row[f"used_of_{what}"]) for what in ("database", "role")),
    ]
    # A negative limit means no limit.
    what, most, used = min((item for item in limits if item[1] >= 0), key=lambda item: item[1] - item[2])
    found = f"{used} of the {most} connections that this {what} allows to ordinary roles are in use."
    if most - used < processes * (pod + worker):
        yield error("connections_insufficient", found, advice)
    elif used > _NEAR_LIMIT * most:
        yield warning("connections_near_limit", found, advice)
    else:
        yield ok("connections", f"{found} {needed}")


async def transaction_ids(case: Case) -> AsyncIterator[Finding]:
    """How fast are transaction ids used, and how old is the oldest?"""
    number, moment = await case.row(SAMPLE)
    if (missing := case.thresholds.sample_seconds - (moment - case.sampled_at)) > 0:
        await asyncio.sleep(missing)
        number, moment = await case.row(SAMPLE)
    seconds = moment - case.sampled_at
    a_day = (number - case.transaction_id) / seconds * 86_400
    database, age, freeze = await case.row(_OLDEST_ID)
    rate = f"The server uses about {a_day / 1e6:.1f} million transaction ids a day (a sample of {seconds:.1f} s)"
    oldest = f"the oldest is {age / 1e6:.1f} million old (in {database!r}) and is frozen at {freeze / 1e6:.0f} million"
    found = f"{rate}; {oldest}."
    if age > _OLD_ID:
        yield error(
            "transaction_ids_run_out",
            found,
            "End what holds vacuum back there, and VACUUM that database now: Postgres stops at 2,100 million.",
        )
    elif age > 1.5 * freeze:
        yield warning("transaction_ids_old", found, "Find what holds vacuum back there, or make autovacuum faster.")
    elif a_day > case.thresholds.transaction_ids_a_day:
        yield warning(
            "transaction_ids_fast",
            found,
            "Check that autovacuum keeps up. A longer BATON_FLUSH_INTERVAL_MILLISECONDS uses fewer ids.",
        )
    else:
        yield ok("transaction_ids", found)
