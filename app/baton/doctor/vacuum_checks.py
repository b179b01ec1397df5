"""Checks of vacuum: whether autovacuum runs and keeps up, and what prevents it from removing dead rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db.vacuum_horizon import holders
from .finding import Case, Finding, amount, duration, error, ok, warning

_LONG: Final = """
SELECT pid, usename, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - make_interval(secs => $1)
ORDER BY xact_start
"""
# The columns of a session that the role may not see are NULL.
_HIDDEN: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type IS NULL
"""
_PREPARED: Final = """
SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared)::double precision AS seconds
FROM pg_prepared_xacts
WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => $1)
ORDER BY prepared
"""
_SLOTS: Final = """
SELECT slot_name, active, wal_status, coalesce(xmin, catalog_xmin) IS NOT NULL AS holds_rows,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END AS bytes
FROM pg_replication_slots
ORDER BY 1
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


async def transactions(case: Case) -> AsyncIterator[Finding]:
    """Is there a transaction so old that it holds vacuum back?"""
    limit = case.thresholds.transaction_seconds
    rows = await case.connection.fetch(_LONG, limit)
    for row in rows[:3]:
        yield warning(
            "vacuum_held_back",
            f"pid {row['pid']} ({row['usename']}, {row['application_name'] or 'no name'}) has been in a transaction "
            f"for {duration(row['seconds'])}, {row['state']}; {amount(len(rows), 'such session')} in all.",
            "Vacuum removes no row that died after its start. End it there, or with SELECT pg_terminate_backend(pid). "
            "idle_in_transaction_session_timeout ends idle ones automatically.",
        )
    if hidden := await case.connection.fetchval(_HIDDEN):
        yield warning(
            "sessions_hidden",
            f"This role cannot see what {amount(hidden, 'session')} of other roles in this database are doing.",
            "Run the doctor as a role that can: GRANT pg_monitor TO that role.",
        )
    elif not rows:
        yield ok("transactions", f"No transaction in this database is older than {duration(limit)}.")


_ENDING: Final = {
    "session": "End it there, or with SELECT pg_terminate_backend(pid). Run pg_dump on a standby. If it is the "
    "WAL sender of a standby, end the old query there, or turn off its hot_standby_feedback.",
    "prepared transaction": "Run COMMIT PREPARED or ROLLBACK PREPARED.",
    "replication slot": "Its standby has hot_standby_feedback on. End the old query there, turn this off, or drop "
    "the slot.",
}


async def snapshots(case: Case) -> AsyncIterator[Finding]:
    """Is there a snapshot so old that vacuum removes nothing? Every role can see its owner."""
    limit = case.thresholds.snapshot_transactions
    old = [holder for holder in await holders(case.connection) if holder.transactions > limit]
    for holder in old[:3]:
        yield warning(
            "snapshot_old",
            f"A snapshot that is {amount(holder.transactions, 'transaction')} old belongs to {holder.title}.",
            f"While it is open, vacuum removes no row that died after it. {_ENDING[holder.kind]}",
        )
    if not old:
        yield ok("snapshots", f"No snapshot is older than {amount(limit, 'transaction')}.")


async def prepared(case: Case) -> AsyncIterator[Finding]:
    """Is there a prepared transaction that was never ended?"""
    rows = await case.connection.fetch(_PREPARED, case.thresholds.transaction_seconds)
    for row in rows[:3]:
        yield warning(
            "prepared_transactions",
            f"The transaction {row['gid']!r} of {row['owner']} has been prepared for {duration(row['seconds'])}.",
            "It holds vacuum back and survives restarts. Run COMMIT PREPARED or ROLLBACK PREPARED.",
        )


async def slots(case: Case) -> AsyncIterator[Finding]:
    """Is there a replication slot whose consumer is gone or far behind?"""
    rows = await case.connection.fetch(_SLOTS)
    well = True
    for row in rows:
        behind = (row["bytes"] or 0) > case.thresholds.retained_wal_bytes
        if row["wal_status"] in {"unreserved", "lost"} or behind or (not row["active"] and row["holds_rows"]):
            well = False
            yield warning(
                "replication_slots",
                f"The replication slot {row['slot_name']!r} is {'active' if row['active'] else 'inactive'} and retains "
                f"{(row['bytes'] or 0) / 1e6:,.0f} MB of WAL{' and old rows' if row['holds_rows'] else ''} "
                f"(WAL: {row['wal_status']}).",
                "Repair its consumer, or drop it: SELECT pg_drop_replication_slot(…). Otherwise it fills the disk.",
            )
    if well:
        yield ok("replication_slots", f"{amount(len(rows), 'replication slot')}; none retains much WAL.")


async def autovacuum(case: Case) -> AsyncIterator[Finding]:
    """Does autovacuum run on every table, and does it keep up?"""
    running, workers, nap = await case.row(_AUTOVACUUM)
    well = True
    if not running:
        well = False
        yield error("autovacuum_off", "autovacuum or track_counts is off.", "Turn on both in the server's settings.")
    if names := [row["relname"] for row in await case.connection.fetch(_UNVACUUMED)]:
        well = False
        yield warning(
            "autovacuum_off_tables",
            f"Autovacuum is off for {', '.join(names[:5])}.",
            "Run ALTER TABLE … RESET (autovacuum_enabled).",
        )
    for row in await case.connection.fetch(_DEAD_ROWS, case.thresholds.dead_rows):
        well = False
        last = "never" if row["seconds"] is None else f"{duration(row['seconds'])} ago"
        yield warning(
            "dead_rows",
            f"{row['relname']} has {row['dead']:,} dead rows and {row['live']:,} live ones; last vacuum: {last}.",
            "Find what holds vacuum back (vacuum_held_back, snapshot_old, prepared_transactions), then VACUUM it.",
        )
    if well:
        yield ok("autovacuum", f"Autovacuum runs ({workers} workers, every {nap}) and keeps up with Baton's tables.")
