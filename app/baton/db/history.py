"""Which history of the database this is. It changes whenever the database may have gone back in time.

A promoted standby or a restore to a point in time may lack what clients have seen. Postgres numbers such lines of time
("timelines"), and `baton.current_history()` returns the present number behind a marker. The marker changes where the
timeline does not show that the database went back: by `baton mark-restored`, after a snapshot or a dump was restored,
and by itself when a worker's counter has fallen, which no counter ever does.

Each stream has the history that it was created in. A worker that lives through a change compares its streams with the
log, and moves those that lost nothing to the new history (`streams.adopt`). All others of an older history end as
`log_rewound`, since nobody can say what their clients have seen.
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
# A dump may have been made without the row.
_MARK = """
INSERT INTO baton.history (marker) VALUES (encode(substring(uuid_send(gen_random_uuid()) FOR 4), 'hex'))
ON CONFLICT (single) DO UPDATE SET marker = excluded.marker
"""
_ADOPT_ALL = """
UPDATE baton.stream SET history = baton.current_history()
WHERE status IN ('queued', 'running') AND history <> baton.current_history()
RETURNING id
"""
_LIVE = "SELECT count(*) FROM baton.stream WHERE status IN ('queued', 'running')"


async def read(executor: Connection | Pool) -> str:
    """Return the present history.

    Raises:
        ObjectNotInPrerequisiteStateError: the server is a standby. Its log may lag, and proves nothing.
    """
    history: str = await executor.fetchval(_READ)
    return history


async def mark_restored(connection: Connection) -> int:
    """Begin a new history; return how many streams were queued or running, which end as `log_rewound` now."""
    async with connection.transaction():
        await connection.execute(_MARK)
        live: int = await connection.fetchval(_LIVE)
    return live


async def declare_complete(connection: Connection) -> int:
    """Move all queued and running streams to the present history, which lost nothing; return how many."""
    return len(await connection.fetch(_ADOPT_ALL))


class HistoryWatch:
    """Notices a new history, for a pod or a worker: by reading it, and by the workers' counters, which it remembers."""

    def __init__(self, on_new_history: Callable[[], None] = lambda: None) -> None:
        self.history: str | None = None  # as of the last look
        self._counters: Mapping[UUID, int] = {}
        self._on_new_history = on_new_history

    async def look(self, executor: Connection | Pool) -> Mapping[UUID, int]:
        """Look at the history, and begin a new one where a counter has fallen; return all workers' counters."""
        counters = await worker_rows.counters(executor)
        fallen = [item for item in self._counters.items() if counters.get(item[0], item[1]) < item[1]]
        known = self.history
        if fallen and known is not None:
            self.history = await executor.fetchval(_BEGIN, known, *fallen[0])
        else:
            self.history = await read(executor)
        # Not before: what has fallen must be seen again where no history could begin, as on a standby.
        self._counters = counters
        if known not in {None, self.history}:
            logger.error("The database is of another history than before: it was restored, or a standby was promoted.")
            self._on_new_history()
        return counters
