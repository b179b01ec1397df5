"""OpenAI's Responses API: create, retrieve, follow, cancel, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator
from starlette.requests import Request
from typing_extensions import TypedDict

from ..db import streams
from ..db.streams import Stream
from ..dialects.protocol import Encoded
from ..dialects.responses import RESPONSES, response_id, response_of
from ..dialects.responses_writer import ResponseState
from ..errors import (
    AnswerRunning,
    ConversationGone,
    InvalidRequest,
    PassingError,
    PreviousResponseNotFound,
    RequestMemoryFull,
    ReservedGenerator,
    StillRunning,
    UnknownModel,
)
from ..events import STREAM_ID
from . import actions, opening
from .answering import follow_created
from .event_types import ResponseEvent
from .following import require_followable, require_staying, wait_for_end
from .openai_creation import Creation, create, still_running
from .openai_errors import OPENAI_ERROR
from .opening import Opening
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, FOLLOWING, JOINING, STREAM, WHOLE
from .request import AsgiResponse, found, in_time, json_answer, parse_stream_id, pool_of, query_of
from .request_body import parse_json, read_body, read_input, release_body
from .responses_conversations import PREVIOUS, Past, after_conversation, after_response, items_of
from .routing import EVENTS, JSON, Returns, Routes
from .validation import validated

# How long a cancel waits for the generator, so that its answer can say that it has stopped.
_CANCEL_SECONDS: Final = 5

_EVENTS: Final = "The events of OpenAI's Responses API."
_INPUT: Final = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "object", "additionalProperties": True}, "minItems": 1},
    ]
}


ConversationId = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00]*$")]


class ConversationParam(BaseModel):
    """A conversation, as OpenAI's clients may write it."""

    id: ConversationId


class CreateResponse(Creation):
    """The body of `POST /v1/responses`.

    With `previous_response_id` or `conversation`, the generator gets what was said before, followed by `input`.
    """

    kept_back: ClassVar = Creation.kept_back | {"conversation", PREVIOUS}

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    background: bool | None = False
    previous_response_id: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    conversation: ConversationId | ConversationParam | None = Field(
        None, description="A chat: `metadata.chat` of its streams. It begins with the first Response that names it."
    )

    @field_validator("input")
    @classmethod
    def _is_said(cls, value: Any) -> Any:
        items = isinstance(value, list) and all(isinstance(item, dict) for item in value)
        if not value or not (isinstance(value, str) or items):
            raise ValueError("it must be a text or a list of items, and not empty")
        return value

    @property
    def chat(self) -> str | None:
        """The id of the conversation to continue."""
        named = self.conversation
        return named.id if isinstance(named, ConversationParam) else named


class ResponseContent(TypedDict):
    """A Response as OpenAI's API has it. It has more fields than these."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    metadata: dict[str, str]
    usage: dict[str, Any] | None


class DeletedResponse(TypedDict):
    """A Response that was erased."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(TypedDict):
    """Items of the input of a Response."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RetrieveResponse(BaseModel):
    """The query of `GET /v1/responses/{id}`."""

    stream: bool = False
    starting_after: int | None = Field(None, ge=0, le=2**53)


class ListItems(BaseModel):
    """The query of `GET /v1/responses/{id}/input_items`."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


ROUTES: Final = Routes(
    "OpenAI", path={"id": {"type": "string", "pattern": f"^(resp_)?{STREAM_ID}$"}}, form=OPENAI_ERROR
)


@ROUTES.route(
    "POST",
    "/v1/responses",
    "create",
    {200: Returns("The Response.", {JSON: ResponseContent})},
    refusals=(
        *CREATING,
        *JOINING,
        UnknownModel,
        ReservedGenerator,
        StillRunning,
        AnswerRunning,
        ConversationGone,
        PreviousResponseNotFound,
    ),
    body=CreateResponse,
    parameters=(IDEMPOTENCY_KEY,),
    others={'"stream": true': {200: Returns(_EVENTS, {EVENTS: ResponseEvent})}},
)
async def create_response(request: Request) -> AsgiResponse:
    """Create a Response; follow it, wait for it, or let it run in the background."""
    stream, begun, background = await _created(request)
    if begun is not None:
        return await follow_created(request, stream, Opening(dialect=RESPONSES, begun=begun), still_running)
    try:
        if background:
            return await _answer(request, stream.id)
        await wait_for_end(request, stream.id)
        return await _answer(request, stream.id, whole=True)
    except PassingError as error:
        # Clients retry by status, and would create another one.
        raise still_running(stream) from error


@ROUTES.route(
    "GET",
    "/v1/responses/{id}",
    "read",
    {200: Returns("The Response.", {JSON: ResponseContent})},
    refusals=(*FOLLOWING, RequestMemoryFull),
    query=(RetrieveResponse,),
    others={"stream=true": {200: Returns(_EVENTS, {EVENTS: ResponseEvent})}},
)
async def retrieve_response(request: Request) -> AsgiResponse:
    """Return a Response; with `stream=true`, follow it after the frame `starting_after`."""
    query = validated(RetrieveResponse, query_of(request, RetrieveResponse.model_fields))
    stream_id = _stream_id(request)
    if not query.stream:
        return await _answer(request, stream_id)
    async with in_time(request):
        stream = await found(request, stream_id)
        given = await _asked(request, stream)
    after = 0 if query.starting_after is None else query.starting_after + 1
    begin = Opening(dialect=RESPONSES, begun=RESPONSES.begin(stream, given, after), after=after)
    return await opening.follow(request, stream_id, begin)


@ROUTES.route(
    "POST",
    "/v1/responses/{id}/cancel",
    "cancel",
    {200: Returns("The Response.", {JSON: ResponseContent})},
    refusals=(*WHOLE, RequestMemoryFull),
)
async def cancel_response(request: Request) -> AsgiResponse:
    """Cancel a Response. Doing it again, or after the end, changes nothing."""
    stream_id = _stream_id(request)
    _, stopping = await actions.cancel(request, stream_id)
    if stopping:
        await wait_for_end(request, stream_id, _CANCEL_SECONDS)
    return await _answer(request, stream_id)


@ROUTES.route(
    "DELETE",
    "/v1/responses/{id}",
    "admin",
    {200: Returns("It was erased.", {JSON: DeletedResponse})},
    refusals=STREAM,
)
async def delete_response(request: Request) -> AsgiResponse:
    """Erase a Response."""
    stream_id = _stream_id(request)
    await actions.erase(request, stream_id)
    content: DeletedResponse = {"id": response_id(stream_id), "object": "response", "deleted": True}
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/v1/responses/{id}/input_items",
    "read",
    {200: Returns("The items of its input.", {JSON: ItemList})},
    refusals=(*STREAM, InvalidRequest, RequestMemoryFull),
    query=(ListItems,),
)
async def list_input_items(request: Request) -> AsgiResponse:
    """List the items of a Response's input."""
    query = validated(ListItems, query_of(request, ListItems.model_fields))
    stream_id = _stream_id(request)
    async with in_time(request):
        await found(request, stream_id)
        given = await read_input(request, stream_id)
    asked = given.get("input", given) if isinstance(given, dict) else given
    items = items_of(asked) if isinstance(asked, str | list) else []
    return json_answer(request, page_of_items(items, query, f"msg_{stream_id.hex}_in_"))


def page_of_items(items: Sequence[Any], query: ListItems, prefix: str) -> ItemList:
    """Return a page of items, each with an id: `prefix` and its number.

    Raises:
        InvalidRequest: no item has the id `after`.
    """
    listed = [_item(item, f"{prefix}{number}") for number, item in enumerate(items) if isinstance(item, dict)]
    if query.order == "desc":
        listed.reverse()
    ids = [item["id"] for item in listed]
    if query.after is not None:
        if query.after not in ids:
            raise InvalidRequest(f"after: no item has the id {query.after!r:.80}.")
        listed = listed[ids.index(query.after) + 1 :]
    page = listed[: query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(listed) > len(page),
    }


async def _created(request: Request) -> tuple[Stream, Encoded[ResponseState] | None, bool]:
    """Create a stream; return it, how the Response begins if it is streamed, and whether it runs in the background.

    On return the request's body can be freed: the wait for the answer may be long.
    """
    body = await read_body(request)
    creation = validated(CreateResponse, parse_json(body))
    if (creation.model_extra or {}).get("prompt") is not None:
        raise InvalidRequest("prompt is not supported: send the text itself as `input`.")
    if creation.stream:
        require_followable(request)
    elif not creation.background:
        require_staying(request)
    past = await _past(request, creation, body)
    repeated = None if past is None else past.repeated
    stream = repeated or await create(request, creation, body, past)
    release_body(request)
    begun = RESPONSES.begin(stream, creation.model_dump(exclude_unset=True)) if creation.stream else None
    return stream, begun, bool(creation.background)


async def _past(request: Request, creation: CreateResponse, body: bytes) -> Past | None:
    """Return the conversation that a request continues; None if it holds all of it."""
    if creation.previous_response_id is not None:
        if creation.chat is not None:
            raise InvalidRequest("previous_response_id and conversation cannot be given together.")
        return await after_response(request, creation.previous_response_id, creation.input)
    if creation.chat is None:
        return None
    if (creation.metadata or {}).get("chat", creation.chat) != creation.chat:
        raise InvalidRequest("metadata.chat must be the id of the conversation, or be left out.")
    return await after_conversation(request, creation.chat, creation.input, body)


async def _asked(request: Request, stream: Stream) -> Any:
    """Return a stream's input, with the id of the Response that it continues."""
    given = await read_input(request, stream.id)
    previous = (await streams.read_continuation(pool_of(request, stream.id), stream.id)).get(PREVIOUS)
    return {**given, PREVIOUS: previous} if isinstance(given, dict) and previous is not None else given


async def _answer(request: Request, stream_id: UUID, *, whole: bool = False) -> AsgiResponse:
    content = await actions.read(request, stream_id)
    if whole and not content.stream.ended:
        # The pod is leaving.
        raise still_running(content.stream)
    async with in_time(request):
        given = await _asked(request, content.stream)
    return json_answer(request, await asyncio.to_thread(response_of, content.stream, given, content.lines))


def _stream_id(request: Request) -> UUID:
    return parse_stream_id(request.path_params["id"].removeprefix("resp_"))


def _item(item: dict[str, Any], item_id: str) -> dict[str, Any]:
    # The item's own id may be missing, or be that of another item.
    whole = {"type": "message", **item, "id": item_id}
    if whole["type"] == "message" and isinstance(whole.get("content"), str):
        kind = "output_text" if whole.get("role") == "assistant" else "input_text"
        whole["content"] = [{"type": kind, "text": whole["content"]}]
        whole.setdefault("status", "completed")
    return whole
