"""Checks of who keeps vacuum from removing dead rows, and the disk from being freed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db.vacuum_horizon import holders
from .finding import Case, Finding, amount, duration, ok, warning

_LONG: Final = """
SELECT pid, usename, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - make_interval(secs => $1)
ORDER BY xact_start
"""
# What a role may not see of others' sessions is null.
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


async def transactions(case: Case) -> AsyncIterator[Finding]:
    """Is there a transaction so old that it holds vacuum back?"""
    limit = case.thresholds.transaction_seconds
    rows = await case.connection.fetch(_LONG, limit)
    for row in rows[:3]:
        yield warning(
            "vacuum_held_back",
            f"pid {row['pid']} ({row['usename']}, {row['application_name'] or 'no name'}) is in a transaction for "
            f"{duration(row['seconds'])}, {row['state']}; {amount(len(rows), 'such session')} in all.",
            "Vacuum removes nothing that died since. End it there, or with SELECT pg_terminate_backend(pid); "
            "idle_in_transaction_session_timeout does so by itself.",
        )
    if hidden := await case.connection.fetchval(_HIDDEN):
        yield warning(
            "sessions_hidden",
            f"This role may not see what {amount(hidden, 'session')} of other roles in this database are doing.",
            "Run it as a role that may: GRANT pg_monitor TO that role.",
        )
    elif not rows:
        yield ok("transactions", f"No transaction in this database is older than {duration(limit)}.")


_ENDING: Final = {
    "session": "End it there, or with SELECT pg_terminate_backend(pid). Run pg_dump on a standby. Where it is the "
    "sender of WAL to a standby, end the old query there, or turn its hot_standby_feedback off.",
    "prepared transaction": "COMMIT PREPARED or ROLLBACK PREPARED it.",
    "replication slot": "Its standby has hot_standby_feedback: end the old query there, or turn that off; or drop it.",
}


async def snapshots(case: Case) -> AsyncIterator[Finding]:
    """Is there a snapshot so old that vacuum removes nothing? Every role may see whose it is."""
    limit = case.thresholds.snapshot_transactions
    old = [holder for holder in await holders(case.connection) if holder.transactions > limit]
    for holder in old[:3]:
        yield warning(
            "snapshot_old",
            f"A snapshot that is {amount(holder.transactions, 'transaction')} old belongs to {holder.title}.",
            f"While it is open vacuum removes nothing that died since. {_ENDING[holder.kind]}",
        )
    if not old:
        yield ok("snapshots", f"No snapshot is older than {amount(limit, 'transaction')}.")


async def prepared(case: Case) -> AsyncIterator[Finding]:
    """Is there a prepared transaction that nobody ends?"""
    rows = await case.connection.fetch(_PREPARED, case.thresholds.transaction_seconds)
    for row in rows[:3]:
        yield warning(
            "prepared_transactions",
            f"The transaction {row['gid']!r} of {row['owner']} is prepared for {duration(row['seconds'])}.",
            "It holds vacuum back and survives restarts: COMMIT PREPARED or ROLLBACK PREPARED it.",
        )


async def slots(case: Case) -> AsyncIterator[Finding]:
    """Is there a replication slot whose reader is gone, or far behind?"""
    rows = await case.connection.fetch(_SLOTS)
    well = True
    for row in rows:
        behind = (row["bytes"] or 0) > case.thresholds.retained_wal_bytes
        if row["wal_status"] in {"unreserved", "lost"} or behind or (not row["active"] and row["holds_rows"]):
            well = False
            yield warning(
                "replication_slots",
                f"The replication slot {row['slot_name']!r} is {'in' if row['active'] else 'not in'} use, holds "
                f"{(row['bytes'] or 0) / 1e6:,.0f} MB of WAL{', and old rows' if row['holds_rows'] else ''} "
                f"(WAL: {row['wal_status']}).",
                "See to its reader, or drop it: SELECT pg_drop_replication_slot(…). It fills the disk otherwise.",
            )
    if well:
        yield ok("replication_slots", f"{amount(len(rows), 'replication slot')}, and none holds back much.")
