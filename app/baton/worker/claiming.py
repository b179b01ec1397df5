"""Claiming: a worker takes queued streams into its free slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from ..db import event_log, queue_lines, stream_ending, stream_queue
from ..db.postgres import Connection
from ..db.queue_watermark import QueueWatermark
from ..db.stream_ending import REWOUND, End
from ..db.stream_queue import Claim
from ..generators import Generator, can_continue
from ..usage import Bill
from .capacity import Room
from .hooked_ends import Ends
from .lease import Lease
from .slots import Slots


class Claiming:
    """Claims streams of these generators for one worker."""

    def __init__(self, generators: Mapping[str, Generator], lease: Lease, slots: Slots, ends: Ends) -> None:
        self.generators = sorted(generators)
        self._continuing = [name for name in self.generators if can_continue(generators[name])]
        self._lease = lease
        self._slots = slots
        self._share = slots.share
        self._ends = ends
        limited = [name for name in generators if slots.share.is_limited(name)]
        unlimited = [name for name in generators if not slots.share.is_limited(name)]
        self._groups = deque[Sequence[str]]([unlimited] if unlimited else [])
        self._groups.extend([name] for name in limited)
        self.watermark = QueueWatermark()  # of the streams that this worker can serve

    def enter(self) -> None:
        """Begin over a new connection."""
        self.forget()
        self._share.enter([names[0] for names in self._groups])

    def forget(self) -> None:
        """Look at the whole queue again, since another server may have taken over."""
        self.watermark.forget()

    async def claim(self, connection: Connection) -> None:
        """Claim as many queued streams as there is room for, and start them."""
        groups = self._groups_in_turn()
        if self._share.is_full([names[0] for names in groups]):
            return
        if self.watermark.due:
            await self.watermark.update(lambda since: queue_lines.first(connection, since, self.generators))
        for names in groups:
            with self._share.room_for(names[0]) as room:
                if room:
                    room.claims = await self._claim_into(room, connection, names)
                for item in room.claims or ():
                    await self._begin(connection, item)

    async def _claim_into(self, room: Room, connection: Connection, names: Sequence[str]) -> list[Claim]:
        assert self._lease.worker_id is not None
        return await stream_queue.claim(
            connection,
            self._lease.worker_id,
            names,
            room.streams,
            place=self._lease.place,
            since=self.watermark.since,
            max_bytes=room.input_bytes,
            continuing=self._continuing,
        )

    def _groups_in_turn(self) -> list[Sequence[str]]:
        """Return the names for each claim: a generator with a limit has a claim of its own, for as many as fit.

        They take turns in being first, so that none takes all free slots each time.
        """
        self._groups.rotate(-1)
        return list(self._groups)

    async def _begin(self, connection: Connection, item: Claim) -> None:
        """Start a claimed stream, unless it has ended already or must end as rewound."""
        if item.rewound:
            await self._ends.make(connection, End.of_claimed(item.fence, REWOUND), item.generator)
            return
        tail = await event_log.read_tail(connection, item.stream_id) if item.epoch > 1 else event_log.Tail()
        if tail.outcome is None:
            used = await event_log.read_usage(connection, item.stream_id) if tail.last_seq else {}
            self._slots.start(item, tail.last_seq, Bill(item.epoch, used))
        else:
            # The terminal batch was written while the stream was taken away, so its writer could not close the row.
            await stream_ending.close(connection, item.stream_id, item.epoch, tail.outcome)
