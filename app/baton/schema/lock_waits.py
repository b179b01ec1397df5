"""Which sessions block a migration, and how long the migration waits for them.

Postgres knows the blockers only during the wait, so a second connection polls while the first one waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from ..db.postgres import CONNECTION_ERRORS, Connection

_POLL_SECONDS: Final = 0.05
# Only a step that blocks no other session waits longer than this: a concurrent index build, which may wait for hours.
_LONG_WAIT_SECONDS: Final = 5.0
_SLOW_POLL_SECONDS: Final = 1.0

# `pg_blocking_pids` locks the whole lock manager for a moment, so it is called only while our process waits for a lock.
# Process 0 stands for a prepared transaction. A role without pg_monitor sees neither the transaction nor the query of
# other roles' sessions.
_BLOCKERS: Final = """
SELECT b.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, a.usename, a.xact_start,
       left(a.query, 80) AS query
FROM (
    SELECT DISTINCT unnest(pg_blocking_pids($1)) FROM pg_stat_get_activity($1) WHERE wait_event_type = 'Lock'
) AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
WHERE b.pid <> pg_backend_pid()
ORDER BY a.xact_start, b.pid
"""
# pg_locks shows the key of an advisory lock in two halves. A role without pg_monitor does not see when other roles'
# sessions connected.
_HOLDER: Final = """
SELECT a.pid, a.application_name, a.usename, a.backend_start
FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database()
  AND l.database = a.datid AND l.classid::bigint << 32 | l.objid::bigint = $1
"""
_CANCEL: Final = "SELECT pg_cancel_backend($1)"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A process that holds the lock that the migration waits for, or that is ahead of it in the queue."""

    pid: int
    application: str | None
    user: str | None
    since: datetime | None
    query: str | None

    def describe(self) -> str:
        """Describe the session in half a sentence: process, application, user, transaction and query."""
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        since = f", in a transaction since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        query = f", query: {' '.join(self.query.split())}" if self.query else ""
        return f"process {self.pid} ({self.application or 'no name'}, user {self.user or 'unknown'}{since}{query})"


async def advisory_lock_holder(connection: Connection, lock: int) -> str:
    """Return which session holds an advisory lock, as the end of a sentence; empty if no session holds it now."""
    row = await connection.fetchrow(_HOLDER, lock)
    if row is None:
        return ""
    since = f", connected since {row['backend_start']:%Y-%m-%d %H:%M:%S %Z}" if row["backend_start"] else ""
    return f": process {row['pid']} ({row['application_name'] or 'no name'}, user {row['usename']}{since})"


class BlockerWatch:
    """Polls, on a second connection, which sessions block one step of a migration, until the step ends.

    `blockers` are the sessions of the last poll that found any. A step that waits for `give_up_seconds` without a break
    is cancelled. If the second connection is lost, polling stops: no blocker is named, and a concurrent index build,
    which has no `lock_timeout`, waits without a limit.
    """

    def __init__(
        self, connection: Connection, pid: int, what: str, give_up_seconds: float, say: Callable[[str], None]
    ) -> None:
        self.blockers: list[Blocker] = []
        self.gave_up = False
        self._connection = connection
        self._pid = pid
        self._what = what
        self._give_up_seconds = give_up_seconds
        self._say = say

    async def __aenter__(self) -> Self:
        self._done = asyncio.Event()
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        await self._task

    async def _poll(self) -> None:
        with contextlib.suppress(*CONNECTION_ERRORS):
            since: float | None = None
            reported: set[int] = set()
            while not await self._ended_within(poll_seconds(since)):
                found = [Blocker(*row) for row in await self._connection.fetch(_BLOCKERS, self._pid)]
                if not found:
                    since = None
                    continue
                self.blockers = found
                since = since or time.monotonic()
                waited_seconds = time.monotonic() - since
                if waited_seconds > self._give_up_seconds:
                    self.gave_up = True
                    await self._connection.execute(_CANCEL, self._pid)
                    return
                if waited_seconds > _LONG_WAIT_SECONDS and not {item.pid for item in found} <= reported:
                    reported |= {item.pid for item in found}
                    blockers = "; ".join(map(Blocker.describe, found))
                    self._say(
                        f"{self._what} waits for a lock and blocks no other session meanwhile. Blocked by: {blockers}."
                    )

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return False
        return True


def poll_seconds(since: float | None) -> float:
    """Return the pause before the next poll of a step that has waited since then: short at first, then longer."""
    long = since is not None and time.monotonic() - since > _LONG_WAIT_SECONDS
    return _SLOW_POLL_SECONDS if long else _POLL_SECONDS
