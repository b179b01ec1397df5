"""Checks of Baton's schema: its revision, the log's partitions, vacuum, and what should not be there."""

from __future__ import annotations

import datetime
import math
from collections.abc import AsyncIterator
from typing import Final

from .. import stream_ids
from ..db import partitions as log_partitions
from ..db.schema_revision import REVISION, check_schema
from ..errors import ConfigurationError
from .finding import Case, Finding, amount, duration, error, ok, refusal, warning

# Its stream may run on for so long after its day, and `baton maintain` may run once a day.
_GRACE_SECONDS: Final = 2 * 86_400
# Whether the log has a default partition; no row if there is no log.
_DEFAULT: Final = """
SELECT t.partdefid <> 0 FROM pg_partitioned_table AS t
JOIN pg_class AS c ON c.oid = t.partrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relname = 'batch'
"""
# Room for locks that sessions cannot keep to themselves, in the whole server. A statement that looks at the whole log
# takes one for each partition, and one for each of its indexes.
_LOCKS: Final = """
SELECT current_setting('max_locks_per_transaction')::integer AS each,
       current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer AS sessions,
       (SELECT count(*) FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass)::integer AS partitions,
       (SELECT 1 + count(*) FROM pg_index WHERE indrelid = 'baton.batch'::regclass)::integer AS locks
"""
# The buckets of callers, and what pods say of themselves, are meant to be.
_UNLOGGED: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind IN ('r', 'p') AND c.relpersistence <> 'p'
  AND c.relname NOT IN ('bucket', 'token_bucket', 'pod')
ORDER BY 1
"""
# An index of a partitioned table stays invalid until each partition's is attached, so that one is told too.
_INVALID_INDEXES: Final = """
SELECT c.relname FROM pg_index AS x
JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND NOT (x.indisvalid AND x.indisready) ORDER BY 1
"""
_UNVACUUMED: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind = 'r'
  AND EXISTS (SELECT FROM pg_options_to_table(c.reloptions) WHERE option_name = 'autovacuum_enabled'
              AND NOT option_value::boolean)
ORDER BY 1
"""
_DEAD_ROWS: Final = """
SELECT relname, n_dead_tup AS dead, n_live_tup AS live,
       extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum))::double precision AS seconds
FROM pg_stat_all_tables
WHERE schemaname = 'baton' AND n_dead_tup > $1 AND n_dead_tup > n_live_tup
ORDER BY n_dead_tup DESC LIMIT 3
"""
_AUTOVACUUM: Final = """
SELECT current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS running,
       current_setting('autovacuum_max_workers') AS workers, current_setting('autovacuum_naptime') AS nap
"""


async def revision(case: Case) -> AsyncIterator[Finding]:
    """Do this version and the schema fit together?"""
    try:
        found = await check_schema(case.connection)
    except ConfigurationError as problem:
        yield refusal("schema", problem)
        return
    yield ok("schema", f"The schema is at revision {found}; this version is made for {REVISION}.")


async def partitions(case: Case) -> AsyncIterator[Finding]:
    """Do the log's partitions reach ahead?"""
    default = await case.connection.fetchval(_DEFAULT)
    if default is None:
        return  # there is no log yet, which is told already
    there = await log_partitions.attached(case.connection)
    reach = await log_partitions.reach(case.connection)
    end, left = f"{datetime.datetime.fromtimestamp(reach.end, datetime.UTC):%Y-%m-%d %H:%M}", reach.left_seconds
    until = f"have one until {end} UTC, for {duration(left)}" if left > 0 else "have none"
    found = f"{amount(len(there), 'partition')} of the log; new streams {until}."
    advice = "Run `baton maintain` now. A worker makes them ahead every hour: look into its log for why it could not."
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
            "Detach it, and move its rows: each new partition scans it under a lock, and retention cannot drop it.",
        )
    ahead = await log_partitions.missing(case.connection, case.settings.partition_days_ahead)
    if taken := await log_partitions.taken(case.connection, ahead):
        yield error(
            "partitions_name_taken",
            f"{', '.join(taken)} has the name of a partition that is to be made, and is none.",
            "Attach, rename or drop it: until then neither that partition nor one after it can be created.",
        )
    if pending := [item.name for item in there if item.detaching]:
        yield warning(
            "partitions_pending",
            f"The detachment of {', '.join(pending)} was cut short.",
            "Run `baton maintain`, or ALTER TABLE baton.batch DETACH PARTITION … FINALIZE.",
        )


async def locks(case: Case) -> AsyncIterator[Finding]:
    """Are there more partitions than the server has room for locks, or than Baton is tested with?"""
    row = await case.row(_LOCKS)
    needed, room = row["partitions"] * row["locks"], row["each"] * row["sessions"]
    found = (
        f"A statement on the whole log (a report, pg_dump, a migration) takes up to {needed:,} locks, for "
        f"{amount(row['partitions'], 'partition')}; the server has room for {room:,} (max_locks_per_transaction "
        f"{row['each']}, {row['sessions']} sessions). Baton's own statements take locks of their streams' days only."
    )
    fewer = "have fewer partitions by a larger BATON_PARTITION_DAYS or a smaller BATON_RETENTION_DAYS"
    fits = needed * case.thresholds.whole_log_statements <= room
    if not fits:
        least = math.ceil(needed * case.thresholds.whole_log_statements / row["sessions"])
        yield warning(
            "locks_insufficient", found, f"Set max_locks_per_transaction to {least}, which takes a restart, or {fewer}."
        )
    if row["partitions"] > case.thresholds.partitions:
        yield warning(
            "partitions_many",
            f"The log has {row['partitions']} partitions; Baton is tested with {log_partitions.MOST} at most.",
            f"See that `baton maintain` runs, and {fewer}: those that are there go as they expire.",
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
            f"{amount(len(overdue), 'partition')} from {overdue[0]} on should be gone by BATON_RETENTION_DAYS={days}.",
            "Run `baton maintain` from cron each day, as the role that migrates; it says what keeps a partition.",
        )
    else:
        yield ok("retention", f"No partition is older than BATON_RETENTION_DAYS={days} allows.")


async def leftovers(case: Case) -> AsyncIterator[Finding]:
    """Are there tables that were partitions once?"""
    tables = await log_partitions.detached(case.connection)
    if expired := [name for name, marked in tables.items() if marked]:
        yield warning(
            "partitions_expired", f"Detached, and not yet dropped: {', '.join(expired)}.", "Run `baton maintain`."
        )
    if kept := [name for name, marked in tables.items() if not marked]:
        yield warning(
            "partitions_left_over",
            f"Detached from the log by somebody, and still there: {', '.join(kept)}.",
            "Archive and drop them if nobody needs them any more; `baton maintain` leaves them alone.",
        )


async def unlogged(case: Case) -> AsyncIterator[Finding]:
    """Is there a table that a crash empties?"""
    if names := [row["relname"] for row in await case.connection.fetch(_UNLOGGED)]:
        yield error(
            "unlogged",
            f"A crash empties {', '.join(names)}, and standbys do not have it: UNLOGGED.",
            "ALTER TABLE … SET LOGGED.",
        )


async def indexes(case: Case) -> AsyncIterator[Finding]:
    """Are all indexes used?"""
    names = [row["relname"] for row in await case.connection.fetch(_INVALID_INDEXES)]
    if names:
        yield warning(
            "indexes_invalid",
            f"Not valid, which costs writes and serves no reads: {', '.join(names[:5])}.",
            "A migration is building it, or was cut short: then run `baton migrate`, or REINDEX INDEX CONCURRENTLY.",
        )
    else:
        yield ok("indexes", "All indexes are valid.")


async def autovacuum(case: Case) -> AsyncIterator[Finding]:
    """Does autovacuum run, everywhere, and does it keep up?"""
    running, workers, nap = await case.row(_AUTOVACUUM)
    well = True
    if not running:
        well = False
        yield error("autovacuum_off", "Autovacuum, or track_counts, is off.", "Turn both on in the server's settings.")
    if names := [row["relname"] for row in await case.connection.fetch(_UNVACUUMED)]:
        well = False
        yield warning(
            "autovacuum_off_tables",
            f"Autovacuum is off for {', '.join(names[:5])}.",
            "ALTER TABLE … RESET (autovacuum_enabled).",
        )
    for row in await case.connection.fetch(_DEAD_ROWS, case.thresholds.dead_rows):
        well = False
        last = "never" if row["seconds"] is None else f"{duration(row['seconds'])} ago"
        yield warning(
            "dead_rows",
            f"{row['relname']} has {row['dead']:,} dead rows beside {row['live']:,} living ones; last vacuum: {last}.",
            "See what holds vacuum back (vacuum_held_back, replication_slots, prepared_transactions), then VACUUM it.",
        )
    if well:
        yield ok("autovacuum", f"Autovacuum runs ({workers} at once, every {nap}), and keeps up with Baton's tables.")
