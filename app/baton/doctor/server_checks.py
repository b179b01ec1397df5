"""Checks of the server and its settings: version, encoding, role in replication, timeouts, logging, and clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db.postgres import Connection, connect
from ..errors import DatabaseUnreachable
from .finding import Case, Finding, duration, error, ok, warning

OLDEST_VERSION: Final = 15
NEWEST_VERSION: Final = 18

_SHORT_STATEMENT_MILLISECONDS: Final = 2000
_LOGGED_PARAMETERS: Final = """
SELECT current_setting('log_parameter_max_length') <> '0'
       AND (current_setting('log_statement') IN ('mod', 'all') OR current_setting('log_duration') = 'on'
            OR current_setting('log_min_duration_statement') <> '-1'
            OR current_setting('log_min_duration_sample') <> '-1'
            OR current_setting('log_transaction_sample_rate')::real > 0) AS statements,
       current_setting('log_parameter_max_length_on_error') <> '0' AS errors
"""


async def version(case: Case) -> AsyncIterator[Finding]:
    """Is this a version of Postgres that Baton is tested with?"""
    number, name = await case.row("SELECT current_setting('server_version_num')::integer, version()")
    major, found = number // 10_000, f"This is {name.split(' on ')[0].split(' (')[0]}."
    known = f"Baton is tested with {OLDEST_VERSION} to {NEWEST_VERSION}"
    if major < OLDEST_VERSION:
        yield error("version_old", found, f"{known}. Upgrade the server.")
    elif major > NEWEST_VERSION:
        yield warning("version_new", found, f"{known}. Look for a newer version of Baton.")
    else:
        yield ok("version", found)


async def encoding(case: Case) -> AsyncIterator[Finding]:
    """Can the database store any text?"""
    found = await case.connection.fetchval("SHOW server_encoding")
    if found != "UTF8":
        yield error(
            "encoding",
            f"The database's encoding is {found}.",
            "Create a database with ENCODING 'UTF8' TEMPLATE template0.",
        )
    else:
        yield ok("encoding", "The database's encoding is UTF8.")


async def writable(case: Case) -> AsyncIterator[Finding]:
    """Is this the primary, and does it accept writes?"""
    standby, reads_only = await case.row(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
    )
    if standby:
        yield error(
            "standby",
            "This server is a standby: it accepts neither writes nor LISTEN.",
            "Point BATON_DATABASE_URL to the primary, for example with target_session_attrs=read-write.",
        )
    elif reads_only:
        yield error(
            "read_only",
            "Transactions are read-only here by default.",
            "Reset default_transaction_read_only for this role and database.",
        )
    else:
        yield ok("writable", "This server is the primary and accepts writes.")


async def timeouts(case: Case) -> AsyncIterator[Finding]:
    """Does a timeout of the role end listening sessions, or slow statements, too early?"""
    try:
        listening = await connect(
            case.settings.listen_dsn,
            timeout_seconds=case.thresholds.answer_seconds,
            name="baton doctor",
            prepare=False,
        )
    except DatabaseUnreachable:
        return  # which the check of notifications reports
    try:
        idle = await _milliseconds(listening, "idle_session_timeout")
    finally:
        listening.terminate()
    statement = await _milliseconds(case.connection, "statement_timeout")
    if idle:
        yield error(
            "idle_session_timeout",
            f"Postgres ends idle sessions of this role after {duration(idle / 1000)}, and a listening session is idle.",
            "Turn it off for this role: ALTER ROLE … SET idle_session_timeout = 0.",
        )
    if 0 < statement < _SHORT_STATEMENT_MILLISECONDS:
        yield warning(
            "statement_timeout",
            f"Postgres cancels statements of this role after {statement} ms.",
            "Raise statement_timeout for this role to at least 10 s: an append may have to wait for the disk.",
        )
    in_transaction = await _milliseconds(case.connection, "idle_in_transaction_session_timeout")
    if not in_transaction:
        yield warning(
            "idle_in_transaction",
            "A session of this role may stay in a transaction forever, and keep its locks and old rows.",
            "Run the SQL of `baton grants`, or ALTER ROLE … SET idle_in_transaction_session_timeout = '60s'.",
        )
    if not idle and in_transaction and not 0 < statement < _SHORT_STATEMENT_MILLISECONDS:
        yield ok("timeouts", "No timeout of this role ends listening sessions or short statements.")


async def logged_texts(case: Case) -> AsyncIterator[Finding]:
    """Does the server log what users ask and receive? Both are parameters of statements."""
    statements, errors = await case.row(_LOGGED_PARAMETERS)
    if statements or errors:
        which = "statements" if statements else "failing statements"
        yield warning(
            "parameters_logged",
            f"The server logs the parameters of this role's {which}, including inputs and texts of streams.",
            "Run the SQL of `baton grants` as a superuser, or ALTER ROLE … SET log_parameter_max_length = 0 and "
            "log_parameter_max_length_on_error = 0.",
        )
    else:
        yield ok("parameters", "The server does not log the inputs and texts that this role sends.")


async def clock(case: Case) -> AsyncIterator[Finding]:
    """Do the clocks of this machine and of the database agree, within the round trip of the query?"""
    before = case.clock()
    theirs = await case.connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::double precision")
    after = case.clock()
    ahead, uncertain = theirs - (before + after) / 2, (after - before) / 2
    found = f"The database's clock is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    found = f"{found} (± {uncertain:.3f} s)."
    if abs(ahead) - uncertain > case.thresholds.clock_seconds:
        yield warning(
            "clock_skew",
            found,
            "Run a time service on both. Baton uses only the database's clock, but logs will be hard to compare.",
        )
    else:
        yield ok("clock", found)


async def _milliseconds(connection: Connection, name: str) -> int:
    value: int = await connection.fetchval("SELECT setting::integer FROM pg_settings WHERE name = $1", name)
    return value
