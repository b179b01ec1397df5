"""One claimed stream in a worker: it runs the generator, from the first event to the terminal one.

A run that may continue an earlier one appends `resumed`, reads what is there (`past`), and lets the generator continue,
repeat itself, or start the answer over.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from ..db.stream_queue import Claim
from ..errors import GENERATOR_FAULT, GenerationError, InvalidEvent
from ..events import TOKEN_TYPES, encode_event, encode_object, encode_text
from ..generators import Approval, GenerationRequest, Generator, SoFar, Yielded, as_generation_error, can_continue
from ..observability import traceparent
from ..observability.metrics import Labels, WorkerMetrics
from ..outcome import Outcome, Timings
from . import past
from .outbox import Outbox
from .past import OutputDiffers, Past, Repetition
from .records import Records
from .surrogate_pairs import SurrogateJoiner
from .tool_calls import ToolCalls
from .turns import Turn, Turns

logger = logging.getLogger(__name__)

STUBBORN_SECONDS: Final = 5
_STUCK: Final = ": its generator was stuck"
UNKNOWN: Final = Labels()


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a stream: bytes in one event, number of events, bytes of all of them, and bytes in one state."""

    max_event_bytes: int
    max_events: int
    max_bytes: int
    max_state_bytes: int

    def end_of(self, line: bytes, events: int) -> Outcome:
        """Return the end of a stream that exceeds a bound with this event, its number `events`."""
        if len(line) > self.max_event_bytes:
            return Outcome.failed("event_too_large", "A part of this answer is too large, and the answer was ended.")
        if events > self.max_events:
            return Outcome.failed("too_many_events", "This answer is too long, and was ended.")
        return Outcome.failed("stream_too_large", "This answer is too large, and was ended.")


class Run:
    """Feeds a generator's events into an outbox, and ends the stream whatever the generator does.

    `stop(outcome)` ends it early with that outcome; `abandon()` ends it without writing anything; `hand_over()` ends it
    after everything that was yielded is in the log, for another worker to continue.
    """

    def __init__(
        self,
        claim: Claim,
        generator: Generator,
        outbox: Outbox,
        bounds: Bounds,
        *,
        metrics: WorkerMetrics,
        records: Records,
        resumes: bool = False,
        labels: Labels = UNKNOWN,
        turns: Turns | None = None,
    ) -> None:
        """`resumes`: an earlier run may have left something that the generator can continue."""
        self.claim = claim
        self.outbox = outbox
        self.last_event_at = time.monotonic()
        self.started_at = self.last_event_at
        self._generator = generator
        self._bounds = bounds
        self._records = records
        self._resumes = resumes
        self._past: Past | None = None  # what the generator may continue, until it has said whether it does
        self._continued = False
        self._repetition: Repetition | None = None
        self._yielded = False  # this run has put an event into the outbox
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
        self._handing_over = False
        self.handed_over = False  # everything is in the log, and the stream waits to be given back
        self._waits_for_database = False
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
        if self._handing_over and self._stop is None:
            await self._finish_handing_over()
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
        elif not self._waits_for_database and now - self.last_event_at > idle_timeout:
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
        elif not self._waits_for_database:
            self.last_event_at = min(time.monotonic(), self.last_event_at + seconds)

    def has(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether this is the generator's task. Any thread may call this."""
        return task is not None and self._generating is task

    @property
    def silent_seconds(self) -> float:
        """For how many seconds the generator has yielded nothing; 0 while it waits for the database."""
        return 0.0 if self._waits_for_database else time.monotonic() - self.last_event_at

    def stop(self, outcome: Outcome) -> None:
        """Cancel the generator and end the stream with this outcome. Only the first call counts."""
        if self._stop is None:
            self._stop = outcome
            self._over.set()

    def abandon(self) -> None:
        """Cancel the generator and write nothing more: another worker has the stream."""
        self._abandoned = True
        self._over.set()

    def hand_over(self) -> None:
        """Stop the generator, unless it has just ended, and let another worker continue the stream."""
        if not self._over.is_set():
            self._handing_over = True
            self._over.set()

    async def _finish_handing_over(self) -> None:
        """Write what the generator has yielded. Half a character is left out: the next run yields it whole."""
        await self.outbox.flushed()
        self.handed_over = self.outbox.lost is None

    async def _generate(self) -> None:
        request = await self._first_request()
        try:
            await self._feed(request)
        except OutputDiffers:
            logger.warning(
                "The generator of stream %s repeats itself differently, so the answer starts over.",
                self.claim.stream_id,
            )
            self._start_over("output_differs")
            await self._feed(dataclasses.replace(request, so_far=SoFar(), state=None, state_seq=0))

    async def _first_request(self) -> GenerationRequest:
        """Return the request for the generator, with what earlier runs left if it can continue that."""
        claim = self.claim
        parent = traceparent.current()
        request = GenerationRequest(
            claim.stream_id,
            claim.input,
            claim.metadata,
            claim.attempts,
            None if parent is None else str(parent),
            tuple(Approval(**approval) for approval in claim.approvals),
            claim.run,
            claim.tenant,
        )
        if not self._resumes:
            return request
        with self._waiting_for_database():
            self.outbox.put(encode_object({"type": "resumed", "run": claim.run, "reason": self.outbox.interruption}))
            await self.outbox.flushed()
            found = await self._records.run(lambda connection: past.read(connection, claim.stream_id))
        self.outbox.urgent = True  # viewers have been waiting
        self._past, self._events = found, self.outbox.tail
        return dataclasses.replace(request, so_far=found.so_far, state=found.state, state_seq=found.state_seq)

    async def _feed(self, request: GenerationRequest) -> None:
        """Put what the generator yields into the outbox.

        Raises:
            OutputDiffers: it repeats itself, and not what the log has.
        """
        events = self._generator(request)
        if not hasattr(events, "aclose"):
            raise InvalidEvent("The generator is not a generator function: it must `yield` its events.")
        async with contextlib.aclosing(events):
            async for item in events:
                now = self.last_event_at = time.monotonic()
                if now >= self._turn.look_at and not _is_state(item) and self._turn.is_kept(now):
                    await asyncio.sleep(0)
                if wait := self._take(item, events):
                    await wait()
                if self._stop is not None:
                    return
        self._ended()

    def _take(self, item: Yielded, events: object) -> Callable[[], Awaitable[None]] | None:
        """Put what the generator yielded into the outbox; return what must be awaited before it continues, if anything.

        Raises:
            InvalidEvent: it is not an event.
            OutputDiffers: it repeats itself, and not what the log has.
        """
        wait = None
        try:
            if self._past is not None and self._continues_with(item):
                return None
            for whole in self._surrogates.join(item):
                line = self._encode(whole)
                if line is None:
                    if self.outbox.saves and not self._yielded:
                        wait = self._wait_for_state
                elif self._admit(line):
                    self._yielded = True
                    if not self.outbox.put(line):
                        wait = self._wait_for_room
        except InvalidEvent as error:
            raise InvalidEvent(f"The value yielded at {_place(events)} is not an event: {error}") from error
        return wait

    async def _wait_for_room(self) -> None:
        """Wait for a slow database. In the meantime the generator does not count as silent."""
        with self._waiting_for_database():
            await self.outbox.wait_for_room()

    async def _wait_for_state(self) -> None:
        """Wait until a state is saved that comes before the first event."""
        with self._waiting_for_database():
            await self.outbox.flushed()

    @contextlib.contextmanager
    def _waiting_for_database(self) -> Iterator[None]:
        self._waits_for_database = True
        try:
            yield
        finally:
            self.last_event_at = time.monotonic()
            self._waits_for_database = False

    def _continues_with(self, item: Yielded) -> bool:
        """Continue an earlier run if this first item says so, else start the answer over; return whether it says so."""
        found, self._past = self._past, None
        assert found is not None
        if not isinstance(item, Mapping) or item.get("type") != "continue":
            if not found.empty:
                self._start_over(self.outbox.interruption)
            return False
        after = item.get("after")
        if isinstance(after, bool) or not isinstance(after, int) or not found.state_seq <= after <= found.so_far.seq:
            raise InvalidEvent(
                f"A continue event's 'after' must be a number from {found.state_seq} to {found.so_far.seq}, "
                f"not {after!r:.80}."
            )
        repetition = Repetition(found.after(after))
        self._repetition = None if repetition.complete else repetition
        for event in found.calls:
            self._calls.note(event)
        self._continued = True
        self._tokens, self.size_bytes = found.tokens, found.size_bytes
        return True

    def _start_over(self, reason: str) -> None:
        """Make viewers discard what earlier runs yielded, and forget it here."""
        self._past = self._repetition = None
        self._calls = ToolCalls()
        self._surrogates = SurrogateJoiner(self._calls)
        self._finish_reason = "stop"
        self._continued, self._tokens, self.size_bytes = False, 0, 0
        self.outbox.reset(reason)

    def _ended(self) -> None:
        """Handle a generator that has ended, perhaps before it yielded anything or repeated everything.

        Raises:
            OutputDiffers: it has repeated only a part.
        """
        if self._repetition is not None:
            raise OutputDiffers
        if self._past is not None and not self._past.empty:
            self._start_over(self.outbox.interruption)

    def _put_rest(self) -> None:
        """Write replacements for the characters that the generator did not complete."""
        if self._repetition is not None:
            return  # the log has them
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
        """Encode what the generator yielded; return None if it makes no event.

        Raises:
            InvalidEvent: it is not an event.
            OutputDiffers: it repeats itself, and not what the log has.
        """
        if self._repetition is not None:
            new = self._unrepeated(item, self._repetition)
            if new is None:
                return None
            item = new
        if isinstance(item, str):
            if not item:
                return None
            self._count_token()
            return encode_text(item)
        if not isinstance(item, Mapping):
            raise InvalidEvent(f"A generator must yield str or dict, not {type(item).__name__}.")
        return self._encode_mapping(item)

    def _unrepeated(self, item: Yielded, repetition: Repetition) -> Yielded | None:
        """Return what is new in an item of a generator that repeats itself. Its states are as of what it repeats."""
        if isinstance(item, Mapping):
            kind = item.get("type")
            if kind in {"finish", "state"}:
                return item if kind == "finish" else None
            encode_event(item)
        elif not isinstance(item, str):
            return item
        new = repetition.strip(item)
        if repetition.complete:
            self._repetition = None
        return new

    def _save(self, item: Mapping[str, Any]) -> None:
        """Save a state.

        Raises:
            InvalidEvent: it is not JSON, is too large, or the generator does not say that it can continue.
        """
        if not can_continue(self._generator):
            raise InvalidEvent("Only a generator that is marked with @baton.continues may save a state.")
        if "state" not in item:
            raise InvalidEvent("A state needs 'state', any JSON.")
        content = encode_object(item["state"])
        if len(content) > self._bounds.max_state_bytes:
            raise InvalidEvent(
                f"The state has {len(content)} bytes, and BATON_MAX_STATE_BYTES allows {self._bounds.max_state_bytes}."
            )
        if self.claim.continues or self.outbox.stop_with is not None:
            self.outbox.save(content)

    def _encode_mapping(self, item: Mapping[str, Any]) -> bytes | None:
        kind = item.get("type")
        if kind == "finish":
            self._finish_reason = _finish_reason(item)
            return None
        if kind == "state":
            self._save(item)
            return None
        if kind == "continue" and item.get("after") == 0 and not self._yielded:
            return None  # there is nothing to continue, and it starts from nothing
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
            if not self._continued:
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
        """From the start of the answer to its first token; None before the first token, or if it is not known."""
        if self._continued and self._tokens:
            return self.claim.time_to_first_token_seconds
        return None if self._first_token_at is None else self._first_token_at - self.started_at

    def _timings(self) -> Timings:
        earlier = self.claim.elapsed if self._continued else 0.0
        return Timings(earlier + time.monotonic() - self.started_at, self.time_to_first_token_seconds, self._tokens)


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
