"""A worker's way into the log: one connection appends the batches of all its streams, many in one statement.

The protocol between the writer and each stream's outbox is described in `outbox`. `flush_schedule` decides when to
flush. Announcements go another way (`hints`), so that the next flush does not wait for them.

What always holds:

- A batch is announced only after its commit.
- A flush whose outcome is unknown is repeated with the same boundaries until the outcome is known.
- Nothing is written to a database that may have gone back in time before the log was compared (`log_comparison`).
- What was flushed in the last seconds stays here after its stream has ended, and is appended again if it is lost.

With an end hook, terminal batches do not join a group: each is given to `hooked_ends`, whose transactions hold up no
flush. The outcome is answered here, as that of any batch.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from ..backoff import retry
from ..db import event_log, history, hooked_ends, sqlstates, stream_ending, streams
from ..db.event_log import Append
from ..db.fence import Fence
from ..db.hooked_ends import Hook
from ..db.postgres import DATA_ERRORS, Connection, connect
from ..db.reconnecting import FAILURES
from ..hints.hints import Hints
from ..observability.log_context import fields_of
from ..observability.metrics import WorkerMetrics
from .appending import STATEMENT_BYTES, HistoryChanged, append
from .flush_schedule import FlushSchedule
from .hooked_ends import HookedEnds
from .log_comparison import LeaseLasted, LogComparison
from .outbox import Lost, Outbox
from .recent_batches import RecentBatches

logger = logging.getLogger(__name__)

PUT_OFF_SECONDS: Final = 1


async def _lasted(_connection: Connection, _history: str) -> bool:
    """Return true, for the only writer of a database."""
    return True


class Writer:
    """Flushes outboxes into the log. It belongs to a worker, which awaits `run()`."""

    def __init__(
        self,
        dsn: str,
        *,
        window_seconds: float,
        hints: Hints,
        metrics: WorkerMetrics,
        prepare: bool = True,
        lease_lasted: LeaseLasted = _lasted,
        recent: RecentBatches | None = None,
        ends: HookedEnds | None = None,
    ) -> None:
        """`lease_lasted` returns whether the worker's claims were valid until the end of a past history.

        `recent` keeps what is flushed, for a failover; by default nothing is kept. `ends` makes the ends of streams if
        there is an end hook.
        """
        self._dsn = dsn
        self._prepare = prepare
        self._hints = hints
        self._metrics = metrics
        self._outboxes: dict[UUID, Outbox] = {}
        self._schedule = FlushSchedule(window_seconds)
        self._recent = recent or RecentBatches()
        self._ends = ends
        self._comparison = LogComparison(
            self._outboxes,
            self._recent,
            lease_lasted,
            self._note_appended_again,
            None if ends is None else self._begin_end_again,
        )
        self._connection: Connection | None = None

    def add(self, outbox: Outbox) -> None:
        """Follow an outbox, until `remove`.

        A worker that was declared dead may claim its own stream again while it still runs it. Then the older outbox is
        lost at once, and not only when its append is refused: a flush has at most one batch of a stream.
        """
        before = self._outboxes.get(outbox.stream_id)
        self._outboxes[outbox.stream_id] = outbox
        if before is not None:
            before.lose(Lost.FENCED)
            self._schedule.forget(before)

    def remove(self, outbox: Outbox) -> None:
        """Stop following an outbox that is closed, or whose stream was handed over."""
        if self._outboxes.get(outbox.stream_id) is outbox:
            del self._outboxes[outbox.stream_id]
        self._schedule.forget(outbox)
        lost = outbox.lost
        if not outbox.closed.is_set() or (lost is not None and lost.outcome is None):
            # Another worker may write after what this one wrote.
            self._recent.forget(outbox.fence)

    def ready(self, outbox: Outbox) -> None:
        """Note that an outbox has something to write."""
        self._schedule.ready(outbox)

    def doubt(self) -> None:
        """Note that the database may have gone back in time: compare its log before anything else is written."""
        self._comparison.due = True
        self._schedule.flush_at_once()

    def has_end(self, fence: Fence) -> bool:
        """Return whether the end of this claim was flushed in the last seconds, and is still here."""
        kept = self._recent.of(fence)
        return kept is not None and kept.ended

    async def run(self) -> None:
        """Flush until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, all_outboxes = await self._schedule.next_flush()
                started_at = loop.time()
                await self._flush(due)
                self._schedule.flushed(started_at, all_outboxes=all_outboxes)
        finally:
            if self._connection is not None:
                self._connection.terminate()

    async def _flush(self, due: Sequence[Outbox]) -> None:
        """Write one batch of each outbox, in statements of `STATEMENT_BYTES` at most unless one batch is larger."""
        group: dict[Outbox, Append] = {}
        size = 0
        for outbox in due:
            item = outbox.take()
            if item is None:
                continue
            if group and size + item.size_bytes > STATEMENT_BYTES:
                await self._write(group)
                group, size = {}, 0
            group[outbox] = item
            size += item.size_bytes
        if group or self._comparison.due:
            await self._write(group)

    async def _write(self, group: dict[Outbox, Append]) -> None:
        """Write a group until its outcome is known, over as many connections as that takes."""
        await retry(
            lambda _backoff: self._try_to_write(group),
            errors=(*FAILURES, HistoryChanged),
            on_failure=self._on_failure,
        )

    async def _try_to_write(self, group: dict[Outbox, Append]) -> None:
        connection = await self._connected()
        if self._comparison.due:
            await self._comparison.compare(connection)
            # The log may have lost the events before a batch, or the worker may have lost its stream.
            for outbox, item in list(group.items()):
                if not outbox.still_has(item):
                    del group[outbox]
        if self._ends is not None:
            self._begin_ends(self._ends, group)
        if group:
            await self._append(connection, group)
        await self._comparison.adopt(connection)

    def _on_failure(self, error: Exception) -> None:
        if isinstance(error, HistoryChanged):
            self._comparison.due = True
        elif isinstance(error, asyncpg.DeadlockDetectedError):
            logger.warning("An append met a deadlock and will be repeated: %s", error)
        else:
            logger.warning("A flush failed and will be repeated over a new connection: %r", error)
            self._metrics.flush_failures += 1
            if self._connection is not None:
                self._connection.terminate()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._dsn, name="baton worker append", prepare=self._prepare, by_index=True
            )
            self._comparison.due = True
        return self._connection

    async def _append(self, connection: Connection, group: dict[Outbox, Append]) -> None:
        """Write a group in one statement. After an error in the data, halve it until the stream at fault is alone."""
        started_at = asyncio.get_running_loop().time()
        try:
            written = await append(connection, list(group.values()), self._comparison.history)
        except DATA_ERRORS as error:
            await self._isolate(connection, group, error)
            return
        self._count_flush(group.values(), asyncio.get_running_loop().time() - started_at)
        appended = [item for item in group.values() if item.stream_id in written]
        self._recent.note(appended, self._comparison.history)
        self._hints.send(*[item for item in appended if item.events])
        for outbox, item in group.items():
            if item.stream_id in written:
                outbox.written(item.last_seq, terminal=item.outcome is not None)
            else:
                await self._settle(connection, outbox, item)

    def _begin_ends(self, ends: HookedEnds, group: dict[Outbox, Append]) -> None:
        """Take the terminal batches out of a group, and have each written with the end hook."""
        history_now = self._comparison.history
        for outbox, item in list(group.items()):
            if item.outcome is not None:
                del group[outbox]
                ends.add(item.stream_id, functools.partial(self._append_end, outbox, item, history_now))

    async def _append_end(
        self, outbox: Outbox, item: Append, history_then: str | None, connection: Connection, hook: Hook | None
    ) -> None:
        """Write a terminal batch with the end hook, and answer it as soon as its outcome is known."""
        if not outbox.still_has(item):
            return  # it ends differently now, or belongs to another worker
        started_at = asyncio.get_running_loop().time()
        try:
            written = await hooked_ends.append(connection, item, history_then, hook)
        except DATA_ERRORS as error:
            if sqlstates.partition_is_missing(error):
                self._put_off(outbox, error)
            else:
                await self._reject(connection, outbox, error)
            return
        if written:
            self._count_flush([item], asyncio.get_running_loop().time() - started_at)
            self._recent.note([item], history_then)
            self._hints.send(item)
        if not outbox.still_has(item):
            return
        if written:
            outbox.written(item.last_seq, terminal=True)
        elif await history.read(connection) != history_then:
            self.doubt()
            outbox.retry()
        else:
            await self._settle(connection, outbox, item)

    def _begin_end_again(self, item: Append) -> None:
        """Have the end of a stream written again that a failover has lost with what the hook had written."""
        assert self._ends is not None
        attempt = functools.partial(self._append_end_again, item, self._comparison.history)
        self._ends.add(item.stream_id, attempt)

    async def _append_end_again(
        self, item: Append, history_then: str | None, connection: Connection, hook: Hook | None
    ) -> None:
        try:
            written = await hooked_ends.append(connection, item, history_then, hook)
        except DATA_ERRORS as error:
            logger.error("The database refused an end that it has lost: %s", type(error).__name__)
            return
        if written:
            self._recent.note([item], history_then)
            self._note_appended_again([item])
        elif await history.read(connection) != history_then:
            self.doubt()

    async def _isolate(self, connection: Connection, group: dict[Outbox, Append], error: asyncpg.PostgresError) -> None:
        """Write both halves of a group that the database refused; answer a batch that is alone in its group."""
        if len(group) > 1:
            items = list(group.items())
            await self._append(connection, dict(items[: len(items) // 2]))
            await self._append(connection, dict(items[len(items) // 2 :]))
        elif sqlstates.partition_is_missing(error):
            self._put_off(next(iter(group)), error)
        else:
            await self._reject(connection, next(iter(group)), error)

    def _count_flush(self, items: Collection[Append], seconds: float) -> None:
        self._metrics.flushed(
            batches=len(items),
            events=sum([item.last_seq - item.first_seq + 1 for item in items]),
            size_bytes=sum([len(item.events) for item in items]),
            seconds=seconds,
        )

    async def _settle(self, connection: Connection, outbox: Outbox, item: Append) -> None:
        """Find out why a batch was not written, and answer it. Only a new statement can see the row in its place."""
        stream = await streams.get(connection, item.stream_id)
        if stream is None or (stream.epoch, stream.claim_token) != (item.epoch, item.claim_token):
            self._metrics.fenced += 1
            outbox.lose(Lost.FENCED)
            return
        tail = await event_log.read_tail(connection, item.stream_id)
        if tail.outcome is not None:
            if not stream.ended:
                await stream_ending.close(connection, item.stream_id, item.epoch, tail.outcome)
            if tail.epoch == item.epoch and item.outcome is not None:
                self._was_written(outbox, item)
            else:
                outbox.lose(Lost.ENDED)
        elif item.events and tail.epoch == item.epoch and tail.last_seq == item.last_seq:
            self._was_written(outbox, item)
        elif tail.last_seq >= item.first_seq:
            outbox.retry_after(tail.last_seq, await event_log.read_usage(connection, item.stream_id))
        else:
            outbox.retry()

    def _was_written(self, outbox: Outbox, item: Append) -> None:
        """Answer a batch that was committed by a flush whose reply was lost."""
        self._recent.note([item], self._comparison.history)
        self._hints.send(item)
        outbox.written(item.last_seq, terminal=item.outcome is not None)

    def _note_appended_again(self, items: Sequence[Append]) -> None:
        self._metrics.appended_again += len(items)
        self._hints.send(*items)

    def _put_off(self, outbox: Outbox, error: Exception) -> None:
        """Try a batch without a partition again after a while. Its generator waits once the buffer is full."""
        logger.error(
            "%s: run `baton maintain`, which creates the missing partitions.", error, extra=fields_of(outbox.stream_id)
        )
        self._retry_later(outbox)

    def _retry_later(self, outbox: Outbox) -> None:
        asyncio.get_running_loop().call_later(PUT_OFF_SECONDS, self._retry, outbox)

    def _retry(self, outbox: Outbox) -> None:
        if self._outboxes.get(outbox.stream_id) is outbox:
            outbox.retry()

    async def _reject(self, connection: Connection, outbox: Outbox, error: Exception) -> None:
        """End a stream whose data the database refuses. If it refuses the end too, try that again after a while.

        Without its terminal event the row stays open: a closed row means to followers that the log has lost its end.
        """
        # The error is not logged as text, which contains the row that was refused.
        logger.error(
            "The database refused data of stream %s: %r", outbox.stream_id, error, extra=fields_of(outbox.stream_id)
        )
        if outbox.lost is Lost.REJECTED:
            self._retry_later(outbox)
            return
        tail = await event_log.read_tail(connection, outbox.stream_id)
        outbox.end_with(Lost.REJECTED, tail.last_seq)
