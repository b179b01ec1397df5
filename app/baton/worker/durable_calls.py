"""Calls that workers make for streams that have ended, from a table in which they outlast every worker.

A call takes as long as its receiver does, so each is a task of its own. The worker's control loop takes the calls and
writes down their results, over its own connection: `work` never waits for a receiver. All of it runs on the worker's
event loop.

A call whose worker dies is taken by another one after the lease. A call that fails is repeated with growing pauses, by
any worker, and given up after a day: its error is in the log. So a call is made at least once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

from ..backoff import Backoff
from ..db.postgres import Connection
from ..pace import Pace

# How often to look for calls that other processes have left. An end in this worker is followed at once.
LOOK_SECONDS: Final = 1.0
MOST_AT_ONCE: Final = 32
LEASE_SECONDS: Final = 60.0  # longer than a call, and the time until its result is written

_GIVE_UP_SECONDS: Final = 24 * 3600.0
# Calls that no worker can make are forgotten after this time.
FORGET_SECONDS: Final = 7 * 24 * 3600.0
_FORGET_PACE_SECONDS: Final = 3600.0


class Call(Protocol):
    """A call of a stream that has ended: how often it was tried, counting this time, and for how long it is due."""

    @property
    def stream_id(self) -> UUID: ...
    @property
    def tries(self) -> int: ...
    @property
    def age_seconds(self) -> float: ...


CallT = TypeVar("CallT", bound=Call)
# What the table keeps of a call that failed.
PostponedT = TypeVar("PostponedT")


class Hopeless(Exception):
    """A call that would fail at every try, so it is given up."""


class _Running(NamedTuple, Generic[CallT]):
    call: CallT
    task: asyncio.Task[None]


class DurableCalls(ABC, Generic[CallT, PostponedT]):
    """The calls of one kind and one worker. `on_result` is called when `work` has a result to write."""

    def __init__(
        self,
        *,
        left: PostponedT,
        first_pause_seconds: float,
        longest_pause_seconds: float,
        on_result: Callable[[], None],
    ) -> None:
        """`left` is what the table keeps of a call that this worker leaves to others."""
        self._left = left
        self._first_pause_seconds = first_pause_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._on_result = on_result
        self._running: dict[UUID, _Running[CallT]] = {}
        self._finished: set[UUID] = set()  # made, or given up
        self._failed: dict[UUID, PostponedT] = {}
        # A scan takes longer while an old snapshot is open.
        self._pace = Pace(factor=20, least_seconds=LOOK_SECONDS)
        self._forget_pace = Pace(factor=20, least_seconds=_FORGET_PACE_SECONDS)

    @property
    @abstractmethod
    def enabled(self) -> bool:
        """Whether this worker makes calls."""

    @abstractmethod
    async def _take(self, connection: Connection, most: int) -> Sequence[CallT]:
        """Take calls that are due, `most` at most; no other worker takes them before the lease ends."""

    @abstractmethod
    async def _make(self, call: CallT) -> None:
        """Make a call.

        Raises:
            Hopeless: it is given up.
            Exception: it failed, and is repeated.
        """

    @abstractmethod
    def _postponed(self, call: CallT, error: Exception, pause_seconds: float) -> PostponedT:
        """Log a failure; return what the table keeps of the call."""

    @abstractmethod
    def _note_given_up(self, call: CallT, error: Exception) -> None:
        """Log that a call is not repeated."""

    @abstractmethod
    async def _delete(self, connection: Connection, finished: Collection[UUID]) -> None:
        """Delete the calls of these streams."""

    @abstractmethod
    async def _postpone(self, connection: Connection, failed: Mapping[UUID, PostponedT]) -> None:
        """Make the calls of these streams due later."""

    @abstractmethod
    async def _forget_old(self, connection: Connection) -> None:
        """Delete the calls that no worker could make for `FORGET_SECONDS`, and log them."""

    @property
    def running(self) -> int:
        """How many calls are being made."""
        return len(self._running)

    async def work(self, connection: Connection) -> None:
        """Write the results of calls, and begin the ones that are due."""
        if self.enabled:
            await self._write_results(connection)
            free = MOST_AT_ONCE - len(self._running)
            if free and self._pace.due:
                with self._pace.timed():
                    calls = await self._take(connection, free)
                for call in calls:
                    self._begin(call)
        if self._forget_pace.due:
            with self._forget_pace.timed():
                await self._forget_old(connection)

    async def leave(self, connection: Connection, timeout_seconds: float) -> None:
        """Make the calls of the streams that have just ended here, and leave to other workers what takes longer."""
        if not self.enabled:
            return
        self._pace.hurry()
        await self.work(connection)
        if self._running:
            await asyncio.wait([running.task for running in self._running.values()], timeout=timeout_seconds)
        left = dict.fromkeys(self._running, self._left)
        await self.aclose()  # a call that returns meanwhile is repeated, which its receiver must allow
        self._failed |= left
        await self._write_results(connection)

    async def aclose(self) -> None:
        """Cancel the calls that are being made."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, call: CallT) -> None:
        # A call that outlasted its lease is taken again by this worker.
        if call.stream_id in self._running:
            return
        task = asyncio.create_task(self._run(call), name=f"{type(self).__name__} {call.stream_id}")
        self._running[call.stream_id] = _Running(call, task)
        task.add_done_callback(lambda _task: self._running.pop(call.stream_id, None))

    async def _run(self, call: CallT) -> None:
        try:
            await self._make(call)
        except Exception as error:  # noqa: BLE001 - it is logged
            if isinstance(error, Hopeless) or call.age_seconds >= _GIVE_UP_SECONDS:
                self._finished.add(call.stream_id)
                self._note_given_up(call, error)
            else:
                self._failed[call.stream_id] = self._postponed(call, error, self._pause_seconds(call.tries))
        else:
            self._finished.add(call.stream_id)
        self._on_result()

    def _pause_seconds(self, tries: int) -> float:
        """Return how long to wait after a call has failed this often."""
        first_seconds = self._first_pause_seconds * 2 ** min(tries - 1, 20)
        return Backoff(first_seconds=first_seconds, cap_seconds=self._longest_pause_seconds).next_seconds()

    async def _write_results(self, connection: Connection) -> None:
        """Write the results. They are kept if this fails, and written by the next try."""
        finished, failed = set(self._finished), dict(self._failed)
        if finished:
            await self._delete(connection, finished)
            self._finished -= finished
        if failed:
            await self._postpone(connection, failed)
            self._failed = {key: value for key, value in self._failed.items() if key not in failed}
