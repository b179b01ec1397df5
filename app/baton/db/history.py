"""The history of the database: an id that changes whenever the database may have gone back in time.

A promoted standby, or a restore to a point in time, may lack what clients have seen. Postgres numbers such timelines,
and `baton.current_history()` returns a marker with the number of the current timeline. The marker changes where the
timeline does not show that the database went back: by `baton mark-restored`, after a snapshot or a dump was restored,
and automatically when a worker's counter has fallen, which never happens otherwise.

Each stream has the history in which it was created. A worker that survives a change compares its streams with the log,
and moves the streams that lost nothing to the new history (`streams.adopt`). All other streams of an older history end
as `log_rewound`, since it is unknown what their clients have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from . import worker_rows
from .postgres import Connection, Pool

logger = logging.getLogger(__name__)

_READ = "SELECT baton.current_history()"
_BEGIN = "SELECT baton.begin_history($1, $2, $3)"
# A restored dump may lack the row.
_MARK = """
INSERT INTO baton.history (marker) VALUES (encode(substring(uuid_send(gen_random_uuid()) FOR 4), 'hex'))
ON CONFLICT (single) DO UPDATE SET marker = excluded.marker
"""
_ADOPT_ALL = """
UPDATE baton.stream SET history = baton.current_history()
WHERE status NOT IN ('completed', 'failed', 'cancelled') AND history <> baton.current_history()
RETURNING id
"""
_LIVE = "SELECT count(*) FROM baton.stream WHERE status NOT IN ('completed', 'failed', 'cancelled')"


async def read(executor: Connection | Pool) -> str:
    """Return the current history.

    Raises:
        ObjectNotInPrerequisiteStateError: the server is a standby. Its log may lag behind, so it proves nothing.
    """
    history: str = await executor.fetchval(_READ)
    return history


async def mark_restored(connection: Connection) -> int:
    """Begin a new history; return how many streams were queued or running. They now end as `log_rewound`."""
    async with connection.transaction():
        await connection.execute(_MARK)
        live: int = await connection.fetchval(_LIVE)
    return live


async def declare_complete(connection: Connection | Pool) -> int:
    """Move all queued and running streams to the current history, which lost nothing; return how many."""
    return len(await connection.fetch(_ADOPT_ALL))


class HistoryWatch:
    """Notices a new history for a pod or a worker: by reading it, and by remembering the workers' counters."""

    def __init__(self, on_new_history: Callable[[], None] = lambda: None) -> None:
        self.history: str | None = None  # as of the last check
        self._counters: Mapping[UUID, int] = {}
        self._on_new_history = on_new_history

    async def check(self, executor: Connection | Pool) -> Mapping[UUID, int]:
        """Read the history, and begin a new one if a counter has fallen; return all workers' counters."""
        counters = await worker_rows.counters(executor)
        fallen = [item for item in self._counters.items() if counters.get(item[0], item[1]) < item[1]]
        known = self.history
        if fallen and known is not None:
            self.history = await executor.fetchval(_BEGIN, known, *fallen[0])
        else:
            self.history = await read(executor)
        # Only now: if no history could begin, as on a standby, the next check must see the fallen counter again.
        self._counters = counters
        if known not in {None, self.history}:
            logger.error("The history of the database has changed: it was restored, or a standby was promoted.")
            self._on_new_history()
        return counters
