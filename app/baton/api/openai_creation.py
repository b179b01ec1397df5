"""How a request to either of OpenAI's two APIs becomes a stream, and is followed in the same request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NoReturn

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request

from ..db.streams import Stream
from ..dialects.protocol import Dialect, Encoded
from ..dialects.responses import response_id
from ..errors import PassingError, StillRunning, UnknownGenerator, UnknownModel
from . import actions, opening
from .models import CreateStream
from .opening import Opening
from .request import AsgiResponse
from .validation import Name, Text, at_most, storable

# Fields about the request itself, which the generator does not get.
_NOT_FOR_GENERATORS: Final = frozenset({"background", "metadata", "store", "stream"})


class Creation(BaseModel):
    """What Baton reads of the body that creates something. The rest is for the generator."""

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    stream: bool | None = False
    metadata: Annotated[dict[Name, Text], at_most(16)] | None = Field(None, max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


async def create(request: Request, wanted: Creation, body: bytes) -> Stream:
    """Queue a stream for a request; its `model` names the generator.

    Raises:
        UnknownModel: no generator has that name.
        CreateRateLimited, IdempotencyConflict, InvalidRequest, TooManyStreams, Unavailable: see `actions.create`.
    """
    given = wanted.model_dump(exclude_unset=True, exclude=set(_NOT_FOR_GENERATORS))
    native = CreateStream(generator=wanted.model, input=given, metadata=dict(wanted.metadata or {}))
    # There is no way to ask a client of OpenAI's to discard what it has.
    new = actions.new_stream(request, native, can_reset=False)
    try:
        stream, _ = await actions.create(request, new, body)
    except UnknownGenerator as error:
        raise UnknownModel(
            f"There is no model called {new.generator!r:.80}.",
            operator=f"{error.operator} BATON_MODELS names models.",
        ) from None
    return stream


async def follow_created(
    request: Request,
    stream: Stream,
    dialect: Dialect[Any],
    begun: Encoded[Any],
    *,
    on_gone: Callable[[], Awaitable[None]] | None = None,
) -> AsgiResponse:
    """Follow the stream that this request created.

    Raises:
        StillRunning: it cannot be followed just now.
    """

    def refuse(error: PassingError) -> NoReturn:
        raise still_running(stream) from error

    begin = Opening(dialect=dialect, begun=begun, on_passing=refuse, on_gone=on_gone)
    return await opening.follow(request, stream.id, begin)


def still_running(stream: Stream) -> StillRunning:
    """Return the error that says where to retrieve the answer."""
    return StillRunning(f"The answer continues, but cannot be sent just now. Retrieve it as {response_id(stream.id)}.")
