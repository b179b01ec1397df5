"""How a request to either of OpenAI's two APIs, or to Anthropic's, becomes a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request

from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..dialects.responses import response_id
from ..errors import (
    AnswerRunning,
    IdempotencyConflict,
    StillRunning,
    UnknownGenerator,
    UnknownModel,
)
from . import actions
from .aisdk_conversations import beside_input
from .models import CreateStream
from .request import idempotency_key
from .responses_conversations import Past, items_of
from .validation import Name, Text, at_most, storable


class Creation(BaseModel):
    """What Baton reads of the body that creates something. The rest is for the generator."""

    model_config = ConfigDict(extra="allow")
    # Fields about the request itself, which the generator does not get.
    kept_back: ClassVar[frozenset[str]] = frozenset({"background", "metadata", "store", "stream"})

    model: Name | None = None
    stream: bool | None = False
    metadata: Annotated[dict[Name, Text], at_most(16)] | None = Field(None, max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)

    def given(self) -> dict[str, Any]:
        """Return the input of the stream: all but the fields about the request itself."""
        return self.model_dump(exclude_unset=True, exclude=set(self.kept_back))


async def create(request: Request, wanted: Creation, body: bytes, past: Past | None = None) -> Stream:
    """Queue a stream for a request; its `model` names the generator. `past` is the conversation that it continues.

    Raises:
        AnswerRunning: another request continued the conversation first.
        UnknownModel: no generator has that name.
        CreateRateLimited, IdempotencyConflict, InvalidRequest, TooManyStreams, Unavailable: see `actions.create`.
    """
    given = wanted.given()
    metadata: dict[str, Any] = dict(wanted.metadata or {})
    beside = None if past is None else past.beside
    if past is not None:
        given["input"] = [*past.items, *items_of(given["input"])] if past.items else given["input"]
        metadata = ({} if past.chat is None else {"chat": past.chat}) | metadata
    elif "chat" in metadata:
        # These requests hold the whole conversation.
        beside = beside_input(())
    native = CreateStream(generator=wanted.model, input=given, metadata=metadata)
    # There is no way to ask a client of these APIs to discard what it has.
    new = actions.new_stream(request, native, can_reset=False, continuation=beside)
    own = idempotency_key(request, body)
    key = None if past is None or past.key is None else _keys(own, past.key)
    try:
        stream, _ = await actions.create(request, new, body, key)
    except IdempotencyConflict:
        if key is None or own is not None:
            raise
        raise AnswerRunning(key.conflict) from None
    except UnknownGenerator as error:
        raise UnknownModel(
            f"There is no model called {new.generator!r:.80}.",
            operator=f"{error.operator} BATON_MODELS names models.",
        ) from None
    return stream


def still_running(stream: Stream) -> StillRunning:
    """Return the error that says where to retrieve the answer."""
    return StillRunning(f"The answer continues, but cannot be sent just now. Retrieve it as {response_id(stream.id)}.")


def _keys(own: IdempotencyKey | None, successor: IdempotencyKey) -> IdempotencyKey:
    """Return the key of a stream that continues a chat; the client's own key, if it has sent one, names it too."""
    other = "Another request continued this conversation at the same time. Wait for its answer."
    if own is None:
        return replace(successor, conflict=other)
    return replace(own, also=(successor.key,), conflict=f"{own.conflict} Or: {other}")
