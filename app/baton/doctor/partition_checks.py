"""Checks of the log's partitions: whether they reach ahead, whether there are too many, and which have expired."""

from __future__ import annotations

import datetime
import math
from collections.abc import AsyncIterator
from typing import Final

from .. import stream_ids
from ..db import partitions as log_partitions
from .finding import Case, Finding, amount, duration, error, ok, warning

# A stream may run past the day of its partition, and `baton maintain` may run only once a day.
_GRACE_SECONDS: Final = 2 * 86_400
# Whether the log has a default partition; no row if there is no log.
_DEFAULT: Final = """
SELECT t.partdefid <> 0 FROM pg_partitioned_table AS t
JOIN pg_class AS c ON c.oid = t.partrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relname = 'batch'
"""
# The room in the server's shared lock table. A statement on the whole log takes one lock for each partition and one
# for each index of it.
_LOCKS: Final = """
SELECT current_setting('max_locks_per_transaction')::integer AS each,
       current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer AS sessions,
       (SELECT count(*) FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass)::integer AS partitions,
       (SELECT 1 + count(*) FROM pg_index WHERE indrelid = 'baton.batch'::regclass)::integer AS locks
"""


async def partitions(case: Case) -> AsyncIterator[Finding]:
    """Do the log's partitions reach ahead?"""
    default = await case.connection.fetchval(_DEFAULT)
    if default is None:
        return  # there is no log yet, which another check reports
    there = await log_partitions.attached(case.connection)
    reach = await log_partitions.reach(case.connection)
    end, left = f"{datetime.datetime.fromtimestamp(reach.end, datetime.UTC):%Y-%m-%d %H:%M}", reach.left_seconds
    coverage = f"are covered until {end} UTC, for {duration(left)}" if left > 0 else "have no partition"
    found = f"The log has {amount(len(there), 'partition')}; new streams {coverage}."
    advice = (
        "Run `baton maintain` now. Workers create partitions ahead every hour: a worker's log says why that failed."
    )
    if left <= log_partitions.LEAST_SECONDS:
        yield error("partitions_run_out", found, advice)
    elif left <= (case.settings.partition_days_ahead - 1) * 86_400:
        yield warning("partitions_low", found, advice)
    else:
        yield ok("partitions", found)
    if default:
        yield error(
            "partition_default",
            "The log has a DEFAULT partition.",
            "Detach it and move its rows: each new partition scans it under a lock, and retention cannot drop it.",
        )
    ahead = await log_partitions.missing(case.connection, case.settings.partition_days_ahead)
    if taken := await log_partitions.taken(case.connection, ahead):
        yield error(
            "partitions_name_taken",
            f"{', '.join(taken)} has the name of a partition to be created, but is not a partition of the log.",
            "Attach, rename or drop it: until then neither that partition nor any later one can be created.",
        )
    if pending := [item.name for item in there if item.detaching]:
        yield warning(
            "partitions_pending",
            f"The detachment of {', '.join(pending)} was interrupted.",
            "Run `baton maintain`, or ALTER TABLE baton.batch DETACH PARTITION … FINALIZE.",
        )


async def locks(case: Case) -> AsyncIterator[Finding]:
    """Does the server have room for the locks of all partitions, and is Baton tested with as many?"""
    row = await case.row(_LOCKS)
    needed, room = row["partitions"] * row["locks"], row["each"] * row["sessions"]
    found = (
        f"A statement on the whole log (a report, pg_dump, a migration) takes up to {needed:,} locks, for "
        f"{amount(row['partitions'], 'partition')}; the server has room for {room:,} (max_locks_per_transaction "
        f"{row['each']}, {row['sessions']} sessions). Baton's own statements lock only the partitions of their streams."
    )
    fewer = "get fewer partitions with a larger BATON_PARTITION_DAYS or a smaller BATON_RETENTION_DAYS"
    fits = needed * case.thresholds.whole_log_statements <= room
    if not fits:
        least = math.ceil(needed * case.thresholds.whole_log_statements / row["sessions"])
        yield warning(
            "locks_insufficient", found, f"Set max_locks_per_transaction to {least}, which needs a restart, or {fewer}."
        )
    if row["partitions"] > case.thresholds.partitions:
        yield warning(
            "partitions_many",
            f"The log has {row['partitions']} partitions; Baton is tested with {log_partitions.MOST} at most.",
            f"Check that `baton maintain` runs, and {fewer}. Existing partitions are dropped as they expire.",
        )
    elif fits:
        yield ok("locks", found)


async def retention(case: Case) -> AsyncIterator[Finding]:
    """Is there a partition that retention should have dropped?"""
    days = case.settings.retention_days
    there = await log_partitions.attached(case.connection)
    if not there:
        return
    due = await log_partitions.now(case.connection) - days * 86_400 - _GRACE_SECONDS
    overdue = [item.name for item in there if stream_ids.moment_of(item.end) < due]
    if overdue:
        yield warning(
            "retention_overdue",
            f"{amount(len(overdue), 'expired partition')} from {overdue[0]} on (BATON_RETENTION_DAYS={days}).",
            "Run `baton maintain` from cron each day, as the role that migrates. It prints what keeps a partition.",
        )
    else:
        yield ok("retention", f"No partition is older than BATON_RETENTION_DAYS={days} allows.")


async def leftovers(case: Case) -> AsyncIterator[Finding]:
    """Are there tables that used to be partitions?"""
    tables = await log_partitions.detached(case.connection)
    if expired := [name for name, marked in tables.items() if marked]:
        yield warning(
            "partitions_expired", f"Detached but not yet dropped: {', '.join(expired)}.", "Run `baton maintain`."
        )
    if kept := [name for name, marked in tables.items() if not marked]:
        yield warning(
            "partitions_left_over",
            f"Detached from the log, but not by `baton maintain`: {', '.join(kept)}.",
            "Archive and drop them if they are not needed. `baton maintain` leaves them alone.",
        )
