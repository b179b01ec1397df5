"""Checks of external streams: processes of an older release, which cannot read them, and streams that never end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db import code_revisions
from .finding import Case, Finding, amount, duration, listed, ok, warning

# Pods end a stream that is due within seconds.
_LATE_SECONDS: Final = 60.0
_MAY_READ: Final = "SELECT has_table_privilege('baton.external_stream', 'SELECT')"
# As pods do it: a stream of events has the limits of a generator's stream, any other one the longest life.
_OPEN: Final = """
SELECT count(*) AS open, count(*) FILTER (WHERE late > $3) AS overdue, max(late) AS late,
       min(id::text) FILTER (WHERE late > $3) AS example
FROM (
    SELECT s.id, extract(epoch FROM clock_timestamp() - s.created_at)::double precision
               - CASE WHEN e.kind = 'events' THEN coalesce(s.max_duration, $1) ELSE $2 END AS late
    FROM baton.external_stream AS e JOIN baton.stream AS s ON s.id = e.stream_id
    WHERE NOT e.closed
) AS open
"""


async def older_code(case: Case) -> AsyncIterator[Finding]:
    """Does a process run that takes an open stream for one that has ended?"""
    older = await code_revisions.older_processes(case.connection)
    if older:
        yield warning(
            "older_code_running",
            f"Still running, of an older release: {listed(older)}.",
            "External streams can be created once they are replaced. Until then, pods refuse that with 503.",
        )


async def open_streams(case: Case) -> AsyncIterator[Finding]:
    """Do pods end the external streams that are open for longer than they may be?"""
    if not await case.connection.fetchval(_MAY_READ):
        return
    settings = case.settings
    found = await case.row(_OPEN, settings.max_duration_seconds, settings.external_max_seconds, _LATE_SECONDS)
    if found["overdue"]:
        yield warning(
            "external_overdue",
            f"{amount(found['overdue'], 'external stream')} open for longer than allowed, such as {found['example']}, "
            f"by up to {duration(found['late'])}.",
            "A live pod ends it within seconds. Start a pod, or read the logs of those that run. With other settings "
            "for pods than here, BATON_MAX_DURATION_SECONDS and BATON_EXTERNAL_MAX_SECONDS may differ.",
        )
    else:
        yield ok("external_streams", f"{amount(found['open'], 'external stream')} open.")
