"""Anthropic's Messages API: create, and get the answer in the same request.

The API has no way to return to a message. Only the same request with the same `Idempotency-Key` gets the same message,
from its beginning.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator
from starlette.requests import Request

from ..codes import status_of_end
from ..db.streams import Stream
from ..dialects.anthropic import MESSAGES, Message, MessagesState, Thinking, message_of, thinking_of
from ..dialects.protocol import Encoded
from ..errors import (
    MessageBatchesNotSupported,
    NotHere,
    RequestError,
    ReservedGenerator,
    StillRunning,
    TokenCountNotSupported,
    Unavailable,
    UnknownModel,
)
from . import problems
from .actions import Content
from .answering import AnswerForm, can_return, follow_or_wait
from .anthropic_errors import ANTHROPIC_ERROR, error_body, request_id_header
from .event_types import MessageEvent
from .following import require_followable, require_staying
from .openai_creation import Creation, create
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, GUARDED, JOINING
from .request import AsgiResponse, json_answer
from .request_body import parse_json, read_body, release_body
from .routing import EVENTS, JSON, AnswerHeader, Parameter, Returns, Routes
from .validation import Items, Name, validated

_ALL_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_BETA: Final = Parameter(
    "anthropic-beta",
    "header",
    "The names of beta features, separated by commas. The generator gets them as `betas`.",
    {"type": "string"},
)
_REQUEST_ID: Final = AnswerHeader("request-id", "The same as `X-Request-Id`, where Anthropic's clients look for it.")


class CreateMessage(Creation):
    """The body of `POST /v1/messages`. All fields but `stream` and the labels are for the generator."""

    kept_back: ClassVar[frozenset[str]] = frozenset({"stream", "metadata"})

    messages: Annotated[Items[dict[str, Any]], Field(min_length=1)]
    betas: Annotated[list[Name], Field(max_length=100)] | None = None

    @field_validator("metadata", mode="before")
    @classmethod
    def _without_nulls(cls, metadata: Any) -> Any:
        """Leave out a user's id that is null, as the API allows."""
        if not isinstance(metadata, dict):
            return metadata
        return {name: value for name, value in metadata.items() if value is not None}

    def given(self) -> dict[str, Any]:
        """Return the input of the stream. Of the metadata it has what is for the model's provider."""
        user = (self.metadata or {}).get("user_id")
        return super().given() | ({} if user is None else {"metadata": {"user_id": user}})


ROUTES: Final = Routes("Anthropic", form=ANTHROPIC_ERROR)


@ROUTES.route(
    "POST",
    "/v1/messages",
    "create",
    {
        200: Returns("The message.", {JSON: Message}, (_REQUEST_ID,)),
        409: Returns("The answer was cancelled."),
        429: Returns("The model provider limits requests."),
        500: Returns("The answer failed."),
    },
    refusals=(*CREATING, *JOINING, UnknownModel, ReservedGenerator, StillRunning),
    body=CreateMessage,
    parameters=(IDEMPOTENCY_KEY, _BETA),
    others={
        '"stream": true': {
            200: Returns("The events of Anthropic's Messages API.", {EVENTS: MessageEvent}, (_REQUEST_ID,)),
        }
    },
)
async def create_message(request: Request) -> AsgiResponse:
    """Create a message, and follow it or wait for it."""
    stream, begun, thinking = await _created(request)
    whole = functools.partial(_answer, thinking)
    unfollowable = _to_be_repeated if can_return(request) else _still_running
    form = AnswerForm(MESSAGES, whole, unfollowable, request_id_header())
    return await follow_or_wait(request, stream, begun, form)


@ROUTES.route(
    "POST",
    "/v1/messages/count_tokens",
    "read",
    {},
    refusals=(*GUARDED, TokenCountNotSupported),
)
async def count_tokens(request: Request) -> AsgiResponse:
    """Refuse to count the tokens of a request: only the model's provider can."""
    raise TokenCountNotSupported(
        "Tokens cannot be counted here: a generator may ask any model. The usage of each message has its tokens."
    )


@ROUTES.route(
    "POST",
    "/v1/messages/batches",
    "read",
    {},
    refusals=(*GUARDED, MessageBatchesNotSupported),
)
@ROUTES.undocumented("/v1/messages/batches{rest:any}", "read", methods=_ALL_METHODS)
async def create_batch(request: Request) -> AsgiResponse:
    """Refuse batches of messages, and all that is below their address."""
    raise MessageBatchesNotSupported("There are no batches of messages here. Send each message by itself.")


@ROUTES.undocumented("/v1/messages{rest:any}", "read", methods=_ALL_METHODS)
async def no_message_here(request: Request) -> AsgiResponse:
    """Answer a path that does not exist in the form that Anthropic's clients show."""
    raise NotHere(f"No route for {request.method:.20} {problems.path_of(request):.200}.")


async def _created(request: Request) -> tuple[Stream, Encoded[MessagesState] | None, Thinking]:
    """Create a stream; return it, how the message begins if the client wants it streamed, and how much it shows.

    On return the request's body can be freed: the wait for the answer may be long.
    """
    body = await read_body(request)
    wanted = validated(CreateMessage, parse_json(body))
    if betas := _betas(request):
        wanted.betas = betas
    (require_followable if wanted.stream else require_staying)(request)
    stream = await create(request, wanted, body)
    release_body(request)
    thinking = thinking_of(wanted.model_extra or {})
    return stream, MESSAGES.begin(stream, thinking) if wanted.stream else None, thinking


def _betas(request: Request) -> list[str]:
    names = ",".join(request.headers.getlist(_BETA.name)).split(",")
    return [name.strip() for name in names if name.strip()]


async def _answer(thinking: Thinking, request: Request, content: Content) -> AsgiResponse:
    stream = content.stream
    if stream.status == "completed":
        message = await asyncio.to_thread(message_of, stream, content.lines, thinking)
        return json_answer(request, message, headers=request_id_header())
    # Baton has retried what can be retried. Another request would be another answer, and another bill.
    code, reason = stream.error_code or "cancelled", stream.error_message or "The answer was cancelled."
    headers = request_id_header() | {"x-should-retry": "false"}
    status = status_of_end(code)
    return json_answer(request, error_body(status, code, reason), status=status, headers=headers)


def _to_be_repeated(stream: Stream) -> RequestError:
    """Return an error after which the SDKs repeat the request by themselves: its key gets the same message."""
    return Unavailable("The answer continues, but cannot be sent just now. Repeat the request with its key.")


def _still_running(stream: Stream) -> RequestError:
    return StillRunning(f"The answer continues, but cannot be sent just now. Retrieve it as the stream {stream.id}.")
