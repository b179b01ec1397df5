"""Checks of Baton's schema: its revision, the log's partitions, vacuum, and what should not be there."""

from __future__ import annotations

import datetime
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from ..database import REVISION, check_schema
from ..errors import ConfigurationError
from .finding import Case, Finding, amount, duration, error, ok, warning

# Its stream may run on for so long after its day, and `baton maintain` may run once a day.
_RETENTION_GRACE: Final = datetime.timedelta(days=2)
# A day, less the time after midnight in which workers have yet to create the next one.
_LEAST_SECONDS: Final = 22 * 3600
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('(\S+)'\) TO \('(\S+)'\)")

# Read from the catalog alone, which every role may do.
_PARTITIONS: Final = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds, i.inhdetachpending AS pending
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_class AS p ON p.oid = i.inhparent
JOIN pg_namespace AS n ON n.oid = p.relnamespace
WHERE n.nspname = 'baton' AND p.relname = 'batch'
ORDER BY 1
"""
_LEFT_OVER: Final = """
SELECT c.relname, pg_size_pretty(pg_total_relation_size(c.oid)) AS size
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind = 'r' AND NOT c.relispartition AND c.relname LIKE 'batch\\_%'
ORDER BY 1
"""
_UNLOGGED: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind IN ('r', 'p') AND c.relpersistence <> 'p' ORDER BY 1
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
        await check_schema(case.connection)
    except ConfigurationError as problem:
        found, _, advice = str(problem).rpartition(". ")
        yield error("schema", f"{found}.", advice)
        return
    found = await case.connection.fetchval("SELECT version_num FROM baton.alembic_version")
    yield ok("schema", f"The schema is at revision {found}; this version is made for {REVISION}.")


async def partitions(case: Case) -> AsyncIterator[Finding]:
    """Do the log's partitions reach ahead, and are there none that should be gone?"""
    rows = await case.connection.fetch(_PARTITIONS)
    if not rows:
        return
    now = await case.connection.fetchval("SELECT clock_timestamp()")
    spans = [_span(row["bounds"]) for row in rows]
    end = _covered_until(now, [span for span in spans if span is not None])
    left = (end - now).total_seconds()
    until = f"have one until {end:%Y-%m-%d %H:%M} UTC, for {duration(left)}" if left else "have none"
    found = f"{amount(len(rows), 'partition')} of the log; new streams {until}."
    advice = "Run `baton migrate` now. A worker makes them ahead every hour: look into its log for why it could not."
    if left <= _LEAST_SECONDS:
        yield error("partitions_run_out", found, advice)
    elif left <= (case.settings.partition_days_ahead - 1) * 86_400:
        yield warning("partitions_low", found, advice)
    else:
        yield ok("partitions", found)
    if any(row["bounds"] == "DEFAULT" for row in rows):
        yield error(
            "partition_default",
            "The log has a DEFAULT partition.",
            "Detach it, and move its rows: each new partition scans it under a lock, and retention cannot drop it.",
        )
    if pending := [row["name"] for row in rows if row["pending"]]:
        yield warning(
            "partitions_pending",
            f"The detachment of {', '.join(pending)} was cut short.",
            "Run `baton maintain`, or ALTER TABLE baton.batch DETACH PARTITION … FINALIZE.",
        )


async def retention(case: Case) -> AsyncIterator[Finding]:
    """Is there a partition that retention should have dropped?"""
    days: int | None = getattr(case.settings, "retention_days", None)
    rows = await case.connection.fetch(_PARTITIONS)
    if days is None or not rows:
        return
    now = await case.connection.fetchval("SELECT clock_timestamp()")
    due = now - datetime.timedelta(days=days) - _RETENTION_GRACE
    overdue = [row["name"] for row in rows if (span := _span(row["bounds"])) is not None and span[1] < due]
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
    rows = await case.connection.fetch(_LEFT_OVER)
    if rows:
        names = ", ".join(f"{row['relname']} ({row['size']})" for row in rows)
        yield warning(
            "partitions_left_over",
            f"Detached from the log, and still there: {names}.",
            "Drop them if nobody needs them any more. `baton maintain` drops those that it has detached itself.",
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


def _span(bounds: str | None) -> tuple[datetime.datetime, datetime.datetime] | None:
    """When the streams of a partition are created: its ids begin with the time in milliseconds."""
    match = _BOUNDS.fullmatch(bounds or "")
    return (_moment(match[1]), _moment(match[2])) if match else None


def _moment(edge: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp((UUID(edge).int >> 80) / 1000, datetime.UTC)


def _covered_until(
    now: datetime.datetime, spans: Sequence[tuple[datetime.datetime, datetime.datetime]]
) -> datetime.datetime:
    """Return until when there is no gap from now on."""
    end = now
    for first, last in sorted(spans):
        if first <= end < last:
            end = last
    return end
