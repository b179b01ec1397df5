"""The routes for pages with AI SDK 3.4 and 4, which read the data stream protocol.

A page sends the whole conversation, and asks for the rest of an answer by the id of its chat. Its chats are those of
the newer SDKs: `POST /v1/ai-sdk/chat/{chat}/stop` stops an answer, and a page that leaves stops none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ..db.streams import Stream
from ..dialects.aisdk_data import AI_SDK_DATA, AiSdkData
from ..errors import GenerationError, InvalidRequest, ReservedGenerator, UnknownGenerator
from ..generators import conversation
from . import actions, aisdk_turns, opening
from .aisdk_conversations import beside_input
from .following import require_followable
from .models import CreateStream
from .opening import Opening
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, FOLLOWING, JOINING
from .request import AsgiResponse, common_headers, in_time, principal_of, query_of, require_events
from .request_body import parse_json, read_body, release_body
from .routing import TEXT, Parameter, Returns, Routes
from .validation import Items, Name, Text, storable, validated

Json = dict[str, Any]

_VERSION: Final = {"type": "string", "enum": list(AI_SDK_DATA), "description": "The major version of the AI SDK."}
_PARTS: Final = "The parts of the AI SDK's data stream protocol, one a line."
_CHAT_ID: Final = Parameter("chatId", "query", "The id of the chat.", {"type": "string"}, {"required": True})

ROUTES: Final = Routes("AI SDK", path={"version": _VERSION})


class OldMessage(BaseModel):
    """One message of a page."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "user", "assistant", "data"]


class SendOldMessages(BaseModel):
    """What a page sends. `model` names a generator, which gets the messages and all fields not listed here."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text | None = None
    messages: Items[OldMessage] = Field(min_length=1)
    model: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


@ROUTES.route(
    "POST",
    "/v1/ai-sdk/{version}/chat",
    "create",
    {200: Returns("The answer.", {TEXT: _PARTS})},
    refusals=(*CREATING, *JOINING, UnknownGenerator, ReservedGenerator),
    body=SendOldMessages,
    parameters=(IDEMPOTENCY_KEY,),
)
async def send_old_messages(request: Request) -> AsgiResponse:
    """Queue the answer to the messages of a page with AI SDK 3.4 or 4, and follow it."""
    dialect = _dialect(request)
    require_followable(request)
    body = await read_body(request)
    sent = validated(SendOldMessages, parse_json(body))
    wanted = validated(
        CreateStream,
        {
            "generator": sent.model,
            "input": {"messages": _converted(sent.messages), **(sent.model_extra or {})},
            "metadata": {} if sent.id is None else {"chat": sent.id},
        },
    )
    beside = None if sent.id is None else beside_input(())
    new = actions.new_stream(request, wanted, can_reset=False, continuation=beside)
    stream, _ = await actions.create(request, new, body)
    release_body(request)
    return await _follow(request, stream, dialect)


@ROUTES.route(
    "GET",
    "/v1/ai-sdk/{version}/chat",
    "read",
    {200: Returns("The answer that runs, from its beginning; nothing if none does.", {TEXT: _PARTS})},
    refusals=FOLLOWING,
    parameters=(_CHAT_ID,),
)
async def resume_old(request: Request) -> AsgiResponse:
    """Send the running answer of a chat from its beginning. These pages take any status but 200 for an error."""
    dialect = _dialect(request)
    chat = query_of(request, {_CHAT_ID.name}).get(_CHAT_ID.name)
    if not chat:
        raise InvalidRequest("Name the chat: ?chatId=…")
    principal_of(request).require_tenant()
    async with in_time(request):
        stream = await aisdk_turns.newest(request, chat)
    if stream is None or stream.ended:
        headers = {name.decode(): value.decode() for name, value in dialect.headers}
        return Response(b"", headers=common_headers(request) | headers)
    async with in_time(request):
        await require_events(request, stream)
    return await _follow(request, stream, dialect)


async def _follow(request: Request, stream: Stream, dialect: AiSdkData) -> AsgiResponse:
    begin = Opening(dialect=dialect, begun=dialect.begin(stream.id.hex))
    return await opening.follow(request, stream.id, begin)


def _dialect(request: Request) -> AiSdkData:
    version = request.path_params["version"]
    if version not in AI_SDK_DATA:
        raise InvalidRequest(f"The version of the AI SDK must be v3 or v4, not {version!r:.80}.")
    return AI_SDK_DATA[version]


def _converted(messages: Sequence[OldMessage]) -> list[Json]:
    """Convert messages, so that generators get one form from all clients."""
    given = [message.model_dump() for message in messages]
    try:
        return conversation.messages(cast(Any, [_plain(one) for one in given if one["role"] != "data"]))
    except GenerationError as error:
        raise InvalidRequest(error.message) from None


def _plain(message: Json) -> Json:
    """Leave out what a page keeps for itself, so that a message of text is not taken for another form."""
    kept = ("role", "content", "parts", "toolInvocations", "experimental_attachments")
    return {name: message[name] for name in kept if message.get(name) is not None}
