"""One statement that appends batches, in the history of the database in which the log was last compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from ..db import event_log, history
from ..db.event_log import Append
from ..db.postgres import Connection

# The most bytes of events in one statement, unless one batch is larger.
STATEMENT_BYTES: Final = 4 << 20


class HistoryChanged(Exception):
    """The database has another history than when the log was compared."""


async def append(connection: Connection, batches: Sequence[Append], current_history: str | None) -> set[UUID]:
    """Append a batch of each stream; return the streams whose batch was written.

    Raises:
        HistoryChanged: nothing was written. The log must be compared again before anything else is.
        asyncpg.PostgresError: one of `DATA_ERRORS` if the data is at fault.
    """
    written = await event_log.append(connection, batches, current_history)
    if not written and await history.read(connection) != current_history:
        raise HistoryChanged
    return written
