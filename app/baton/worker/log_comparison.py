"""Comparing the log with what a writer wrote, after the database may have gone back in time.

A failover may lose the end of the log. So after each reconnect, and in each new history of the database, the log is
compared with every open outbox, and with the streams that ended in the last seconds, before anything is written:

- Batches that are missing are appended again if they are still here (`recent_batches`) and the row still has their
  claim. So the log has again what clients have seen. With an end hook, terminal batches are left to `hooked_ends`: what
  the hook wrote was lost with them.
- An open stream that cannot be completed ends as rewound. One that had ended is left to the workers that find its row.
- The open streams that are complete move to the current history.

If another worker may have written to a stream in the lost part, nothing is appended again, and it ends as rewound.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from ..db import event_log, history, streams
from ..db.event_log import Append, Standing
from ..db.fence import Fence
from ..db.postgres import Connection
from ..observability.log_context import fields_of
from .appending_again import append_again
from .outbox import Lost, Outbox
from .recent_batches import RecentBatches

logger = logging.getLogger(__name__)

# Returns whether the worker's claims were valid until the database left a history.
LeaseLasted: TypeAlias = Callable[[Connection, str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class _Written:
    """What this worker has written to one stream: up to `tail`, in a history that the database may have left."""

    fence: Fence
    tail: int
    left: str | None
    outbox: Outbox | None  # None if the stream has ended


class LogComparison:
    """Compares the streams of one writer. `on_appended` gets the batches that were appended again.

    If there is an `append_end`, it gets the terminal ones instead, to append each with the end hook.
    """

    def __init__(
        self,
        outboxes: Mapping[UUID, Outbox],
        recent: RecentBatches,
        lease_lasted: LeaseLasted,
        on_appended: Callable[[Sequence[Append]], None],
        append_end: Callable[[Append], None] | None = None,
    ) -> None:
        self._outboxes = outboxes
        self._recent = recent
        self._lease_lasted = lease_lasted
        self._on_appended = on_appended
        self._append_end = append_end
        self._to_adopt: set[Outbox] = set()  # complete, and of an older history
        self.due = False  # the log may have gone back since it was compared
        self.history: str | None = None  # in which the outboxes' tails are true

    async def compare(self, connection: Connection) -> None:
        """Append what the log has lost, and end the open streams for which that is impossible.

        The others move to the current history by `adopt`. Streams that were claimed in the current history are not
        affected.

        Raises:
            HistoryChanged: the database has changed in the meantime. Compare again.
        """
        self.due = False  # an error closes the connection, which makes it due again
        before, self.history = self.history, await history.read(connection)
        # An outbox that is added while this waits belongs to the current history, or the next append refuses its claim.
        compared = self._written(before)
        if not compared:
            return
        lasted = {
            left: left is None or left == self.history or await self._lease_lasted(connection, left)
            for left in {item.left for item in compared}
        }
        tails = await event_log.tails(connection, [item.fence.stream_id for item in compared])
        vouched = [item for item in compared if lasted[item.left]]
        tails |= await self._complete(connection, vouched, tails)
        for item in compared:
            if (found := tails.get(item.fence.stream_id)) is None:
                self._recent.forget(item.fence)
            else:
                self._judge(item, found, lasted=lasted[item.left])

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

    def _written(self, before: str | None) -> list[_Written]:
        """Return the open streams, and the ones that ended in the last seconds."""
        running = [
            _Written(outbox.fence, outbox.tail, outbox.history or before, outbox)
            for outbox in self._outboxes.values()
            if not outbox.closed.is_set()
        ]
        ended = [_Written(item.fence, item.tail, item.history or before, None) for item in self._recent.ended()]
        return running + ended

    async def _complete(
        self, connection: Connection, compared: Sequence[_Written], tails: Mapping[UUID, Standing]
    ) -> dict[UUID, Standing]:
        """Append what the log has lost of these streams, where all of it is here; return the new tails.

        In another history also save again what states came after the last event: the log does not show their loss.
        """
        lost = [
            batches
            for item in compared
            if (found := tails.get(item.fence.stream_id)) is not None
            and not found.ended
            and (found.seq < item.tail or item.left not in {None, self.history})
            and (batches := self._lost(item, found.seq))
        ]
        if not lost:
            return {}
        ends = [] if self._append_end is None else [item for item in map(_take_end, lost) if item is not None]
        written = await append_again(connection, filter(None, lost), self.history)
        if batches := [item for item in written if item.events]:
            streams_of = {item.stream_id for item in batches}
            logger.warning(
                "The log went back. %d batches of %d streams were appended again.", len(batches), len(streams_of)
            )
            self._on_appended(batches)
        standings = {item.stream_id: Standing(item.last_seq, item.outcome is not None) for item in written}
        self._recent.note(written, self.history)
        for end in ends:
            before = standings.get(end.stream_id) or tails[end.stream_id]
            if before.seq == end.first_seq - 1 and self._append_end is not None:
                if end.stream_id in standings:
                    # What was written replaced what was kept. Without its end the stream would be given back.
                    self._recent.note([end], self.history)
                self._append_end(end)
                standings[end.stream_id] = Standing(end.last_seq, ended=True)  # or soon
        return standings

    def _lost(self, item: _Written, seq: int) -> list[Append]:
        """Return what a stream's log lacks after `seq`. The list is empty if that is nothing, or is not here."""
        kept = self._recent.of(item.fence)
        return kept.after(seq) if kept is not None and kept.tail == item.tail else []

    def _judge(self, item: _Written, found: Standing, *, lasted: bool) -> None:
        """Decide about a stream, now that everything is appended that could be."""
        if found.seq < item.tail:
            self._log_loss("The log of stream %s went back from %d to %d.", item.fence, item.tail, found.seq)
        elif not lasted and not found.ended:
            self._log_loss("Another worker may have had stream %s when the database failed over.", item.fence)
        else:
            self._note_complete(item)
            return
        if item.outbox is None:
            self._recent.forget(item.fence)
        elif not item.outbox.closed.is_set():
            item.outbox.history = self.history
            item.outbox.end_with(Lost.REWOUND, found.seq)

    def _note_complete(self, item: _Written) -> None:
        if (kept := self._recent.of(item.fence)) is not None:
            kept.history = self.history
        if item.outbox is not None and not item.outbox.closed.is_set():
            item.outbox.history = self.history
            if item.left not in {None, self.history}:
                self._to_adopt.add(item.outbox)

    def _log_loss(self, message: str, fence: Fence, *numbers: int) -> None:
        logger.error(message, fence.stream_id, *numbers, extra=fields_of(fence.stream_id))


def _take_end(batches: list[Append]) -> Append | None:
    """Remove the terminal batch from the end of a list; return it, or None if there is none."""
    return batches.pop() if batches[-1].outcome is not None else None
