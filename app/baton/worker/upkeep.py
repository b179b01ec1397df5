"""What a worker does after each heartbeat: follow its streams' rows, and take care of streams without a worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Final
from uuid import UUID

import asyncpg

from ..db import (
    notifications,
    partitions,
    queue_lines,
    stream_ending,
    stream_queue,
    stream_waiting,
    streams,
    worker_rows,
)
from ..db.fence import Fence
from ..db.postgres import Connection
from ..db.queue_watermark import SWEEP_SECONDS, QueueWatermark
from ..db.stream_ending import End
from ..db.worker_rows import Owned
from ..hints.hint import HELD
from ..hints.hints import Hints
from ..outcome import Outcome
from ..pace import Pace
from ..settings import Settings
from .hooked_ends import Ends
from .reaper import Reaper
from .slots import Slots
from .writer import Writer

logger = logging.getLogger(__name__)

PARTITIONS_SECONDS: Final = 3600
# How often a worker with an end hook looks for cancels of queued streams whose notification was lost.
CANCELLED_SECONDS: Final = 2.0


class Upkeep:
    """The upkeep of one worker, over its control connection."""

    def __init__(self, settings: Settings, slots: Slots, ends: Ends, writer: Writer, hints: Hints) -> None:
        self._settings = settings
        self._hints = hints
        self._slots = slots
        self._ends = ends
        self._writer = writer
        self._reaper = Reaper(
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_pause_seconds=settings.lease_seconds / 2,
            ends=ends,
        )
        # A stream that committed late is not overdue yet: only claims must find it quickly.
        self._watermark = QueueWatermark(late_check_seconds=SWEEP_SECONDS)
        # A read from the start of an index may take long while an old snapshot is open.
        self._owned_pace = Pace(factor=100)
        self._overdue_pace = Pace(factor=20)
        self._cancelled_pace = Pace(factor=50, least_seconds=CANCELLED_SECONDS)
        self._waits_pace = Pace(factor=20)
        self._partitions_due_at = 0.0
        self._resurrected: set[Fence] = set()  # running again, as of the last heartbeat, though they ended here
        self._cancelled: set[UUID] = set()  # by notifications, which the rows must confirm

    @property
    def has_cancels(self) -> bool:
        """Whether notifications have named streams that may have to stop."""
        return bool(self._cancelled)

    def note_cancel(self, payload: str) -> bool:
        """Note a notification about a cancel; return whether it names a stream that this worker may have to end.

        That is a stream that runs here, or with an end hook any one that is queued or waits: pods leave their ends to
        the workers. The next heartbeat would find the cancel too.
        """
        stream_id = notifications.named_stream(payload)
        if stream_id is None or not (stream_id in self._slots.runs or self._ends.hooked):
            return False
        self._cancelled.add(stream_id)
        return True

    def note_input(self, payload: str) -> None:
        """Note a notification about an input. The next heartbeat would find the input too."""
        stream_id = notifications.named_stream(payload)
        run = None if stream_id is None else self._slots.runs.get(stream_id)
        if run is not None and run.inputs is not None:
            run.inputs.hint()

    def reconnected(self) -> None:
        """Look at everything again: a reply to a claim may be lost, and this may be another server."""
        self._owned_pace.hurry()
        self._watermark.forget()

    def disconnected(self) -> None:
        """Forget what was known of the other workers: their counters were not watched in the meantime."""
        self._reaper.forget()

    def forget_queue(self) -> None:
        """Look at the whole queue again, since another server may have taken over."""
        self._watermark.forget()

    async def stop_cancelled(self, connection: Connection) -> None:
        """Stop the streams that were named in notifications, if their rows confirm it."""
        asked, self._cancelled = self._cancelled, set()
        for stream_id in await worker_rows.cancelled(connection, list(asked)):
            if run := self._slots.runs.get(stream_id):
                run.stop(Outcome.cancelled())
        if self._ends.hooked:
            await self._end_cancelled(connection, asked)
            self._waits_pace.hurry()  # the deadline of a cancelled wait is now
            await self._end_waits(connection)

    async def look(self, connection: Connection, worker_id: UUID) -> None:
        """Look for cancels and inputs of this worker's streams, whose hints may have been lost."""
        for item in await worker_rows.owned(connection, worker_id, list(self._slots.runs)):
            if (run := self._slots.runs.get(item.fence.stream_id)) is None:
                continue
            if item.cancelled:
                run.stop(Outcome.cancelled())
            elif run.inputs is not None:
                run.inputs.note(item.inputs)

    async def _end_cancelled(self, connection: Connection, among: Collection[UUID] | None = None) -> None:
        """End streams that were cancelled while they were queued: some, or all."""
        for stream_id, generator in await stream_queue.cancelled(connection, among):
            await self._ends.make(connection, End.of_cancelled(stream_id), generator)

    async def run(self, connection: Connection, worker_id: UUID, counters: Mapping[UUID, int]) -> None:
        """Do all of it once. `counters` are those of all workers."""
        trust_watched = self._reaper.steady_seconds() > self._settings.watchers_known_after_seconds
        await self._follow_rows(connection, worker_id, trust_watched=trust_watched)
        self._slots.enforce_limits()
        await self._note_first_tokens(connection)
        await self._create_partitions(connection)
        await self._reaper.check(connection, worker_id, counters)
        await self._end_overdue(connection, unwatched=trust_watched)
        if self._ends.hooked and self._cancelled_pace.due:
            with self._cancelled_pace.timed():
                await self._end_cancelled(connection)
        await self._end_waits(connection)

    async def _follow_rows(self, connection: Connection, worker_id: UUID, *, trust_watched: bool) -> None:
        """Stop the streams whose rows say so, and give back the ones that do not run here.

        A stream that a failover made run again is not given back while the writer may still append its end again.
        """
        resurrected: set[Fence] = set()
        for item in await self._owned(connection, worker_id):
            run = self._slots.runs.get(item.fence.stream_id)
            if item.fence.stream_id in self._slots.handed_over:
                continue
            if run is None and self._writer.has_end(item.fence):
                resurrected.add(item.fence)
            elif run is None:
                # The reply to a claim was lost, or the reply to a terminal flush whose row another worker must close.
                await stream_queue.requeue(connection, item.fence, stream_queue.NEVER_RAN)
            elif item.cancelled:
                run.stop(Outcome.cancelled())
            elif item.unwatched and trust_watched:
                run.stop(stream_ending.UNWATCHED)
            elif run.inputs is not None:
                run.inputs.note(item.inputs)
        if resurrected & self._resurrected:
            # The first time, the stream may have ended just after the rows were read. Now the database went back.
            self._writer.doubt()
        self._resurrected = resurrected

    async def _owned(self, connection: Connection, worker_id: UUID) -> list[Owned]:
        """Return the streams that the database says this worker owns: all, or only the running ones if that is slow."""
        if not self._owned_pace.due:
            return await worker_rows.owned(connection, worker_id, list(self._slots.runs))
        with self._owned_pace.timed():
            return await worker_rows.owned(connection, worker_id)

    async def _note_first_tokens(self, connection: Connection) -> None:
        """Write first tokens since the last heartbeat into the streams' rows, for operators."""
        due = {
            run.outbox.fence: seconds
            for run in self._slots.runs.values()
            if not run.first_token_noted and (seconds := run.time_to_first_token_seconds) is not None
        }
        if due:
            for stream_id in await streams.note_first_tokens(connection, due):
                if run := self._slots.runs.get(stream_id):
                    run.first_token_noted = True

    async def _create_partitions(self, connection: Connection) -> None:
        """Create the partitions of the coming days, once an hour."""
        if time.monotonic() < self._partitions_due_at:
            return
        self._partitions_due_at = time.monotonic() + PARTITIONS_SECONDS
        try:
            await partitions.create_ahead(connection, self._settings.partition_days_ahead)
        except asyncpg.PostgresError as error:
            logger.error("Partitions cannot be created ahead. Run `baton maintain`, which creates them too: %s", error)

    async def _end_overdue(self, connection: Connection, *, unwatched: bool) -> None:
        """End the queued streams that no worker took in time. The watermark stays below the ones that remain."""
        if not self._overdue_pace.due:
            return
        with self._overdue_pace.timed():
            await self._watermark.update(lambda since: queue_lines.first(connection, since))
            found = await stream_queue.overdue(
                connection, self._settings.queue_timeout_seconds, unwatched=unwatched, since=self._watermark.since
            )
        for item in found:
            await self._ends.make(connection, stream_queue.end_of(item), item.generator)

    async def _end_waits(self, connection: Connection) -> None:
        """End the waits whose deadlines are over: their streams are queued again, or end."""
        if not self._waits_pace.due:
            return
        with self._waits_pace.timed():
            found = await stream_waiting.due(connection)
        woken = False
        for item in found:
            end = stream_waiting.end_of(item)
            if end is None:
                woken |= await stream_waiting.wake(connection, item)
            else:
                await self._ends.make(connection, end, item.generator)
        if woken:
            self._hints.send(HELD)
