"""Checks of durability: whether a committed event survives a crash of the server, and a failover."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from .finding import Case, Finding, amount, error, listed, ok, warning

_UNSAFE_COMMITS: Final = """
SELECT coalesce(r.rolname, 'every role') AS role
FROM pg_db_role_setting AS s
LEFT JOIN pg_roles AS r ON r.oid = s.setrole
LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
WHERE 'synchronous_commit=off' = ANY (s.setconfig) AND (s.setdatabase = 0 OR d.datname = current_database())
ORDER BY 1
"""

# A role without pg_monitor sees a WAL sender but not its state. A backup and a subscriber of logical replication are
# not standbys.
_STANDBYS: Final = """
SELECT coalesce(nullif(r.application_name, ''), 'no name') AS name, r.sync_state, r.sync_state IS NULL AS hidden
FROM pg_stat_replication AS r
WHERE r.state IS DISTINCT FROM 'backup'
  AND NOT EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
ORDER BY 1
"""
# The values of synchronous_commit with which commits wait for synchronous standbys.
_WAITING: Final = frozenset({"remote_write", "on", "remote_apply"})


async def durability(case: Case) -> AsyncIterator[Finding]:
    """Does a commit survive a crash? Clients rely on that: they resume after the last event that they received."""
    advice = "Turn it on. Otherwise a crash may lose events that clients have seen, or the whole database."
    values: dict[str, str] = dict(
        await case.row(
            "SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes, "
            "current_setting('synchronous_commit') AS synchronous_commit"
        )
    )
    off = [name for name in sorted(values) if values[name] == "off"]
    for name in off:
        yield error(f"{name}_off", f"{name} is off.", advice)
    roles = [row["role"] for row in await case.connection.fetch(_UNSAFE_COMMITS)]
    if roles and "synchronous_commit" not in off:
        yield warning(
            "synchronous_commit_off_elsewhere",
            f"synchronous_commit is off in this database for {', '.join(roles)}.",
            "Reset it for the roles that pods and workers connect as (ALTER ROLE … RESET synchronous_commit).",
        )
    well = not off and not roles
    async for finding in _standbys(case, values["synchronous_commit"]):
        well = False
        yield finding
    if well:
        yield ok("durability", f"Commits are durable (synchronous_commit is {values['synchronous_commit']}).")


async def _standbys(case: Case, synchronous_commit: str) -> AsyncIterator[Finding]:
    """Does a failover lose commits? A managed service that replicates its disks shows no standby."""
    rows = await case.connection.fetch(_STANDBYS)
    if any(row["hidden"] for row in rows):
        yield warning(
            "standbys_hidden",
            f"This role cannot see which of {amount(len(rows), 'standby connection')} are synchronous.",
            "Run the doctor as a role that can: GRANT pg_monitor TO that role.",
        )
        return
    names = await case.connection.fetchval("SHOW synchronous_standby_names")
    synchronous = [row["name"] for row in rows if row["sync_state"] in {"sync", "quorum"}]
    others = [row["name"] for row in rows if row["sync_state"] not in {"sync", "quorum"}]
    if names and not synchronous and synchronous_commit in _WAITING:
        yield error(
            "standbys_missing",
            f"synchronous_standby_names is {names!r}, but no such standby is connected: commits wait for one.",
            "Start the standby, or empty synchronous_standby_names if a failover may lose what viewers have seen.",
        )
    elif others and not synchronous:
        yield warning(
            "standbys_asynchronous",
            f"No standby is synchronous; asynchronous: {listed(others)}. A failover to one may lose the last events "
            "that viewers have seen. Those streams then end with log_rewound.",
            "Name it in synchronous_standby_names, or accept the risk: see docs/failover.md.",
        )
    elif rows and synchronous_commit not in _WAITING and synchronous_commit != "off":
        yield warning(
            "synchronous_commit_local",
            f"synchronous_commit is {synchronous_commit}: commits do not wait for {listed(synchronous)}. A failover "
            "may lose the last events that viewers have seen.",
            "Reset it for the roles that pods and workers connect as (ALTER ROLE … RESET synchronous_commit).",
        )
