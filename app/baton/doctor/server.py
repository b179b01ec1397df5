"""Checks of the server itself: what it is, whether it keeps what was committed, and what it has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ..database import Connection, connect
from ..errors import DatabaseUnreachable
from .finding import Case, Finding, duration, error, ok, warning

OLDEST_VERSION: Final = 15
NEWEST_VERSION: Final = 18
# Listening, appending, notifying, and controlling.
WORKER_CONNECTIONS: Final = 4

# How near to two thousand million, where Postgres refuses to go on, ids may come.
_OLD_ID: Final = 1_500_000_000
_SHORT_STATEMENT_MILLISECONDS: Final = 2000
_CROWDED: Final = 0.8

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
    if not off and not roles:
        yield ok("durability", f"Commits are durable (synchronous_commit is {values['synchronous_commit']}).")


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
        yield error("connections_short", found, advice)
    elif used > _CROWDED * most:
        yield warning("connections_crowded", found, advice)
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
            "A wider BATON_FLUSH_WINDOW_MILLISECONDS makes fewer of them; see to it that autovacuum keeps up.",
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
    if not idle and not 0 < statement < _SHORT_STATEMENT_MILLISECONDS:
        yield ok("timeouts", "No timeout of this role cuts sessions that listen, or short statements.")


async def _milliseconds(connection: Connection, name: str) -> int:
    value: int = await connection.fetchval("SELECT setting::integer FROM pg_settings WHERE name = $1", name)
    return value
