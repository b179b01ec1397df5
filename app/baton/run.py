"""One claimed stream in a worker: its generator, from the first event to the terminal one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from . import traceparent
from .errors import GenerationError, InvalidEvent
from .events import TOKEN_TYPES, encode_event, encode_text
from .generators import Approval, GenerationRequest, Generator, Yielded
from .metrics import WorkerMetrics
from .outbox import Outbox
from .outcome import Outcome, Timings, numbers_only
from .stream_queue import Claim

logger = logging.getLogger(__name__)

STUBBORN_SECONDS: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """What a stream may hold: the bytes of an event, how many events, and the bytes of all that one run yields."""

    max_event_bytes: int
    max_events: int
    max_bytes: int

    def end_of(self, line: bytes, events: int) -> Outcome:
        """Return the end of a stream that holds too much with this event, its `events`-th."""
        if len(line) > self.max_event_bytes:
            return Outcome.failed("event_too_large", f"An event may have {self.max_event_bytes} bytes at most.")
        if events > self.max_events:
            return Outcome.failed("too_many_events", f"A stream may have {self.max_events} events at most.")
        return Outcome.failed("stream_too_large", f"A stream's events may have {self.max_bytes} bytes together.")


class Run:
    """Feeds a generator's events into an outbox, and ends the stream whatever the generator does.

    `stop(outcome)` ends it early with that outcome; `abandon()` ends it without writing anything.
    """

    def __init__(
        self, claim: Claim, generator: Generator, outbox: Outbox, bounds: Bounds, metrics: WorkerMetrics
    ) -> None:
        self.claim = claim
        self.outbox = outbox
        self.last_event_at = time.monotonic()
        self.started_at = self.last_event_at
        self._generator = generator
        self._bounds = bounds
        self._events = outbox.tail  # a former worker's among them
        self.size_bytes = 0  # of what this run has yielded
        self._metrics = metrics
        self._stop: Outcome | None = None
        self._abandoned = False
        self._held_up = False
        self._finish_reason = "stop"
        self._usage: dict[str, int | float] | None = None
        self._tokens = 0
        self._first_token_at: float | None = None
        self.first_token_noted = False  # in the stream's row, before its end
        self._last_token_at = self.started_at
        self._generating: asyncio.Task[None] | None = None
        self._over = asyncio.Event()  # the generator has returned, or is to stop

    async def run(self) -> Outcome | None:
        """Generate, and wait until the terminal event is in the log; return the outcome, or None if it was lost."""
        if self._stop is None:
            self._generating = asyncio.create_task(self._generate())
            self._generating.add_done_callback(lambda _task: self._over.set())
            try:
                await self._over.wait()
            finally:
                await self._see_generator_off()
        if self._abandoned:
            return None
        outcome = self._outcome()
        if self.outbox.lost is None:
            self.outbox.finish(outcome)
        await self.outbox.closed.wait()
        lost = self.outbox.lost
        return outcome if lost is None or lost.outcome is not None else None

    def enforce(self, *, max_duration: float, idle_timeout: float) -> None:
        """Stop the generator if it ran, or was silent, for longer than the stream, or else this, allows."""
        claim, now = self.claim, time.monotonic()
        max_duration = claim.max_duration or max_duration
        idle_timeout = claim.idle_timeout or idle_timeout
        if claim.elapsed + now - self.started_at > max_duration:
            self.stop(Outcome.failed("max_duration", f"The answer took longer than {max_duration:g} seconds."))
        elif not self._held_up and now - self.last_event_at > idle_timeout:
            self.stop(Outcome.failed("idle_timeout", f"The generator was silent for {idle_timeout:g} seconds."))

    def stop(self, outcome: Outcome) -> None:
        """Cancel the generator and end the stream like this. The first call counts."""
        if self._stop is None:
            self._stop = outcome
            self._over.set()

    def abandon(self) -> None:
        """Cancel the generator and write nothing more: the stream is somebody else's."""
        self._abandoned = True
        self._over.set()

    async def _generate(self) -> None:
        claim = self.claim
        parent = traceparent.current()
        request = GenerationRequest(
            claim.stream_id,
            claim.input,
            claim.metadata,
            claim.attempts,
            None if parent is None else str(parent),
            tuple(Approval(**approval) for approval in claim.approvals),
        )
        events = self._generator(request)
        if not hasattr(events, "aclose"):
            raise InvalidEvent("The generator is not an async generator function: it must `yield` its events.")
        outbox = self.outbox
        async with contextlib.aclosing(events):
            async for item in events:
                line = self._encode(item)
                if line is None:
                    continue
                if not self._admit(line):
                    return
                if not outbox.put(line):
                    # The database is slow, and not the generator silent.
                    self._held_up = True
                    await outbox.wait_for_room()
                    self.last_event_at = time.monotonic()
                    self._held_up = False

    def _admit(self, line: bytes) -> bool:
        """Count an event; if it is one too many, or too large, stop the generator instead."""
        bounds, size = self._bounds, len(line)
        self._events += 1
        self.size_bytes += size
        if size <= bounds.max_event_bytes and self._events <= bounds.max_events and self.size_bytes <= bounds.max_bytes:
            return True
        self.stop(bounds.end_of(line, self._events))
        return False

    def _encode(self, item: Yielded) -> bytes | None:
        """Encode what the generator yielded; None for what makes no event."""
        self.last_event_at = time.monotonic()
        if isinstance(item, str):
            if not item:
                return None
            self._count_token()
            return encode_text(item)
        if not isinstance(item, Mapping):
            raise InvalidEvent(f"A generator yields str or dict, not {type(item).__name__}.")
        return self._encode_mapping(item)

    def _encode_mapping(self, item: Mapping[str, Any]) -> bytes | None:
        kind = item.get("type")
        if kind == "finish":
            self._finish_reason = str(item.get("finish_reason") or "stop")
            return None
        if kind in {"text", "reasoning"} and item.get("delta") == "":
            return None
        line = encode_event(item)
        if kind == "usage":
            self._usage = numbers_only(item)
        elif kind in TOKEN_TYPES:
            self._count_token()
        return line

    def _count_token(self) -> None:
        now = self.last_event_at
        if self._first_token_at is None:
            self._first_token_at = now
            self._metrics.first_token_seconds.observe(now - self.started_at)
        else:
            self._metrics.token_gap_seconds.observe(now - self._last_token_at)
        self._last_token_at = now
        self._tokens += 1

    async def _see_generator_off(self) -> None:
        """Cancel the generator if it still runs; one that will not stop can hold nobody up, and writes nothing more."""
        assert self._generating is not None
        if self._generating.done():
            return
        self._generating.cancel()
        _, pending = await asyncio.wait([self._generating], timeout=STUBBORN_SECONDS)
        if pending:
            logger.error("The generator of stream %s does not stop when it is cancelled.", self.claim.stream_id)

    def _outcome(self) -> Outcome:
        if self._stop is not None:
            return dataclasses.replace(self._stop, usage=self._usage, timings=self._timings())
        rest: dict[str, Any] = {"usage": self._usage, "timings": self._timings()}
        assert self._generating is not None
        if self._generating.cancelled():
            return Outcome.failed("generator_error", "The generator was cancelled from inside.", **rest)
        error = self._generating.exception()
        if error is None:
            return Outcome.completed(self._finish_reason, **rest)
        if isinstance(error, GenerationError):
            return Outcome.failed(error.code, error.message, **rest)
        logger.error("The generator of stream %s failed.", self.claim.stream_id, exc_info=error)
        return Outcome.failed("generator_error", "The generator failed; its worker's log says why.", **rest)

    @property
    def time_to_first_token_seconds(self) -> float | None:
        """From the start of this run to its first token; None before that."""
        return None if self._first_token_at is None else self._first_token_at - self.started_at

    def _timings(self) -> Timings:
        return Timings(time.monotonic() - self.started_at, self.time_to_first_token_seconds, self._tokens)
