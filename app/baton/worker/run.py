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
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..db.postgres import DATA_ERRORS
from ..db.stream_queue import Claim
from ..db.stream_waiting import Began
from ..errors import GENERATOR_FAULT, GenerationError, InvalidEvent
from ..events import encode_object
from ..generators import (
    Approval,
    GenerationRequest,
    Generator,
    SoFar,
    Yielded,
    as_generation_error,
    can_continue,
    stopper,
)
from ..generators.answer_record import AnswerRecord
from ..generators.inbox import Inbox
from ..generators.steps import Steps
from ..observability import traceparent
from ..observability.metrics import Labels, TokenMetrics
from ..outcome import Outcome, Timings
from .feed import Bounds, Feed, Halt
from .inbox import InputRecords
from .outbox import Lost, Outbox
from .past import PastSource
from .repetition import OutputDiffers
from .turns import Turns
from .waiting import Waits

logger = logging.getLogger(__name__)

STUBBORN_SECONDS: Final = 5
# How long an answer that starts over waits for its provider to stop the earlier one.
STOP_EARLIER_SECONDS: Final = 10
_STUCK: Final = ": its generator was stuck"
UNKNOWN: Final = Labels()
_REFUSED: Final = Lost.REJECTED.outcome


def resumes(claim: Claim, tail: int) -> bool:
    """Whether an earlier run may have left something that the generator of this claim can continue."""
    return claim.continues and claim.epoch > 1 and (claim.run > 1 or tail > 0)


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
        metrics: TokenMetrics,
        earlier: PastSource,
        steps: Steps,
        waiting: Waits | None = None,
        inputs: InputRecords | None = None,
        inbox: Inbox | None = None,
        resumes: bool = False,
        labels: Labels = UNKNOWN,
        turns: Turns | None = None,
    ) -> None:
        """`resumes`: an earlier run may have left something that the generator can continue.

        Without `waiting`, the stream cannot wait for inputs. `inbox` is the one of `inputs` by default.
        """
        self.claim = claim
        self.outbox = outbox
        self.steps = steps
        self.inputs = inputs
        self.inbox = inbox or Inbox(inputs)
        self._waiting = waiting
        self.last_event_at = time.monotonic()
        self.started_at = self.last_event_at
        self._generator = generator
        self._earlier = earlier
        self._resumes = resumes
        self.feed = Feed(
            outbox,
            bounds,
            metrics,
            labels,
            started_at=self.started_at,
            saves=can_continue(generator),
            inbox=self.inbox,
        )
        self._turns = turns or Turns()
        self.answer = AnswerRecord()
        self.labels = labels  # in the metrics
        self._stop: Outcome | None = None
        self._abandoned = False
        self._handing_over = False
        self.handed_over = False  # everything is in the log, and the stream waits to be given back
        self._waits_for_database = False
        self.first_token_noted = False  # in the stream's row, before its end
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
                if self._generating.done():
                    self._handing_over = False  # it has ended by itself
            finally:
                await self._stop_generator()
        if self._abandoned:
            return None
        if self._handing_over and self._stop is None:
            await self._finish_handing_over()
            return None
        self.feed.put_rest()
        if self._is_to_wait and await self._leave_to_wait():
            return None
        if self.feed.exceeded is not None:
            self.stop(self.feed.exceeded)
        outcome = dataclasses.replace(self._outcome(), answered_by=self.answer.as_dict())
        if self.outbox.lost is None:
            self.feed.save_with_wait()
            self.outbox.forgets |= self.steps.used or (self.inputs is not None and self.inputs.any)
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
        elif self.silent_seconds > idle_timeout:
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
    def error(self) -> BaseException | None:
        """What the generator has raised, or what is wrong with an event of it; None if nothing is."""
        task = self._generating
        return None if task is None or not task.done() or task.cancelled() else task.exception()

    @property
    def silent_seconds(self) -> float:
        """For how many seconds the generator has yielded nothing.

        It is 0 while the generator waits for the database, for a step, for an input, or for a provider as that provider
        asks. A call of a model that failed counts as an event.
        """
        if self._waits_for_database or self.steps.running or self.inbox.waits or self.answer.waiting:
            return 0.0
        return time.monotonic() - max(
            self.last_event_at, self.steps.ended_at, self.inbox.ended_at, self.answer.active_at
        )

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
        """Stop the generator, unless it has just ended, and let another worker continue the stream.

        The steps that run end first, and no further one begins: the next run would call its function again.
        """
        if not self._over.is_set() and not self._handing_over:
            self._handing_over = True
            self.steps.close(self._over.set)

    async def _finish_handing_over(self) -> None:
        """Write what the generator has yielded. Half a character is left out: the next run yields it whole."""
        await self.outbox.flushed()
        self.handed_over = self.outbox.lost is None

    @property
    def _is_to_wait(self) -> bool:
        """Whether the generator has ended its run to wait for an input."""
        task = self._generating
        # One that ignores its cancellation still runs.
        returned = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return self.feed.wait is not None and self._stop is None and returned

    async def _leave_to_wait(self) -> bool:
        """Write what the generator has yielded, and let the stream wait; return whether it has left this worker."""
        assert self.feed.wait is not None
        assert self._waiting is not None
        await self.outbox.flushed()
        if self._stop is None and self.outbox.lost is None and not self._abandoned:
            try:
                began = await self._waiting.begin(self.outbox, self.feed.wait, self._seen_inputs)
            except DATA_ERRORS as error:
                # Otherwise the stream would be given back as one that never ran, again and again.
                logger.error("The database refused the wait of stream %s: %r", self.claim.stream_id, error)
                assert _REFUSED is not None
                self.stop(_REFUSED)
                return False
            if began is not Began.CANCELLED:
                return True
            self.stop(Outcome.cancelled())
        return self._abandoned

    @property
    def _seen_inputs(self) -> int:
        """How many inputs do not end a wait that begins now: those that the generator has received.

        If an input began this run, the inputs that were there by then are no news either, unless the run has saved a
        state that covers more of them: a generator that ignores its inbox would be called forever.
        """
        received, saved = self.inbox.received, self.feed.saved_inputs
        advanced = saved is not None and saved > self.inbox.began_after
        return received if advanced or self.claim.interruption != "input" else max(received, self.claim.inputs)

    async def _generate(self) -> None:
        self.answer.enter()
        request = await self._first_request()
        try:
            await self._feed(request)
        except OutputDiffers:
            logger.warning(
                "The generator of stream %s repeats itself differently, so the answer starts over.",
                self.claim.stream_id,
            )
            self.feed.start_over("output_differs")
            if self._stop is not None:
                return  # the stream may not start over, and has ended
            await self._stop_earlier(request.state)
            self.steps.restart()
            self.inbox.begin(0)
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
            steps=self.steps,
            inbox=self.inbox,
        )
        if not self._resumes:
            if claim.run > 1 and stopper(self._generator) is not None:
                await self._stop_earlier(await self._earlier.state())
            return request
        with self._waiting_for_database():
            self.outbox.put(encode_object({"type": "resumed", "run": claim.run, "reason": self.outbox.interruption}))
            await self.outbox.flushed()
            found = await self._earlier.read()
        self.outbox.urgent = True  # viewers have been waiting
        self.feed.follow(found)
        self.inbox.begin(found.inputs)
        return dataclasses.replace(request, so_far=found.so_far, state=found.state, state_seq=found.state_seq)

    async def _stop_earlier(self, state: Any) -> None:
        """Stop what an earlier run began at its provider, since this one begins again. A failure is not repeated."""
        stop = stopper(self._generator)
        if stop is None or state is None:
            return
        try:
            async with asyncio.timeout(STOP_EARLIER_SECONDS):
                await stop(state)
        except Exception:
            logger.warning(
                "What an earlier run of stream %s began at its provider could not be stopped.",
                self.claim.stream_id,
                exc_info=True,
            )

    async def _feed(self, request: GenerationRequest) -> None:
        """Put what the generator yields into the outbox.

        Raises:
            OutputDiffers: it repeats itself, and not what the log has.
        """
        events = self._generator(request)
        if not hasattr(events, "aclose"):
            raise InvalidEvent("The generator is not a generator function: it must `yield` its events.")
        turns, take, monotonic = self._turns, self.feed.take, time.monotonic
        async with contextlib.aclosing(events):
            async for item in events:
                now = self.last_event_at = monotonic()
                if now >= turns.look_at and not _is_state(item) and turns.stands(now):
                    await asyncio.sleep(0)
                try:
                    halt = take(item, now)
                except InvalidEvent as error:
                    raise InvalidEvent(f"The value yielded at {_place(events)} is not an event: {error}") from error
                if halt is not None:
                    if self.feed.exceeded is not None:
                        self.stop(self.feed.exceeded)
                        return
                    await self._until_written(halt)
                    if halt is Halt.WAIT:
                        break
        self.feed.end()

    async def _until_written(self, halt: Halt) -> None:
        """Wait for the database. In the meantime the generator does not count as silent.

        Raises:
            InvalidEvent: the stream is to wait for an input, and cannot.
        """
        with self._waiting_for_database():
            await (self.outbox.wait_for_room() if halt is Halt.NO_ROOM else self.outbox.flushed())
            if halt is Halt.WAIT:
                if self._waiting is None:
                    raise InvalidEvent("The stream cannot wait here.")
                await self._waiting.until_allowed()

    @contextlib.contextmanager
    def _waiting_for_database(self) -> Iterator[None]:
        self._waits_for_database = True
        try:
            yield
        finally:
            self.last_event_at = time.monotonic()
            self._waits_for_database = False

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
            return Outcome.completed(self.feed.finish_reason, **rest)
        if isinstance(error, GenerationError):
            if error.operator is not None:
                logger.warning("Stream %s: %s: %s", self.claim.stream_id, error.code, error.operator)
            return Outcome.failed(error.code, error.message, **rest)
        if known := as_generation_error(error, begun=self.feed.tokens > 0, http=False):
            logger.warning(
                "The generator of stream %s raised %s: %s.", self.claim.stream_id, type(error).__qualname__, known.code
            )
            return Outcome.failed(known.code, known.message, **rest)
        logger.error("The generator of stream %s failed.", self.claim.stream_id, exc_info=error)
        return Outcome.failed("generator_error", GENERATOR_FAULT, **rest)

    @property
    def time_to_first_token_seconds(self) -> float | None:
        """From the start of the answer to its first token; None before the first token, or if it is not known."""
        feed = self.feed
        if feed.continued and feed.tokens:
            return self.claim.time_to_first_token_seconds
        return None if feed.first_token_at is None else feed.first_token_at - self.started_at

    def _timings(self) -> Timings:
        earlier = self.claim.elapsed if self.feed.continued else 0.0
        seconds = earlier + time.monotonic() - self.started_at
        return Timings(seconds, self.time_to_first_token_seconds, self.feed.tokens)


def _is_state(item: Yielded) -> bool:
    """Return whether this is a state, which must get into the batch of the event before it."""
    return isinstance(item, Mapping) and item.get("type") == "state"


def _place(events: Any) -> str:
    """Return the file and line of the `yield` at which a generator waits, or at least where it is defined."""
    if place := getattr(events, "place", None):
        return str(place)
    frame = getattr(events, "ag_frame", None)
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
