"""A worker's way into the log: group commit of all its streams.

One connection appends, in one statement for all streams that have something. What was committed is announced over
another one (`notifier`), so that the next flush does not wait for it. The next flush starts when the last has committed
and the window has passed. A stream's first event and its terminal event do not wait for the window: such a flush
carries only the streams in that hurry, and comes no sooner than 5 ms after the last.

What always holds: a batch is announced only after its commit; a flush whose outcome is unknown is repeated with the
same boundaries until the outcome is known; nothing is written to a database that may have gone back in time before its
log was compared with what was written. In a new history the writer continues a stream only if nobody else can have
written to it in the old one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from ..backoff import Backoff
from ..db import event_log, history, streams
from ..db.event_log import Append
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..errors import ConfigurationError
from ..observability.metrics import WorkerMetrics
from .notifier import Notifier
from .outbox import Lost, Outbox

logger = logging.getLogger(__name__)

URGENT_PAUSE_SECONDS: Final = 0.005
# The pause after a flush is so many times as long as the shorter of the last two took, and between one and so many
# windows.
PAUSE_PER_FLUSH: Final = 3
LONGEST_WINDOW: Final = 4
PUT_OFF_SECONDS: Final = 1
FLUSH_BYTES: Final = 4 << 20
DATA_ERRORS: Final = (
    asyncpg.exceptions.DataError,
    asyncpg.exceptions.IntegrityConstraintViolationError,
    asyncpg.exceptions.ProgramLimitExceededError,
)


Vouch = Callable[[Connection, str], Awaitable[bool]]


async def _alone(_connection: Connection, _history: str) -> bool:
    """Vouch, as the only writer that there is."""
    return True


class Writer:
    """Flushes outboxes into the log. Owned by a worker, which awaits `run()`."""

    def __init__(
        self,
        dsn: str,
        *,
        window_seconds: float,
        notifier: Notifier,
        metrics: WorkerMetrics,
        prepare: bool = True,
        vouch: Vouch = _alone,
    ) -> None:
        """`vouch` says of a history that is over whether the worker's claims stood until its end."""
        self._vouch = vouch
        self._dsn = dsn
        self._prepare = prepare
        self._window_seconds = window_seconds
        self._notifier = notifier
        self._metrics = metrics
        self._ready: dict[Outbox, None] = {}
        self._urgent: dict[Outbox, None] = {}
        self._open: dict[UUID, Outbox] = {}
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._history: str | None = None  # in which the outboxes' tails are true
        self._doubtful = False  # the log may have gone back since it was compared
        self._to_adopt: set[Outbox] = set()  # that lost nothing, and are of an older history
        self._last_flush = 0.0
        self._flush_seconds = 0.0  # what the last flush of all streams took
        self._window_over = 0.0  # urgent flushes in between do not move it: others would wait for ever

    def add(self, outbox: Outbox) -> None:
        """Follow an outbox: its tail is compared with the log's after each reconnect.

        A worker that was taken for dead may claim its own stream again while it still runs it. The older outbox is lost
        then, and must not stay until an append refuses it: a flush knows what was written by the stream alone.
        """
        before = self._open.get(outbox.stream_id)
        self._open[outbox.stream_id] = outbox
        if before is not None:
            before.lose(Lost.FENCED)
            self._forget(before)

    def remove(self, outbox: Outbox) -> None:
        """Stop following an outbox that is closed, or whose stream was handed back."""
        if self._open.get(outbox.stream_id) is outbox:
            del self._open[outbox.stream_id]
        self._forget(outbox)

    def _forget(self, outbox: Outbox) -> None:
        self._ready.pop(outbox, None)
        self._urgent.pop(outbox, None)

    def ready(self, outbox: Outbox) -> None:
        """Hear that an outbox has something to write."""
        if outbox.urgent:
            self._urgent[outbox] = None
            self._wake.set()
        else:
            if not self._ready:
                self._wake.set()
            self._ready[outbox] = None

    def doubt(self) -> None:
        """Hear that the database may have gone back in time: compare its log before anything else is written."""
        self._doubtful = True
        self._wake.set()

    async def run(self) -> None:
        """Flush until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, whole = await self._next_flush(loop)
                started = loop.time()
                await self._flush(due)
                self._last_flush = loop.time()
                if whole:
                    self._window_over = self._last_flush + self._pause_after(self._last_flush - started)
        finally:
            if self._connection is not None:
                self._connection.terminate()

    def _pause_after(self, flush_seconds: float) -> float:
        """The window; a longer one where flushes take long, so that the database has fewer and larger ones to do.

        The shorter of the last two counts: after one that alone took long, all would wait for it once more.
        """
        shorter, self._flush_seconds = min(flush_seconds, self._flush_seconds), flush_seconds
        return max(self._window_seconds, min(shorter * PAUSE_PER_FLUSH, self._window_seconds * LONGEST_WINDOW))

    async def _next_flush(self, loop: asyncio.AbstractEventLoop) -> tuple[list[Outbox], bool]:
        """Wait until a flush is due; return whose, and whether it is of all that have something."""
        while True:
            if self._doubtful:
                return [], False
            now = loop.time()
            window_over = self._window_over
            urgent_at = self._last_flush + URGENT_PAUSE_SECONDS
            if (self._ready or self._urgent) and now >= window_over:
                due = list(self._urgent | self._ready)
                self._ready.clear()
                self._urgent.clear()
                return due, True
            if self._urgent and now >= urgent_at:
                due = list(self._urgent)
                self._urgent.clear()
                for outbox in due:
                    self._ready.pop(outbox, None)
                return due, False
            self._wake.clear()
            deadline = min(urgent_at, window_over) if self._urgent else window_over if self._ready else None
            timer = None if deadline is None else loop.call_at(deadline, self._wake.set)
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    async def _flush(self, due: Sequence[Outbox]) -> None:
        """Write one batch of each outbox, in as many statements as their size wants."""
        group: dict[Outbox, Append] = {}
        size = 0
        for outbox in due:
            item = outbox.take()
            if item is None:
                continue
            if group and size + len(item.events) > FLUSH_BYTES:
                await self._write(group)
                group, size = {}, 0
            group[outbox] = item
            size += len(item.events)
        if group or self._doubtful:
            await self._write(group)

    async def _write(self, group: dict[Outbox, Append]) -> None:
        """Write a group until its outcome is known, reconnecting as often as it takes."""
        backoff = Backoff()
        while True:
            try:
                connection = await self._connected()
                if self._doubtful:
                    await self._compare(connection)
                    # The log may have lost what a batch follows, or an outbox its stream.
                    group = {outbox: item for outbox, item in group.items() if outbox.still_has(item)}
                if group:
                    await self._append(connection, group)
                if self._to_adopt:
                    await self._adopt(connection)
            except asyncpg.DeadlockDetectedError as error:
                logger.warning("An append is tried again: %s", error)
            except _HistoryChanged:
                self._doubtful = True
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
                logger.warning("A flush failed and will be repeated on a new connection: %r", error)
                self._metrics.flush_failures += 1
                if self._connection is not None:
                    self._connection.terminate()
            else:
                return
            await backoff.sleep()

    async def _append(self, connection: Connection, group: dict[Outbox, Append]) -> None:
        """Write a group in one statement; on an error in the data halve it until the stream at fault is alone."""
        started = asyncio.get_running_loop().time()
        try:
            written = await event_log.append(connection, list(group.values()), self._history)
        except DATA_ERRORS as error:
            if len(group) > 1:
                items = list(group.items())
                await self._append(connection, dict(items[: len(items) // 2]))
                await self._append(connection, dict(items[len(items) // 2 :]))
            elif event_log.partition_is_missing(error):
                self._put_off(next(iter(group)), error)
            else:
                await self._reject(connection, next(iter(group)), error)
            return
        if not written and await history.read(connection) != self._history:
            raise _HistoryChanged
        self._count_flush(group.values(), asyncio.get_running_loop().time() - started)
        self._notifier.announce([item for item in group.values() if item.stream_id in written])
        for outbox, item in group.items():
            if item.stream_id in written:
                outbox.written(item.last_seq, terminal=item.outcome is not None)
            else:
                await self._settle(connection, outbox, item)

    def _count_flush(self, items: Collection[Append], seconds: float) -> None:
        self._metrics.flushed(
            batches=len(items),
            events=sum([item.last_seq - item.first_seq + 1 for item in items]),
            size_bytes=sum([len(item.events) for item in items]),
            seconds=seconds,
        )

    async def _settle(self, connection: Connection, outbox: Outbox, item: Append) -> None:
        """Find out why a batch was not written. Only a statement of its own can see the row that was in the way."""
        stream = await streams.get(connection, item.stream_id)
        if stream is None or (stream.epoch, stream.claim_token) != (item.epoch, item.claim_token):
            self._metrics.fenced += 1
            outbox.lose(Lost.FENCED)
            return
        tail = await event_log.read_tail(connection, item.stream_id)
        if tail.outcome is not None:
            if not stream.ended:
                await streams.close(connection, item.stream_id, item.epoch, tail.outcome)
            if tail.epoch == item.epoch and item.outcome is not None:
                self._landed(outbox, item)
            else:
                outbox.lose(Lost.ENDED)
        elif tail.epoch == item.epoch and tail.last_seq == item.last_seq:
            self._landed(outbox, item)
        elif tail.last_seq >= item.first_seq:
            outbox.retry_after(tail.last_seq, await event_log.read_usage(connection, item.stream_id))
        else:
            outbox.retry()

    def _landed(self, outbox: Outbox, item: Append) -> None:
        """Learn that a flush whose answer was lost had been committed after all."""
        self._notifier.announce([item])
        outbox.written(item.last_seq, terminal=item.outcome is not None)

    def _put_off(self, outbox: Outbox, error: Exception) -> None:
        """Try a batch again after a while: it has no partition yet. Its generator waits when its buffer is full."""
        logger.error(
            "%s: run `baton maintain`, which creates the partitions that are missing.", error, extra=_of(outbox)
        )
        self._retry_later(outbox)

    def _retry_later(self, outbox: Outbox) -> None:
        asyncio.get_running_loop().call_later(PUT_OFF_SECONDS, self._retry, outbox)

    def _retry(self, outbox: Outbox) -> None:
        if self._open.get(outbox.stream_id) is outbox:
            outbox.retry()

    async def _reject(self, connection: Connection, outbox: Outbox, error: Exception) -> None:
        """End a stream whose data the database refuses; an ending that it refuses too is tried again after a while.

        Without that event the row stays open: a closed one says to followers that its log has lost its end.
        """
        # Not as text, which has the row that was refused.
        logger.error("The database refused data of stream %s: %r", outbox.stream_id, error, extra=_of(outbox))
        if outbox.lost is Lost.REJECTED:
            self._retry_later(outbox)
            return
        tail = await event_log.read_tail(connection, outbox.stream_id)
        outbox.end_with(Lost.REJECTED, tail.last_seq)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, name="baton worker append", prepare=self._prepare)
            self._doubtful = True
        return self._connection

    async def _compare(self, connection: Connection) -> None:
        """End the streams whose log is shorter than it was: a failover has lost what clients may have seen.

        The others move to the history that the database is in now, unless somebody else may have written to them in
        the part that is lost. Those that were claimed in this history have nothing to do with that.
        """
        self._doubtful = False  # an error closes the connection, and the next one is in doubt again
        before, self._history = self._history, await history.read(connection)
        # One that is added while this waits is of the present history, or has its claim refused by the next append.
        compared = list(self._open.values())
        if not compared:
            return
        vouched = {
            left: left is None or left == self._history or await self._vouch(connection, left)
            for left in {outbox.history or before for outbox in compared}
        }
        tails = await event_log.tails(connection, [outbox.stream_id for outbox in compared])
        for outbox in compared:
            found = tails.get(outbox.stream_id)
            if found is None or outbox.closed.is_set():
                continue
            left = outbox.history or before
            outbox.history = self._history
            if found.seq < outbox.tail:
                logger.error(
                    "The log of stream %s went back from %d to %d.",
                    outbox.stream_id,
                    outbox.tail,
                    found.seq,
                    extra=_of(outbox),
                )
                outbox.end_with(Lost.REWOUND, found.seq)
            elif not vouched[left]:
                logger.error(
                    "Stream %s may have been another worker's when the database failed over.",
                    outbox.stream_id,
                    extra=_of(outbox),
                )
                outbox.end_with(Lost.REWOUND, found.seq)
            elif left not in {None, self._history}:
                self._to_adopt.add(outbox)

    async def _adopt(self, connection: Connection) -> None:
        """Move streams to the present history: they have no batch in flight that clients may have and the log not."""
        settled = [outbox for outbox in self._to_adopt if not outbox.in_flight or outbox.closed.is_set()]
        fences = [outbox.fence for outbox in settled if not outbox.closed.is_set()]
        if fences:
            await streams.adopt(connection, fences)
        self._to_adopt.difference_update(settled)


class _HistoryChanged(Exception):
    """The database is of another history than the one in which the log was compared."""


def _of(outbox: Outbox) -> dict[str, str]:
    """Which stream a line of the log belongs to: one connection writes for all."""
    return {"stream_id": str(outbox.stream_id)}
