"""Makes the ends of streams with the application's end hook, each in a transaction of its own.

A hook may be slow, fail, or never return, so its transactions have connections of their own: the writer, the control
loop and the other streams do not wait for them. Up to `CONNECTIONS` ends are made at a time, and each connection is
opened when it is first needed. The other ends wait in a queue. All of it runs on the worker's event loop.

Two kinds of ends come here: the terminal batches of this worker's runs, from the writer, and the ends of streams
without a writer, from the control loop. After `TRIES` failures of the hook a stream ends without it, and is marked by
`hook_failed`. A failure of the database is no failure of the hook: the end is tried again until its outcome is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from ..backoff import Backoff, retry
from ..db import stream_ending, worker_rows
from ..db.hooked_ends import Hook
from ..db.postgres import Connection, connect
from ..db.reconnecting import FAILURES
from ..db.stream_ending import End
from ..hints import hint
from ..hints.hints import Hints
from ..observability.log_context import fields_of
from ..observability.metrics import WorkerMetrics
from ..outcome import Outcome
from .end_hook import EndHook, HookFailed, WatchedHook

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 4
TRIES: Final = 3
# Between two tries of a hook.
_FIRST_PAUSE_SECONDS: Final = 0.5
# Failures of the database while a hook runs, after which the hook counts as their cause.
_MOST_FAILURES: Final = 10

# Makes an end in one transaction, over this connection and with this hook, or without it if it has failed too often.
Attempt: TypeAlias = Callable[[Connection, Hook | None], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Job:
    stream_id: UUID
    attempt: Attempt
    failures: int = 0  # of the hook
    lost: int = 0  # failures of the database


class HookedEnds:
    """The ends of one worker. It belongs to the worker, which awaits `run()`."""

    def __init__(self, dsn: str, hook: EndHook, *, hints: Hints, metrics: WorkerMetrics, prepare: bool = True) -> None:
        self._dsn = dsn
        self._hints = hints
        self._prepare = prepare
        self._hook = hook
        self._metrics = metrics
        self._queue = asyncio.Queue[_Job]()
        self._pending: set[_Job] = set()
        self._by_sql: set[UUID] = set()
        self._done = asyncio.Event()

    @property
    def pending(self) -> bool:
        """Whether there are ends whose outcome is not known."""
        return bool(self._pending)

    @property
    def timeout_seconds(self) -> float:
        """How long one run of the hook may take."""
        return self._hook.timeout_seconds

    def add(self, stream_id: UUID, attempt: Attempt) -> None:
        """Make an end. `attempt` is repeated until it returns."""
        job = _Job(stream_id, attempt)
        self._pending.add(job)
        self._queue.put_nowait(job)

    def end(self, wanted: End, on_end: Callable[[Outcome], None]) -> None:
        """End a stream without a writer, unless that is being done. `on_end` is called if this ended it."""
        if wanted.stream_id in self._by_sql:
            return

        async def attempt(connection: Connection, hook: Hook | None) -> None:
            if await stream_ending.end(connection, wanted, hook, hook_failed=hook is None):
                on_end(wanted.outcome)
                self._hints.send(hint.of_change(wanted.stream_id))
            self._by_sql.discard(wanted.stream_id)

        self._by_sql.add(wanted.stream_id)
        self.add(wanted.stream_id, attempt)

    async def settle(self, timeout_seconds: float) -> None:
        """Wait until the outcome of all ends is known, but not for longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._pending:
                    self._done.clear()
                    await self._done.wait()

    async def run(self) -> None:
        """Make ends until cancelled. Then the transactions in progress are rolled back."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                lane = _Lane(
                    self._dsn,
                    self._queue,
                    prepare=self._prepare,
                    # Longer than a statement of the hook may take.
                    command_seconds=self._hook.timeout_seconds + 10,
                    make=self._make,
                )
                group.create_task(lane.run())

    async def _make(self, connection: Connection, job: _Job) -> None:
        """Try once to make an end. After a failure of the hook the next try follows later."""
        watched = WatchedHook(self._hook) if job.failures < TRIES and job.lost < _MOST_FAILURES else None
        try:
            await job.attempt(connection, watched)
        except (HookFailed, *FAILURES):
            if watched is None or watched.failure is None:
                job.lost += 1
                if job.lost == _MOST_FAILURES:
                    self._note_lost(job)
                raise
            self._try_later(job, watched.failure)
        else:
            self._pending.discard(job)
            self._done.set()

    def _try_later(self, job: _Job, error: HookFailed) -> None:
        job.failures += 1
        self._note_failure(job, error)
        pause = _FIRST_PAUSE_SECONDS * 2 ** (job.failures - 1) if job.failures < TRIES else 0
        asyncio.get_running_loop().call_later(pause, self._queue.put_nowait, job)

    def _note_lost(self, job: _Job) -> None:
        self._metrics.end_hook_failures.add("give_up")
        logger.error(
            "The connection was lost %d times while the end hook ran for stream %s, which ends without it. Read the "
            "database's log. `baton run-end-hooks` runs the hook for such streams.",
            _MOST_FAILURES,
            job.stream_id,
            extra=fields_of(job.stream_id),
        )

    def _note_failure(self, job: _Job, error: HookFailed) -> None:
        again = job.failures < TRIES
        self._metrics.end_hook_failures.add("retry" if again else "give_up")
        if again:
            logger.warning(
                "The end hook failed for stream %s, and runs again: %s",
                job.stream_id,
                error,
                extra=fields_of(job.stream_id),
            )
            return
        logger.error(
            "The end hook failed %d times for stream %s, which ends without it: %s. Correct the hook, and run "
            "`baton run-end-hooks`, which runs it for such streams.",
            TRIES,
            job.stream_id,
            error,
            exc_info=error.__cause__,
            extra=fields_of(job.stream_id),
        )


class _Lane:
    """One connection, and the ends that are made over it, one after another."""

    def __init__(
        self,
        dsn: str,
        queue: asyncio.Queue[_Job],
        *,
        prepare: bool,
        command_seconds: float,
        make: Callable[[Connection, _Job], Awaitable[None]],
    ) -> None:
        self._dsn = dsn
        self._prepare = prepare
        self._command_seconds = command_seconds
        self._queue = queue
        self._make = make
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Make ends until cancelled."""
        try:
            while True:
                job = await self._queue.get()
                await retry(functools.partial(self._try, job), errors=FAILURES, on_failure=self._on_failure)
        finally:
            self._drop()

    async def _try(self, job: _Job, _backoff: Backoff) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._dsn,
                name="baton worker end hook",
                command_timeout_seconds=self._command_seconds,
                prepare=self._prepare,
            )
        await self._make(self._connection, job)
        if not self._connection.is_closed() and self._connection.is_in_transaction():
            self._drop()  # the hook has begun another one

    def _on_failure(self, error: Exception) -> None:
        logger.warning("A stream with an end hook could not be ended, and this will be repeated: %r", error)
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Ends:
    """Makes the ends that a worker's control loop decides: at once, or with the end hook if there is one.

    A worker without a hook leaves them to the workers that have one, if there are any: then all ends have the hook.
    `on_end` is called with the outcome and the generator's name of each stream that this has ended.
    """

    def __init__(self, on_end: Callable[[Outcome, str], None], hooked: HookedEnds | None = None) -> None:
        self._on_end = on_end
        self._hooked = hooked

    @property
    def hooked(self) -> bool:
        """Whether this worker has an end hook."""
        return self._hooked is not None

    async def make(self, connection: Connection, wanted: End, generator: str) -> None:
        """Make an end, now or soon."""
        if self._hooked is not None:
            self._hooked.end(wanted, lambda outcome: self._on_end(outcome, generator))
        elif await worker_rows.any_has_end_hook(connection):
            logger.debug("The end of stream %s is left to a worker with an end hook.", wanted.stream_id)
        elif await stream_ending.end(connection, wanted):
            self._on_end(wanted.outcome, generator)


# For a worker without a hook, which does not count the ends.
AT_ONCE: Final = Ends(lambda _outcome, _generator: None)
