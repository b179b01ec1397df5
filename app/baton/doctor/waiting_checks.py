"""Checks of streams that wait for an input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from .finding import Case, Finding, amount, duration, ok, warning

# Workers end a wait within seconds of its deadline.
_LATE_SECONDS: Final = 60.0
_WAITING: Final = """
SELECT count(*) AS waiting, count(*) FILTER (WHERE late > $1) AS overdue, max(late) AS late,
       min(id::text) FILTER (WHERE late > $1) AS example
FROM (
    SELECT id, extract(epoch FROM clock_timestamp() - wait_until)::double precision AS late
    FROM baton.stream WHERE status = 'waiting'
) AS waiting
"""


async def waits(case: Case) -> AsyncIterator[Finding]:
    """Do workers end the waits whose deadline is over?"""
    found = await case.row(_WAITING, _LATE_SECONDS)
    if found["overdue"]:
        yield warning(
            "wait_overdue",
            f"{amount(found['overdue'], 'stream')} still waiting after the deadline, such as {found['example']}, by up "
            f"to {duration(found['late'])}.",
            "A live worker ends the wait within seconds. Start a worker, or read the logs of those that run.",
        )
    else:
        yield ok("waiting_streams", f"{amount(found['waiting'], 'stream')} waiting for an input.")
