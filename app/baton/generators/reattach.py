"""The `openai` generator with `"resume": "reattach"`: an answer is generated in the background, and read again.

The provider generates a Response in background mode whether or not a worker reads it. Its id is saved before the first
event is shown, and after that, at most once a second, the number of the last event that was read. A later run asks the
provider for the events after that number; the runtime drops the ones that are in the log already. So does this run when
its connection breaks. When the provider no longer streams an old Response, it is polled, and its rest comes as a whole.

Leaving the generator closes the connection and nothing else: a successor may be reading the Response already. `stop`
cancels it; the runtime calls that when a stream has ended early. A generation is lost to everybody only if the worker
dies, or the stream is cancelled, between the provider's reply and the commit of the id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..backoff import Backoff
from ..errors import GenerationError
from ..settings import Settings
from .accounts import Account
from .answer_record import current_record
from .openai import ResponsesGenerator
from .protocol import GenerationRequest, Yielded, refuse_approvals
from .provider import SdkStream, cut_off, permitted
from .provider_answer import identity, part
from .resumable_answer import ResumableAnswer

logger = logging.getLogger(__name__)

# Each state is a row of the database.
SAVE_SECONDS: Final = 1.0

# A Response is polled after this many connections in a row without a new event, and given up after as many refusals.
_MOST_BREAKS: Final = 3
_MOST_REFUSALS: Final = 8
_LONGEST_PAUSE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 1.0

# Errors after which the Response may still be generated.
_BREAKS: Final = frozenset({"provider_cut_off", "provider_timeout"})
_LIVE: Final = frozenset({"queued", "in_progress"})

# Statuses of refusals that no repetition changes: the Response is unknown or over, or the key is refused.
_UNKNOWN: Final = frozenset({404, 410})
_OVER: Final = frozenset({400, 404, 409, 410, 422})
_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Whole:
    """A Response that is over, in place of its further events."""

    response: Any


class Reading:
    """How far a background Response was read, and the connection that reads it."""

    def __init__(self) -> None:
        self.answer = ResumableAnswer()
        self.response_id: str | None = None
        self.sequence: int | None = None  # of the last event that was translated
        self.polls = False  # the provider does not stream it any more
        self.breaks = 0  # of connections, since the last new event
        self._pauses = Backoff(cap_seconds=_LONGEST_PAUSE_SECONDS)
        self._stream: SdkStream | None = None
        self._events: AsyncIterator[Any] | None = None
        self._saved_at = time.monotonic()
        self._saved: int | None = None

    @classmethod
    def restored(cls, state: Any) -> Reading | None:
        """Continue as an earlier run's state says; None if it says nothing."""
        if not isinstance(state, Mapping) or not isinstance(state.get("response_id"), str):
            return None
        reading = cls()
        reading.response_id = state["response_id"]
        reading.sequence = reading._saved = state["sequence"]
        reading.answer.restore(state["answer"])
        return reading

    @property
    def stream(self) -> SdkStream:
        """The connection."""
        assert self._stream is not None
        return self._stream

    @property
    def events(self) -> AsyncIterator[Any]:
        """The events of the connection."""
        assert self._events is not None
        return self._events

    def use(self, stream: SdkStream) -> None:
        """Read from a new connection."""
        self._stream, self._events = stream, aiter(stream)

    def next_pause(self) -> float:
        """Count a connection that is opened again; return the seconds to wait before."""
        self.breaks += 1
        return 0.0 if self.breaks == 1 else self._pauses.next_seconds()

    async def close(self) -> None:
        """Close the connection, if there is one. The provider continues to generate."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()

    def identify(self, event: Any) -> bool:
        """Note the Response's id; return whether it was unknown before."""
        if self.response_id is not None:
            return False
        response_id = part(event, "response", "id")
        self.response_id = response_id if isinstance(response_id, str) else None
        return self.response_id is not None

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield the events of a provider's event, and count it as read."""
        if isinstance(event, Whole):
            yield from self.answer.rest(event.response)
            return
        yield from self.answer.translate(event)
        sequence = part(event, "sequence_number")
        # A `keepalive` has a number too, but is no event of the Response.
        if isinstance(sequence, int) and str(part(event, "type")).startswith("response."):
            self.sequence, self.breaks = sequence, 0
            self._pauses.reset()

    @property
    def save_is_due(self) -> bool:
        """Whether there are new events, and the last state is old enough."""
        return (
            self.response_id is not None
            and self.sequence != self._saved
            and time.monotonic() >= self._saved_at + SAVE_SECONDS
        )

    def state(self, base_url: str) -> Yielded:
        """Return the state as of the events that were translated."""
        self._saved_at, self._saved = time.monotonic(), self.sequence
        saved = {
            "base_url": base_url,
            "response_id": self.response_id,
            "sequence": self.sequence,
            "answer": self.answer.save(),
        }
        return {"type": "state", "state": saved}


class ReattachingGenerator(ResponsesGenerator):
    """Asks a model through the Responses API in background mode."""

    continues = True

    @property
    def base_url(self) -> str:
        """The server that knows the ids of its Responses."""
        return str(self.client.base_url)

    def knows(self, state: Any) -> bool:
        """Whether this server has the Response of a state."""
        return isinstance(state, Mapping) and state.get("base_url") == self.base_url

    async def ask(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Join the Response of an earlier run, or begin one, and yield its answer as it comes."""
        refuse_approvals(self.name, request)
        reading = await self._join(request)
        if reading is None:
            reading = await self._begin(request)
        else:
            current_record().identify(response_id=reading.response_id)
            yield {"type": "continue", "after": request.state_seq}
        failure: GenerationError | None = None
        try:
            while (event := await self._read(reading)) is not None:
                if reading.identify(event):
                    self._note(identity(event), reading.stream)
                    yield reading.state(self.base_url)
                for item in reading.translate(event):
                    yield item
                if reading.save_is_due and reading.answer.finish_reason is None:
                    yield reading.state(self.base_url)
        except GenerationError as error:
            failure = error
        finally:
            await reading.close()
        for item in self.conclusion(reading.answer, failure):
            yield item

    async def stop(self, state: Any) -> None:
        """Cancel the Response of a state. One that is over or unknown needs nothing.

        Raises:
            openai.OpenAIError: the provider did not do it, and may do it later.
        """
        if not self.knows(state):
            return
        try:
            await self._responses.cancel(state["response_id"])
        except self.errors.any as error:
            if _status(error) not in _OVER:
                raise

    async def _begin(self, request: GenerationRequest) -> Reading:
        """Ask for a new Response. Background mode needs one that is stored, whatever the client says."""
        body = self.body(permitted(request.input))
        model = self._model(body.pop("model", None))
        reading = Reading()
        reading.use(await self._open(model, {**body, "background": True, "store": True}))
        return reading

    async def _join(self, request: GenerationRequest) -> Reading | None:
        """Open a connection to the Response of an earlier run; None if there is none, or it is unknown by now."""
        reading = Reading.restored(request.state)
        if reading is None or not self.knows(request.state):
            return None
        if await self._connect(reading) and (not reading.polls or await self._retrieve(reading) is not None):
            return reading
        logger.warning("The provider no longer has the Response of an earlier run, so the answer starts over.")
        return None

    async def _read(self, reading: Reading) -> Any:
        """Return the next event; None at the end. After a break it reads on behind the last event."""
        while not reading.polls:
            failure = cut_off()
            try:
                event = await self._next(reading.events, reading.answer)
                if event is not None or reading.answer.finish_reason is not None:
                    return event
            except GenerationError as error:
                if error.code not in _BREAKS:
                    raise
                failure = error
            await reading.close()
            if reading.response_id is None or not await self._connect(reading):
                raise failure
        return None if reading.answer.finish_reason is not None else await self._poll(reading)

    async def _connect(self, reading: Reading) -> bool:
        """Open a connection behind the last event, or find that the Response must be polled; False if it is unknown.

        Raises:
            GenerationError: the provider refuses the key.
        """
        assert reading.response_id is not None
        cursor: Any = {} if reading.sequence is None else {"starting_after": reading.sequence}
        while reading.breaks < _MOST_BREAKS:
            await asyncio.sleep(reading.next_pause())
            try:
                reading.use(await self._responses.retrieve(reading.response_id, stream=True, **cursor))
            except (self.errors.any, self.http.HTTPError, OSError) as error:
                if _status(error) in _UNKNOWN:
                    return False
                if _status(error) in _REFUSED:
                    raise self._refusal(error) from error
                if _status(error) == 400:
                    break
            else:
                return True
        reading.polls = True
        return True

    async def _poll(self, reading: Reading) -> Whole:
        """Wait until the Response is over.

        Raises:
            GenerationError: it is unknown, or the provider cannot be reached.
        """
        backoff = Backoff(cap_seconds=_LONGEST_PAUSE_SECONDS)
        refusals = 0
        while True:
            try:
                response = await self._retrieve(reading)
            except GenerationError:
                refusals += 1
                if refusals >= _MOST_REFUSALS:
                    raise
                await backoff.sleep()
                continue
            if response is None:
                raise cut_off()
            if part(response, "status") not in _LIVE:
                return Whole(response)
            refusals = 0
            await asyncio.sleep(_POLL_SECONDS)

    async def _retrieve(self, reading: Reading) -> Any:
        """Return the Response as it is now; None if it is unknown.

        Raises:
            GenerationError: the provider refuses, or cannot be reached.
        """
        assert reading.response_id is not None
        try:
            return await self._responses.retrieve(reading.response_id)
        except (self.errors.any, self.http.HTTPError, OSError) as error:
            if _status(error) in _UNKNOWN:
                return None
            raise self._refusal(error) from error


def build(settings: Settings, account: Account) -> ReattachingGenerator:
    """Return the generator."""
    return ReattachingGenerator(settings, account)


def _status(error: Exception) -> Any:
    return getattr(error, "status_code", None)
