"""Checks of the server itself: what it is, whether it keeps what was committed, and what it has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ..db import disk_space
from ..db.postgres import Connection, connect
from ..errors import DatabaseUnreachable
from .finding import Case, Finding, amount, duration, error, listed, ok, warning

OLDEST_VERSION: Final = 15
NEWEST_VERSION: Final = 18
# Listening, appending, notifying, and controlling.
WORKER_CONNECTIONS: Final = 4

# How near to two thousand million, where Postgres refuses to go on, ids may come.
_OLD_ID: Final = 1_500_000_000
_SHORT_STATEMENT_MILLISECONDS: Final = 2000
_CROWDED: Final = 0.8
# A segment of WAL.
ROOM_MEGABYTES: Final = 16

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

_UNSAFE_COMMITS: Final = """
SELECT coalesce(r.rolname, 'every role') AS role
FROM pg_db_role_setting AS s
LEFT JOIN pg_roles AS r ON r.oid = s.setrole
LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
WHERE 'synchronous_commit=off' = ANY (s.setconfig) AND (s.setdatabase = 0 OR d.datname = current_database())
ORDER BY 1
"""

# A role without pg_monitor sees that a WAL sender is there, and not its state. Neither a backup nor a subscriber of
# logical replication is a standby.
_STANDBYS: Final = """
SELECT coalesce(nullif(r.application_name, ''), 'no name') AS name, r.sync_state, r.sync_state IS NULL AS hidden
FROM pg_stat_replication AS r
WHERE r.state IS DISTINCT FROM 'backup'
  AND NOT EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
ORDER BY 1
"""
# Commits wait for synchronous standbys from `remote_write` on.
_WAITING: Final = frozenset({"remote_write", "on", "remote_apply"})
_LOGGED_PARAMETERS: Final = """
SELECT current_setting('log_parameter_max_length') <> '0'
       AND (current_setting('log_statement') IN ('mod', 'all') OR current_setting('log_duration') = 'on'
            OR current_setting('log_min_duration_statement') <> '-1'
            OR current_setting('log_min_duration_sample') <> '-1'
            OR current_setting('log_transaction_sample_rate')::real > 0) AS statements,
       current_setting('log_parameter_max_length_on_error') <> '0' AS errors
"""

SAMPLE: Final = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, extract(epoch FROM clock_timestamp())::double precision
"""
_OLDEST_ID: Final = """
SELECT datname, age(datfrozenxid) AS age, current_setting('autovacuum_freeze_max_age')::integer AS freeze
FROM pg_database ORDER BY 2 DESC LIMIT 1
"""


async def version(case: Case) -> AsyncIterator[Finding]:
    """Is this a Postgres that Baton knows?"""
    number, name = await case.row("SELECT current_setting('server_version_num')::integer, version()")
    major, found = number // 10_000, f"This is {name.split(' on ')[0].split(' (')[0]}."
    known = f"Baton is tested with {OLDEST_VERSION} to {NEWEST_VERSION}"
    if major < OLDEST_VERSION:
        yield error("version_old", found, f"{known}: upgrade the server.")
    elif major > NEWEST_VERSION:
        yield warning("version_new", found, f"{known}: look for a newer version of Baton.")
    else:
        yield ok("version", found)


async def encoding(case: Case) -> AsyncIterator[Finding]:
    """Can the database hold any text?"""
    found = await case.connection.fetchval("SHOW server_encoding")
    if found != "UTF8":
        yield error(
            "encoding", f"The database's encoding is {found}.", "Create one with ENCODING 'UTF8' TEMPLATE template0."
        )
    else:
        yield ok("encoding", "The database's encoding is UTF8.")


async def writable(case: Case) -> AsyncIterator[Finding]:
    """Is this the primary, and does it take writes?"""
    standby, reads_only = await case.row(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
    )
    if standby:
        yield error(
            "standby",
            "This server is a standby: it takes no writes, and has no LISTEN.",
            "Let BATON_DATABASE_URL lead to the primary, for instance with target_session_attrs=read-write.",
        )
    elif reads_only:
        yield error(
            "read_only",
            "Transactions are read-only here by default.",
            "Reset default_transaction_read_only for this role and database.",
        )
    else:
        yield ok("writable", "This server is the primary, and takes writes.")


async def room(case: Case) -> AsyncIterator[Finding]:
    """Is the disk full?"""
    if await disk_space.has_room(case.connection, ROOM_MEGABYTES):
        yield ok("disk", f"The database's disk has room for {ROOM_MEGABYTES} MB at least.")
    else:
        yield error(
            "disk_full",
            f"The database's disk is full: {ROOM_MEGABYTES} MB do not fit on it.",
            "Enlarge it, or make room: `baton maintain` drops old partitions, and with fewer BATON_RETENTION_DAYS more "
            "of them. A replication slot that nobody reads keeps WAL, too.",
        )


async def durability(case: Case) -> AsyncIterator[Finding]:
    """Does a commit survive a crash? A client may hold an event's number only if it does."""
    advice = "Turn it on: a crash may otherwise take events that clients have seen, or the whole database."
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
    """Does a failover lose what was committed? A service that replicates its disks shows no standby."""
    rows = await case.connection.fetch(_STANDBYS)
    if any(row["hidden"] for row in rows):
        yield warning(
            "standbys_hidden",
            f"This role may not see whether {amount(len(rows), 'standby connection')} of this server is synchronous.",
            "Run it as a role that may: GRANT pg_monitor TO that role.",
        )
        return
    names = await case.connection.fetchval("SHOW synchronous_standby_names")
    synchronous = [row["name"] for row in rows if row["sync_state"] in {"sync", "quorum"}]
    others = [row["name"] for row in rows if row["sync_state"] not in {"sync", "quorum"}]
    if names and not synchronous and synchronous_commit in _WAITING:
        yield error(
            "standbys_missing",
            f"synchronous_standby_names is {names!r}, and no such standby is connected: commits wait for one.",
            "Start the standby; or, if a failover may lose what viewers have seen, empty synchronous_standby_names.",
        )
    elif others and not synchronous:
        yield warning(
            "standbys_asynchronous",
            f"No standby is synchronous; asynchronous: {listed(others)}. A failover to one may lose the last events "
            "that viewers have seen; those streams then end as log_rewound.",
            "Name it in synchronous_standby_names if a failover may promote it, or accept this: see docs/failover.md.",
        )
    elif rows and synchronous_commit not in _WAITING and synchronous_commit != "off":
        yield warning(
            "synchronous_commit_local",
            f"synchronous_commit is {synchronous_commit}: commits do not wait for {listed(synchronous)}. A failover "
            "may lose the last events that viewers have seen.",
            "Reset it for the roles that pods and workers connect as (ALTER ROLE … RESET synchronous_commit).",
        )


async def logged_texts(case: Case) -> AsyncIterator[Finding]:
    """Does the server's log get what users ask and are answered? Both are parameters of statements."""
    statements, errors = await case.row(_LOGGED_PARAMETERS)
    if statements or errors:
        which = "statements" if statements else "statements that fail"
        yield warning(
            "parameters_logged",
            f"The server logs the parameters of this role's {which}: inputs and texts of streams are among them.",
            "Run the SQL of `baton grants` as a superuser, or ALTER ROLE … SET log_parameter_max_length = 0, and "
            "log_parameter_max_length_on_error too.",
        )
    else:
        yield ok("parameters", "The server does not log inputs and texts that this role sends.")


async def clock(case: Case) -> AsyncIterator[Finding]:
    """Do the clocks of this machine and of the database agree? The round trip bounds what can be known."""
    before = case.clock()
    theirs = await case.connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::double precision")
    after = case.clock()
    ahead, uncertain = theirs - (before + after) / 2, (after - before) / 2
    found = f"The database's clock is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    found = f"{found}, give or take {uncertain:.3f} s."
    if abs(ahead) - uncertain > case.thresholds.clock_seconds:
        yield warning(
            "clock_skew",
            found,
            "Run a time service on both. Baton goes by the database's clock alone, but logs will be hard to compare.",
        )
    else:
        yield ok("clock", found)


async def connections(case: Case) -> AsyncIterator[Finding]:
    """Is there room for one more pod and one more worker?"""
    row = await case.row(_CONNECTIONS)
    pod = case.settings.database_pool_size + 1
    needed = f"A pod takes up to {pod} connections with these settings, a worker {WORKER_CONNECTIONS}."
    advice = f"{needed} Raise the limit, lower BATON_DATABASE_POOL_SIZE, or put a pooler in between."
    limits = [
        ("server", row["most"] - row["reserved"], row["used"]),
        *((what, row[f"most_of_{what}"], row[f"used_of_{what}"]) for what in ("database", "role")),
    ]
    # A negative limit is none.
    what, most, used = min((item for item in limits if item[1] >= 0), key=lambda item: item[1] - item[2])
    found = f"{used} of the {most} connections that this {what} allows ordinary roles are in use."
    if most - used < pod + WORKER_CONNECTIONS:
        yield error("connections_insufficient", found, advice)
    elif used > _CROWDED * most:
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
    rate = f"Transaction ids go at about {a_day / 1e6:.1f} million a day, by a sample of {seconds:.1f} s"
    oldest = f"the oldest is {age / 1e6:.1f} million old (in {database!r}), and is frozen at {freeze / 1e6:.0f} million"
    found = f"{rate}; {oldest}."
    if age > _OLD_ID:
        yield error(
            "transaction_ids_run_out",
            found,
            "End what holds vacuum back there, and VACUUM that database now: at 2,100 million Postgres stops.",
        )
    elif age > 1.5 * freeze:
        yield warning("transaction_ids_old", found, "Find out what holds vacuum back there, or make autovacuum faster.")
    elif a_day > case.thresholds.transaction_ids_a_day:
        yield warning(
            "transaction_ids_fast",
            found,
            "A wider BATON_FLUSH_INTERVAL_MILLISECONDS makes fewer of them; see to it that autovacuum keeps up.",
        )
    else:
        yield ok("transaction_ids", found)


async def timeouts(case: Case) -> AsyncIterator[Finding]:
    """Does a timeout of the role cut what must stay open, or what takes its time?"""
    try:
        listening = await connect(
            case.settings.listen_dsn,
            timeout_seconds=case.thresholds.answer_seconds,
            name="baton doctor",
            prepare=False,
        )
    except DatabaseUnreachable:
        return  # which the check of notifications tells
    try:
        idle = await _milliseconds(listening, "idle_session_timeout")
    finally:
        listening.terminate()
    statement = await _milliseconds(case.connection, "statement_timeout")
    if idle:
        yield error(
            "idle_session_timeout",
            f"Sessions of this role are cut after {duration(idle / 1000)} of idleness, and one that listens is idle.",
            "Take it away for this role: ALTER ROLE … SET idle_session_timeout = 0.",
        )
    if 0 < statement < _SHORT_STATEMENT_MILLISECONDS:
        yield warning(
            "statement_timeout",
            f"Statements of this role are cut after {statement} ms.",
            "Raise it for this role, to 10 s at least: an append may have to wait for the disk.",
        )
    in_transaction = await _milliseconds(case.connection, "idle_in_transaction_session_timeout")
    if not in_transaction:
        yield warning(
            "idle_in_transaction",
            "A session of this role may stay in a transaction for ever, holding its locks and old rows.",
            "Run the SQL of `baton grants`, or ALTER ROLE … SET idle_in_transaction_session_timeout = '60s'.",
        )
    if not idle and in_transaction and not 0 < statement < _SHORT_STATEMENT_MILLISECONDS:
        yield ok("timeouts", "No timeout of this role cuts sessions that listen, or short statements.")


async def _milliseconds(connection: Connection, name: str) -> int:
    value: int = await connection.fetchval("SELECT setting::integer FROM pg_settings WHERE name = $1", name)
    return value
