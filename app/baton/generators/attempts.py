"""Asks models one after the other until one answers.

A call that fails before its first event is repeated, as the provider asks, and then the next model is asked. Nothing is
repeated once an event was yielded, because clients have seen it. A cancellation ends a wait at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from ..errors import GenerationError
from ..observability import tracing
from .answer_record import Answerer, FailedCall, current_record
from .concurrency import Concurrency
from .protocol import GenerationRequest, Yielded
from .remedies import Remedy, remedy_of
from .requested_model import RequestedModel
from .sdk_errors import request_id, status_of, wait_seconds

logger = logging.getLogger(__name__)

# Without a provider's wish, the first pause is up to this long, and each further one up to twice as long.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 8.0
# A pause that the provider asks for is longer by up to this share, so that not all streams return at one moment.
_SPREAD: Final = 0.1

Ask = Callable[[GenerationRequest], AsyncGenerator[Yielded, None]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer: the name that Baton knows it by, and one call of it with a request of its own."""

    name: str
    asked: RequestedModel
    ask: Ask
    request: GenerationRequest
    concurrency: Concurrency


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a model is asked again, and for how long after the first request of a stream."""

    max_retries: int
    max_wait_seconds: float
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


async def answer(candidates: Sequence[Candidate], patience: Patience) -> AsyncGenerator[Yielded, None]:
    """Yield the answer of the first candidate that gives one.

    Raises:
        GenerationError: the last call failed, or one did against which no other call helps.
    """
    attempts = _Attempts(patience)
    for following, candidate in enumerate(candidates, 1):
        async with candidate.concurrency.place():
            events = await attempts.begin(candidate, is_last=following == len(candidates))
            if events is not None:
                async with aclosing(events):
                    for item in attempts.held_back:
                        yield item
                    async for item in events:
                        yield item
                return
        if not attempts.may_continue:
            break
    for item in attempts.held_back:
        yield item
    raise attempts.failure


class _Attempts:
    """The calls before an answer begins."""

    def __init__(self, patience: Patience) -> None:
        self.held_back: list[Yielded] = []  # the usage of failed calls, which the provider bills, and the first event
        self.failure: GenerationError = GenerationError("provider_error", "No model was asked.")
        self.may_continue = False  # with the next candidate
        self._patience = patience
        self._record = current_record()
        self._deadline = math.inf  # for further calls of a model that was asked already

    async def begin(self, candidate: Candidate, *, is_last: bool) -> AsyncGenerator[Yielded, None] | None:
        """Ask a candidate until its answer begins; return the rest of it, or None if it does not begin."""
        self._deadline = min(self._deadline, self._patience.clock() + self._patience.max_wait_seconds)
        for retries in itertools.count():
            events = candidate.ask(candidate.request)
            try:
                await self._hold_back_first(events)
            except GenerationError as error:
                self.failure = error
            else:
                self._note_answer(candidate)
                return events
            remedy = remedy_of(self.failure)
            pause = self._pause(retries) if remedy is Remedy.RETRY else None
            if pause is None:
                self.may_continue = remedy is not Remedy.NONE and not is_last
                self._note_failure(candidate, "fallback" if self.may_continue else "fail")
                return None
            self._note_failure(candidate, "retry", pause)
            with self._record.wait():
                await self._patience.sleep(pause)
        return None

    async def _hold_back_first(self, events: AsyncGenerator[Yielded, None]) -> None:
        """Wait for the first event that clients would see, and hold back all until then. `continue` must come first."""
        async for item in events:
            kind = item.get("type") if isinstance(item, Mapping) else "text"
            self.held_back.insert(0 if kind == "continue" else len(self.held_back), item)
            if kind != "usage":
                return

    def _pause(self, retries: int) -> float | None:
        """Return the seconds to wait before the model is asked again; None if it is not."""
        if retries >= self._patience.max_retries:
            return None
        if asked := wait_seconds(self.failure.__cause__):
            seconds = asked * (1 + random.uniform(0, _SPREAD))
        else:
            seconds = random.uniform(0.5, 1) * min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**retries)
        return seconds if self._patience.clock() + seconds <= self._deadline else None

    def _note_answer(self, candidate: Candidate) -> None:
        asked = candidate.asked
        self._record.answered(Answerer(candidate.name, asked.provider or "", asked.model))
        if self._record.failed_calls:
            tracing.note({"baton.answered_by": candidate.name, "gen_ai.provider.name": asked.provider})

    def _note_failure(self, candidate: Candidate, then: str, pause: float = 0.0) -> None:
        """Note a failed call in the record, the trace and the log, without the provider's own words."""
        code, cause = self.failure.code, self.failure.__cause__
        status = None if cause is None else status_of(cause)
        call = FailedCall(candidate.name, candidate.asked.model, code, status, request_id(cause), then, pause)
        self._record.failed(call)
        tracing.note_event("provider call failed", {f"baton.{name}": value for name, value in call.as_dict().items()})
        _log(call)


def _log(call: FailedCall) -> None:
    """Log a failed call after which another one follows. If none does, the stream's end is logged."""
    if call.then == "fail":
        return
    # A refused key is the operator's to repair, and no stream fails to show it.
    level = logging.ERROR if call.code == "provider_auth_failed" else logging.WARNING
    known = f"{call.code}, status {call.status}" if call.status else call.code
    again = f"It is asked again after {call.waited_seconds:.1f} seconds"
    following = again if call.then == "retry" else "The next one is asked"
    logger.log(level, "The model %r did not answer (%s). %s.", call.name, known, following)
