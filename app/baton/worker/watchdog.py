"""Notices that a generator blocks the worker's event loop, and names it.

It asks the loop to answer, several times a second. If no answer comes for longer than a second, it logs the generator,
the stream and the stack, once; and once more when the loop runs again. Everything runs in the side thread, unless its
docstring says otherwise.

Time in which this thread did not run either is not counted: the process was stopped, or C code held the GIL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..observability import log_context
from ..observability.metrics import WorkerMetrics
from .run import Run
from .side_thread import Owner

logger = logging.getLogger(__name__)

BLOCKED_SECONDS: Final = 1.0
TICK_SECONDS: Final = 0.25


@dataclass(slots=True)
class Block:
    """A time in which the loop does not answer. `run` is that of the generator which blocks it, if that is known."""

    run: Run | None
    seconds: float

    @property
    def generator(self) -> str:
        """The generator's name, as a label of metrics."""
        return self.run.labels.generator if self.run is not None else ""

    @property
    def culprit(self) -> str:
        """The generator and its stream, for the log."""
        if self.run is None:
            return "by something other than a generator"
        return f"by the generator {self.run.claim.generator!r} of stream {self.run.claim.stream_id}"


class Watchdog:
    """Watches the event loop of a worker process. `runs` returns its streams, in any thread."""

    def __init__(
        self,
        runs: Callable[[], Sequence[Run]],
        metrics: WorkerMetrics,
        *,
        hang_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = runs
        self._metrics = metrics
        self._hang_seconds = hang_seconds
        self._clock = clock
        self._asked_at = self._answered_at = clock()
        self._answered = True
        self._silent_seconds = 0.0  # since the loop was asked
        self._block: Block | None = None
        self._hangs = False

    @property
    def hangs(self) -> bool:
        """Whether the loop has been blocked for so long that the worker gives up its streams. For any thread."""
        return self._hangs

    @property
    def is_late(self) -> bool:
        """Whether the loop has just been blocked: then silence proves nothing. For the worker's loop."""
        return self._clock() - self._answered_at > BLOCKED_SECONDS

    async def run(self, owner: Owner) -> None:
        """Watch until cancelled."""
        before = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            self.tick(owner, now, min(now - before, 2 * TICK_SECONDS))
            before = now

    def tick(self, owner: Owner, now: float, ran_seconds: float) -> None:
        """Look for an answer, after this thread has run for `ran_seconds`."""
        if self._answered:
            self._end()
            self._silent_seconds = 0.0
            self._asked_at, self._answered = now, False
            owner.call(self._answer, now)
            return
        self._silent_seconds += ran_seconds
        if self._block is not None:
            self._count(self._block, ran_seconds)
        elif self._silent_seconds > BLOCKED_SECONDS:
            self._begin(owner)
        if self._silent_seconds > self._hang_seconds and not self._hangs:
            self._hangs = True
            culprit = self._block.culprit if self._block is not None else ""
            logger.error(
                "The event loop has been blocked for %.1f s %s. This worker gives up its streams: "
                "other workers take them over once its lease has ended.",
                self._silent_seconds,
                culprit,
            )

    def _answer(self, asked_at: float) -> None:
        """Answer, and keep the block out of the silence of all other streams. Runs on the worker's loop."""
        now = self._answered_at = self._clock()
        block = self._block
        if block is not None:
            for run in self._runs():
                run.note_block(now - asked_at, own=run is block.run)
        self._answered = True

    def _begin(self, owner: Owner) -> None:
        run = self._run_of(owner.task())
        block = self._block = Block(run, 0.0)
        self._count(block, self._silent_seconds)
        logger.warning(
            "The event loop has been blocked for %.1f s %s, and all streams of this worker wait. "
            "Await what takes long, or define the generator with `def`: then it runs in a thread. The stack is:\n%s",
            self._silent_seconds,
            block.culprit,
            owner.stack(),
            extra=_fields(block),
        )

    def _end(self) -> None:
        block, self._block, self._hangs = self._block, None, False
        if block is None:
            return
        seconds = self._answered_at - self._asked_at
        self._count(block, max(0.0, seconds - block.seconds))
        logger.warning(
            "The event loop runs again. It was blocked for %.1f s %s.", seconds, block.culprit, extra=_fields(block)
        )

    def _count(self, block: Block, seconds: float) -> None:
        block.seconds += seconds
        self._metrics.loop_blocked_seconds.add(block.generator, count=seconds)

    def _run_of(self, task: asyncio.Task[Any] | None) -> Run | None:
        """Return the run that a task works for: its generator's task, or one that the generator has started."""
        runs = self._runs()
        for run in runs:
            if run.has(task):
                return run
        stream_id = log_context.stream_of(task)
        return next((run for run in runs if run.claim.stream_id == stream_id), None)


def _fields(block: Block) -> dict[str, str]:
    return log_context.fields_of(block.run.claim.stream_id) if block.run is not None else {}
