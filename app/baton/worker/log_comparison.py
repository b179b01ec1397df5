"""Comparing the log with what a writer wrote, after the database may have gone back in time.

A failover may lose the end of the log. So after each reconnect, and in each new history of the database, the tail of
every open outbox is compared with the log before anything is written. A stream whose log is shorter ends as rewound.
The other streams move to the current history, unless another worker may have written to them in the lost part.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from uuid import UUID

from ..db import event_log, history, streams
from ..db.postgres import Connection
from ..observability.log_context import fields_of
from .outbox import Lost, Outbox

logger = logging.getLogger(__name__)

# Returns whether the worker's claims stood until the database left a history.
LeaseLasted: TypeAlias = Callable[[Connection, str], Awaitable[bool]]


class LogComparison:
    """Compares the open outboxes of one writer, by their streams."""

    def __init__(self, outboxes: Mapping[UUID, Outbox], lease_lasted: LeaseLasted) -> None:
        self._outboxes = outboxes
        self._lease_lasted = lease_lasted
        self._to_adopt: set[Outbox] = set()  # complete, and of an older history
        self.due = False  # the log may have gone back since it was compared
        self.history: str | None = None  # in which the outboxes' tails are true

    async def compare(self, connection: Connection) -> None:
        """End the streams whose log is shorter than it was: a failover lost what clients may have seen.

        The others move to the current history by `adopt`, unless another worker may have written to them in the part
        that is lost. Streams that were claimed in the current history are not affected.
        """
        self.due = False  # an error closes the connection, which makes it due again
        before, self.history = self.history, await history.read(connection)
        # An outbox that is added while this waits is of the current history, or the next append refuses its claim.
        compared = list(self._outboxes.values())
        if not compared:
            return
        lasted = {
            left: left is None or left == self.history or await self._lease_lasted(connection, left)
            for left in {outbox.history or before for outbox in compared}
        }
        tails = await event_log.tails(connection, [outbox.stream_id for outbox in compared])
        for outbox in compared:
            found = tails.get(outbox.stream_id)
            if found is None or outbox.closed.is_set():
                continue
            left = outbox.history or before
            outbox.history = self.history
            if found.seq < outbox.tail:
                logger.error(
                    "The log of stream %s went back from %d to %d.",
                    outbox.stream_id,
                    outbox.tail,
                    found.seq,
                    extra=fields_of(outbox.stream_id),
                )
                outbox.end_with(Lost.REWOUND, found.seq)
            elif not lasted[left]:
                logger.error(
                    "Stream %s may have been another worker's when the database failed over.",
                    outbox.stream_id,
                    extra=fields_of(outbox.stream_id),
                )
                outbox.end_with(Lost.REWOUND, found.seq)
            elif left not in {None, self.history}:
                self._to_adopt.add(outbox)

    async def adopt(self, connection: Connection) -> None:
        """Move complete streams to the current history once they have no batch in flight.

        Clients may have seen a batch in flight although the log does not have it.
        """
        if not self._to_adopt:
            return
        settled = [outbox for outbox in self._to_adopt if not outbox.in_flight or outbox.closed.is_set()]
        fences = [outbox.fence for outbox in settled if not outbox.closed.is_set()]
        if fences:
            await streams.adopt(connection, fences)
        self._to_adopt.difference_update(settled)
