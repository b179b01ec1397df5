"""Who is in a migration's way, and for how long that is borne.

It is asked of Postgres while it waits, since afterwards it is too late.
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
# Longer than this a step waits only where it stops nobody: in a concurrent index build, which may wait for hours.
_TELL_AFTER_SECONDS: Final = 5.0
_SLOW_POLL_SECONDS: Final = 1.0

# `pg_blocking_pids` keeps everybody from the lock manager, and is called only while there is something to ask it for.
# Process 0 stands for a prepared transaction. A role that may not watch others sees neither transaction nor query.
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
# The two halves of an advisory lock's number. A role that may not watch others does not see since when they are there.
_HOLDER: Final = """
SELECT a.pid, a.application_name, a.usename, a.backend_start
FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database()
  AND l.database = a.datid AND l.classid::bigint << 32 | l.objid::bigint = $1
"""
_CANCEL: Final = "SELECT pg_cancel_backend($1)"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A process that holds a lock, or stands before us in the queue for one."""

    pid: int
    application: str | None
    user: str | None
    since: datetime | None
    query: str | None

    def describe(self) -> str:
        """Say who it is."""
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        since = f", in a transaction since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        query = f", with: {' '.join(self.query.split())}" if self.query else ""
        return f"process {self.pid} ({self.application or 'no name'}, user {self.user or 'unknown'}{since}{query})"


async def holder(connection: Connection, lock: int) -> str:
    """Say, to be added to a sentence, which session has an advisory lock; nothing if it is gone."""
    row = await connection.fetchrow(_HOLDER, lock)
    if row is None:
        return ""
    since = f", connected since {row['backend_start']:%Y-%m-%d %H:%M:%S %Z}" if row["backend_start"] else ""
    return f": process {row['pid']} ({row['application_name'] or 'no name'}, user {row['usename']}{since})"


class BlockerWatch:
    """Looks at one step of a migration, from a connection of its own, until the step ends.

    `blockers` are those that were seen last. A step that has waited for `give_up_seconds` without a break is cancelled.
    When the connection is lost nobody looks any more: nobody is named, and a concurrent index build, for which no
    `lock_timeout` holds, waits for as long as it must.
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
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        await self._task

    async def _look(self) -> None:
        with contextlib.suppress(*CONNECTION_ERRORS):
            since: float | None = None
            told: set[int] = set()
            while not await self._over(pause_seconds(since)):
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
                if waited_seconds > _TELL_AFTER_SECONDS and not {item.pid for item in found} <= told:
                    told |= {item.pid for item in found}
                    self._say(f"{self._what} waits, and stops nobody: {'; '.join(map(Blocker.describe, found))}.")

    async def _over(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return False
        return True


def pause_seconds(since: float | None) -> float:
    """Return how soon to look again at a step that waits since then: in short waits often enough to see who it is."""
    long = since is not None and time.monotonic() - since > _TELL_AFTER_SECONDS
    return _SLOW_POLL_SECONDS if long else _POLL_SECONDS
