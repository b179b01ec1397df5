"""How a run ends to wait for an input: everything is flushed, and then the stream leaves its worker."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from ..db import code_revisions, stream_waiting
from ..db.event_log import Append
from ..db.postgres import Connection
from ..db.stream_waiting import Began, Wait
from ..hints.hint import HELD
from ..hints.hints import Hints
from .outbox import Outbox
from .records import Records

logger = logging.getLogger(__name__)

# Between two looks for older code, or for the comparison of the log with a new history of the database.
LOOK_SECONDS: Final = 0.5


class Waits(Protocol):
    """Begins the waits of runs: `Waiting`, or memory (`baton.testing`)."""

    async def until_allowed(self) -> None:
        """Wait until a stream may wait without a worker."""

    async def begin(self, outbox: Outbox, wait: Wait, seen: int) -> Began:
        """Begin a wait for a stream whose outbox is flushed."""


class Waiting:
    """Begins the waits of one worker's runs."""

    def __init__(self, records: Records, hints: Hints, *, most_seconds: float) -> None:
        self._records = records
        self._hints = hints
        self._most_seconds = most_seconds
        self._allowed = False

    async def until_allowed(self) -> None:
        """Wait until no older code runs, which would take a waiting stream for one that has ended.

        Until then the stream keeps its slot.
        """
        while not self._allowed:
            self._allowed = await self._records.run(code_revisions.exclude_older)
            if not self._allowed:
                logger.info("A stream keeps its slot while it waits, since workers or pods of an older release run.")
                await asyncio.sleep(LOOK_SECONDS)

    async def begin(self, outbox: Outbox, wait: Wait, seen: int) -> Began:
        """Begin a wait for a stream whose outbox is flushed. `seen`: see `stream_waiting.begin`."""
        while True:
            began, batch = await self._records.run(lambda connection: self._begin(connection, outbox, wait, seen))
            if began is not Began.REWOUND or outbox.lost is not None:
                break
            # The writer compares the log, and then either moves the stream to the new history or loses it.
            await asyncio.sleep(LOOK_SECONDS)
        if batch is not None:
            self._hints.send(batch)
        return began

    async def _begin(
        self, connection: Connection, outbox: Outbox, wait: Wait, seen: int
    ) -> tuple[Began, Append | None]:
        began = await stream_waiting.begin(
            connection,
            outbox.fence,
            wait,
            seen=seen,
            most_seconds=self._most_seconds,
            history=outbox.history,
            state=None if wait.state is None else outbox.state_at_tail(wait.state, wait.inputs),
        )
        if began[0] is Began.WOKEN:
            self._hints.send(HELD)
        return began
