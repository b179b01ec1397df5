"""One claimed stream in a worker: it runs the generator, from the first event to the terminal one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from ..db.stream_queue import Claim
from ..errors import GENERATOR_FAULT, GenerationError, InvalidEvent
from ..events import TOKEN_TYPES, encode_event, encode_text
from ..generators import Approval, GenerationRequest, Generator, Yielded, as_generation_error
from ..observability import traceparent
from ..observability.metrics import Labels, WorkerMetrics
from ..outcome import Outcome, Timings
from .outbox import Outbox
from .surrogate_pairs import SurrogateJoiner
from .tool_calls import ToolCalls
from .turns import Turn, Turns

logger = logging.getLogger(__name__)

STUBBORN_SECONDS: Final = 5
_STUCK: Final = ": its generator was stuck"
UNKNOWN: Final = Labels()


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a stream: bytes in one event, number of events, and bytes that one run may yield."""

    max_event_bytes: int
    max_events: int
    max_bytes: int

    def end_of(self, line: bytes, events: int) -> Outcome:
        """Return the end of a stream that exceeds a bound with this event, its number `events`."""
        if len(line) > self.max_event_bytes:
            return Outcome.failed("event_too_large", "A part of this answer is too large, and the answer was ended.")
        if events > self.max_events:
            return Outcome.failed("too_many_events", "This answer is too long, and was ended.")
        return Outcome.failed("stream_too_large", "This answer is too large, and was ended.")


class Run:
    """Feeds a generator's events into an outbox, and ends the stream whatever the generator does.

    `stop(outcome)` ends it early with that outcome; `abandon()` ends it without writing anything.
    """

    def __init__(
        self,
        claim: Claim,
        generator: Generator,
        outbox: Outbox,
        bounds: Bounds,
        metrics: WorkerMetrics,
        *,
        labels: Labels = UNKNOWN,
        turns: Turns | None = None,
    ) -> None:
        self.claim = claim
        self.outbox = outbox
        self.last_event_at = time.monotonic()
        self.started_at = self.last_event_at
        self._generator = generator
        self._bounds = bounds
        self._calls = ToolCalls()
        self._surrogates = SurrogateJoiner(self._calls)
        self._turn = Turn(turns or Turns())
        self._events = outbox.tail  # including a former worker's
        self.size_bytes = 0  # of what this run has yielded
        self.labels = labels  # in the metrics
        self._time_to_first_token_seconds = metrics.time_to_first_token_seconds.of(*labels)
        self._inter_token_seconds = metrics.inter_token_seconds
        self._stop: Outcome | None = None
        self._abandoned = False
        self._waits_for_room = False
        self._finish_reason = "stop"
        self._tokens = 0
        self._first_token_at: float | None = None
        self.first_token_noted = False  # in the stream's row, before its end
        self._last_token_at = self.started_at
        self.blocked_seconds = 0.0  # of the event loop, by this generator
        self._blocked_until = 0.0  # if that was silence of this stream
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
                await self._stop_generator()
        if self._abandoned:
            return None
        self._put_rest()
        outcome = self._outcome()
        if self.outbox.lost is None:
            self.outbox.finish(outcome)
        await self.outbox.closed.wait()
        lost = self.outbox.lost
        return outcome.billed(self.outbox.bill) if lost is None or lost.outcome is not None else None

    def enforce(self, *, max_duration: float, idle_timeout: float) -> None:
        """Stop the generator if it ran or was silent for too long. The stream's own limits, in seconds, come first."""
        claim, now = self.claim, time.monotonic()
        max_duration = claim.max_duration or max_duration
        idle_timeout = claim.idle_timeout or idle_timeout
        if claim.elapsed + now - self.started_at > max_duration:
            stuck = _STUCK if claim.elapsed + now - self.started_at - self.blocked_seconds <= max_duration else ""
            self.stop(Outcome.failed("max_duration", f"The answer took longer than {max_duration:g} seconds{stuck}."))
        elif not self._waits_for_room and now - self.last_event_at > idle_timeout:
            stuck = _STUCK if self._blocked_until > self.last_event_at else ""
            self.stop(Outcome.failed("idle_timeout", f"Nothing came for {idle_timeout:g} seconds{stuck}. Try again."))

    def note_block(self, seconds: float, *, own: bool) -> None:
        """Note that the event loop was blocked until now: by this run's generator, or by another one.

        What another one has blocked is no silence of this one.
        """
        if own:
            self.blocked_seconds += seconds
            now = time.monotonic()
            self._blocked_until = now if now - self.last_event_at > seconds / 2 else 0.0
        elif not self._waits_for_room:
            self.last_event_at = min(time.monotonic(), self.last_event_at + seconds)

    def has(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether this is the generator's task. Any thread may call this."""
        return task is not None and self._generating is task

    @property
    def silent_seconds(self) -> float:
        """For how many seconds the generator has yielded nothing; 0 while it waits for the database."""
        return 0.0 if self._waits_for_room else time.monotonic() - self.last_event_at

    def stop(self, outcome: Outcome) -> None:
        """Cancel the generator and end the stream with this outcome. Only the first call counts."""
        if self._stop is None:
            self._stop = outcome
            self._over.set()

    def abandon(self) -> None:
        """Cancel the generator and write nothing more: another worker has the stream."""
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
            raise InvalidEvent("The generator is not a generator function: it must `yield` its events.")
        outbox = self.outbox
        async with contextlib.aclosing(events):
            async for item in events:
                now = self.last_event_at = time.monotonic()
                if now >= self._turn.look_at and not _is_state(item) and self._turn.is_kept(now):
                    await asyncio.sleep(0)
                for whole in self._surrogates.join(item):
                    try:
                        line = self._encode(whole)
                    except InvalidEvent as error:
                        raise InvalidEvent(f"The value yielded at {_place(events)} is not an event: {error}") from error
                    if line is None:
                        continue
                    if not self._admit(line):
                        return
                    if not outbox.put(line):
                        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        """Wait for a slow database. In the meantime the generator does not count as silent."""
        self._waits_for_room = True
        await self.outbox.wait_for_room()
        self.last_event_at = time.monotonic()
        self._waits_for_room = False

    def _put_rest(self) -> None:
        """Write replacements for the characters that the generator did not complete."""
        for item in self._surrogates.rest():
            # The tool call that a surrogate belongs to may have been refused.
            with contextlib.suppress(InvalidEvent):
                line = self._encode(item)
                if line is not None and self._admit(line):
                    self.outbox.put(line)

    def _admit(self, line: bytes) -> bool:
        """Count an event and return True, or stop the generator if the event exceeds a bound."""
        bounds, size = self._bounds, len(line)
        self._events += 1
        self.size_bytes += size
        if size <= bounds.max_event_bytes and self._events <= bounds.max_events and self.size_bytes <= bounds.max_bytes:
            return True
        self.stop(bounds.end_of(line, self._events))
        return False

    def _encode(self, item: Yielded) -> bytes | None:
        """Encode what the generator yielded; return None if it makes no event."""
        if isinstance(item, str):
            if not item:
                return None
            self._count_token()
            return encode_text(item)
        if not isinstance(item, Mapping):
            raise InvalidEvent(f"A generator must yield str or dict, not {type(item).__name__}.")
        return self._encode_mapping(item)

    def _encode_mapping(self, item: Mapping[str, Any]) -> bytes | None:
        kind = item.get("type")
        if kind == "finish":
            self._finish_reason = _finish_reason(item)
            return None
        if kind in {"text", "reasoning"} and item.get("delta") == "":
            return None
        line = encode_event(item)
        if kind == "usage":
            self.outbox.bill.add(item)
        elif kind in TOKEN_TYPES:
            if kind == "tool_call":
                self._calls.note(item)
            self._count_token()
        return line

    def _count_token(self) -> None:
        now = self.last_event_at
        if self._first_token_at is None:
            self._first_token_at = now
            self._time_to_first_token_seconds.observe(now - self.started_at)
        else:
            self._inter_token_seconds.observe(now - self._last_token_at)
        self._last_token_at = now
        self._tokens += 1

    async def _stop_generator(self) -> None:
        """Cancel the generator if it still runs. If it does not stop in time, it is ignored from then on."""
        assert self._generating is not None
        if self._generating.done():
            return
        self._generating.cancel()
        _, pending = await asyncio.wait([self._generating], timeout=STUBBORN_SECONDS)
        if pending:
            logger.error(
                "The generator %r of stream %s does not stop when it is cancelled.",
                self.claim.generator,
                self.claim.stream_id,
            )

    def _outcome(self) -> Outcome:
        if self._stop is not None:
            return dataclasses.replace(self._stop, timings=self._timings())
        rest: dict[str, Any] = {"timings": self._timings()}
        assert self._generating is not None
        if self._generating.cancelled():
            logger.error("The generator of stream %s was cancelled from inside.", self.claim.stream_id)
            return Outcome.failed("generator_error", GENERATOR_FAULT, **rest)
        error = self._generating.exception()
        if error is None:
            return Outcome.completed(self._finish_reason, **rest)
        if isinstance(error, GenerationError):
            if error.operator is not None:
                logger.warning("Stream %s: %s: %s", self.claim.stream_id, error.code, error.operator)
            return Outcome.failed(error.code, error.message, **rest)
        if known := as_generation_error(error, begun=self._tokens > 0, http=False):
            logger.warning(
                "The generator of stream %s raised %s: %s.", self.claim.stream_id, type(error).__qualname__, known.code
            )
            return Outcome.failed(known.code, known.message, **rest)
        logger.error("The generator of stream %s failed.", self.claim.stream_id, exc_info=error)
        return Outcome.failed("generator_error", GENERATOR_FAULT, **rest)

    @property
    def time_to_first_token_seconds(self) -> float | None:
        """From the start of this run to its first token; None before the first token."""
        return None if self._first_token_at is None else self._first_token_at - self.started_at

    def _timings(self) -> Timings:
        return Timings(time.monotonic() - self.started_at, self.time_to_first_token_seconds, self._tokens)


def _is_state(item: Yielded) -> bool:
    """Return whether this is a state, which must get into the batch of the event before it."""
    return isinstance(item, Mapping) and item.get("type") == "state"


def _finish_reason(item: Mapping[str, Any]) -> str:
    """Return why the model stopped, in lower case. Some providers use capitals.

    Raises:
        InvalidEvent: it is not a string.
    """
    reason = item.get("finish_reason")
    if not isinstance(reason, str | None):
        raise InvalidEvent(f"A finish event's 'finish_reason' must be a string, not {type(reason).__name__}.")
    return (reason or "stop").lower()


def _place(events: Any) -> str:
    """Return the file and line of the `yield` at which a generator waits, or at least where it is defined."""
    if place := getattr(events, "place", None):
        return str(place)
    frame = getattr(events, "ag_frame", None)
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
