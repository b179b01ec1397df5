"""One of the processes of a command: a child, and after its death the next one.

The first child of a slot must become ready: if it cannot, neither could the next one, and the command fails. From then
on a child that ends unasked is replaced, after a pause that grows while children die young. The others serve meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Final

from ..backoff import Backoff
from ..errors import ConfigurationError
from .assignment import Assignment
from .listening_sockets import ListeningSockets
from .spawned import Spawned

logger = logging.getLogger(__name__)

# A child that lived for this long was well, and is replaced as soon as the first one.
STEADY_SECONDS: Final = 60
# Between two starts, while children of a slot die young.
LONGEST_PAUSE_SECONDS: Final = 15.0
# The start imports the user's generators, which may block the event loop for long.
START_TICKS: Final = 600


class ChildFailed(Exception):
    """A child has failed in a way that lets the command fail. The log says how."""


class Slot:
    """Runs one child after another, until it is asked to leave."""

    def __init__(
        self,
        assignment: Assignment,
        sockets: ListeningSockets | None,
        on_ask: Callable[[Spawned], None],
        *,
        hang_ticks: int,
    ) -> None:
        self._assignment = assignment
        self._sockets = sockets
        self._on_ask = on_ask
        self._hang_ticks = hang_ticks
        self._leaving = asyncio.Event()
        self.was_ready = asyncio.Event()  # the first child of this slot
        self.number = assignment.number
        self.child: Spawned | None = None
        self.replaced = 0

    async def run(self) -> None:
        """Run children until this slot leaves.

        Raises:
            ConfigurationError: the first child refused to start; the sentence is its own.
            ChildFailed: the first child ended before it was ready, or one did not leave cleanly.
        """
        backoff = Backoff(cap_seconds=LONGEST_PAUSE_SECONDS)
        while not self._leaving.is_set():
            child = await self._start()
            if child is not None:
                await self._live(child)
                if self._leaving.is_set():
                    return
                if child.age_seconds >= STEADY_SECONDS:
                    backoff.reset()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), backoff.next_seconds())
            self.replaced += not self._leaving.is_set()

    def leave(self) -> None:
        """Let the child leave, and start no other one."""
        self._leaving.set()
        if self.child is not None:
            self.child.leave()

    def hurry(self) -> None:
        """Let the child leave at once."""
        self.leave()
        if self.child is not None:
            self.child.hurry()

    def kill(self) -> None:
        """Kill the child."""
        if self.child is not None:
            self.child.kill()

    def tick(self) -> None:
        """Kill the child if its event loop has not run for long. Called at intervals of a second."""
        child = self.child
        if child is None:
            return
        child.silent_ticks += 1
        if child.silent_ticks == (self._hang_ticks if child.ready.is_set() else START_TICKS):
            logger.error("Process %d (pid %d) hangs, and is killed.", self.number, child.pid)
            child.kill()

    async def _start(self) -> Spawned | None:
        """Start a child; return None if the system has no room for one now."""
        try:
            with contextlib.nullcontext() if self._sockets is None else self._sockets.for_child() as listening:
                self.child = await Spawned.start(self._assignment, listening, self._on_ask)
        except (OSError, ConfigurationError) as error:
            if not self.was_ready.is_set():
                raise
            logger.error("Process %d cannot be started: %s", self.number, error)
            return None
        if self._leaving.is_set():
            self.child.leave()
        return self.child

    async def _live(self, child: Spawned) -> None:
        """Wait for the end of a child, and say what it means."""
        announcing = asyncio.create_task(self._announce(child))
        try:
            status = await child.ended()
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            self.child = None
        if self._leaving.is_set():
            self._check_leaving(child, status)
        elif not self.was_ready.is_set():
            self._refuse(child, status)
        elif child.refusal is not None:
            logger.error("Process %d cannot start: %s", self.number, child.refusal)
        elif status == 0:
            logger.warning("Process %d (pid %d) has left, and is replaced.", self.number, child.pid)
        else:
            logger.error("Process %d (pid %d) has ended (%s), and is replaced.", self.number, child.pid, fate(status))

    async def _announce(self, child: Spawned) -> None:
        await child.ready.wait()
        self.was_ready.set()
        logger.info("Process %d (pid %d) is ready.", self.number, child.pid)

    def _check_leaving(self, child: Spawned, status: int) -> None:
        """A child that has clients or streams should leave with 0."""
        if status and child.ready.is_set():
            logger.error("Process %d (pid %d) did not leave cleanly (%s).", self.number, child.pid, fate(status))
            raise ChildFailed

    def _refuse(self, child: Spawned, status: int) -> None:
        if child.refusal is not None:
            raise ConfigurationError(child.refusal)
        logger.critical(
            "Process %d (pid %d) has ended during its start (%s), so the command ends.",
            self.number,
            child.pid,
            fate(status),
        )
        raise ChildFailed


def fate(status: int) -> str:
    """Return how a process ended, in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
