"""Checks of what carries the hints: they arrive, and the server's queue of notifications is not full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from ..db import notifications
from ..db.notification_delivery import deliver
from ..errors import ConfigurationError, DatabaseUnreachable
from ..hints import opening
from .finding import Case, Finding, duration, error, ok, refusal, warning

_NEARLY_FULL: Final = 0.5

# The queue belongs to the whole server. Its entries are freed once every listening session has read them. A session
# reads it after its transaction has ended, and as fast as its client reads from the socket.
_HOLDERS: Final = """
SELECT pid, usename, datname, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datid IS NOT NULL
  AND (state LIKE 'idle in transaction%' OR wait_event = 'ClientWrite'
       OR xact_start < clock_timestamp() - interval '1 s')
ORDER BY xact_start NULLS LAST LIMIT 3
"""


async def delivery(case: Case) -> AsyncIterator[Finding]:
    """Does a hint from one connection arrive at another?"""
    if case.settings.hints_transport == "poll":
        seconds = case.settings.hints_poll_seconds
        yield ok("notifications", f"There are none: pods and workers look for what is new every {seconds:g} s.")
        return
    if case.settings.hints_transport == "nats":
        yield await _delivery_by_nats(case)
        return
    try:
        seconds = await deliver(case.settings.listen_dsn, case.settings.dsn)
    except DatabaseUnreachable as problem:
        yield refusal(
            "listen_unreachable", problem, "Correct BATON_LISTEN_DATABASE_URL, which LISTEN uses if it is set."
        )
    except ConfigurationError as problem:
        yield refusal("notifications_lost", problem)
    except asyncpg.ReadOnlySQLTransactionError:
        return  # a standby, which another check reports
    except asyncpg.ProgramLimitExceededError:
        yield error(
            "notifications_refused",
            "Postgres refuses notifications: their queue is full.",
            "End the session that holds up the queue (see notify_queue). Until then pods poll, and nothing is lost.",
        )
    else:
        yield ok("notifications", f"A notification arrived after {seconds * 1000:.0f} ms.")


async def queue(case: Case) -> AsyncIterator[Finding]:
    """How full is the queue of notifications, and which sessions hold it up?"""
    usage = await notifications.queue_usage(case.connection)
    found = f"The queue of notifications is {usage:.1%} full."
    if usage <= case.thresholds.queue_usage:
        yield ok("notify_queue", found)
        return
    holders = [_described(row) for row in await case.connection.fetch(_HOLDERS)]
    names = f"It may be held up by {'; '.join(holders)}." if holders else "This role cannot see what holds it up."
    level = error if usage > _NEARLY_FULL else warning
    yield level(
        "notify_queue",
        f"{found} {names}",
        "End that session's transaction, or the session: SELECT pg_terminate_backend(pid). While the queue is full, "
        "Postgres refuses every NOTIFY of the whole server.",
    )


async def _delivery_by_nats(case: Case) -> Finding:
    problem, seconds = await opening.reach(case.settings, timeout_seconds=case.thresholds.answer_seconds)
    if problem is None:
        return ok("notifications", f"A message over NATS arrived after {seconds * 1000:.0f} ms.")
    return error(
        "nats_unreachable",
        f"No message arrives over NATS: {problem}.",
        "Correct BATON_HINTS_URL or BATON_HINTS_CREDENTIALS, or bring the server back. Until then pods and workers "
        "poll, and nothing is lost.",
    )


def _described(row: asyncpg.Record) -> str:
    since = f" for {duration(row['seconds'])}" if row["seconds"] is not None else ""
    application = row["application_name"] or "no name"
    return f"pid {row['pid']} ({row['usename']} in {row['datname']}, {application}; {row['state']}{since})"
