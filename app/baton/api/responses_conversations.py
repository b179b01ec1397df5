"""What a Response continues: the one before it, by `previous_response_id`, or a chat, by `conversation`.

The pod reads the conversation when it creates the stream, and the stream's input holds all of it. So no worker reads
another stream, and the input's limit bounds the conversation. The ids of its answers are stored beside the input, as
those of a page of the AI SDK are: either client can continue what the other has begun.

A chat has one newest stream, and its id is the key of the next, so two requests that continue a chat at once do not
both do so. A Response may have several that continue it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request

from ..db import streams
from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..errors import (
    ConversationGone,
    GenerationError,
    InvalidRequest,
    PreviousResponseNotFound,
    StreamExpired,
    StreamNotFound,
)
from ..generators import conversation as forms
from . import aisdk_turns, stored_conversations
from .aisdk_conversations import Place, beside_input
from .request import found as stream_found
from .request import in_time, parse_stream_id, pool_of, principal_of
from .stored_conversations import Message, StoredConversation

Json = dict[str, Any]

PREVIOUS: Final = "previous_response_id"


@dataclass(frozen=True, slots=True)
class Past:
    """What a request continues: the items before its own, and what to store beside the input.

    `chat` is the chat that the new stream belongs to. `repeated` is the stream that the same request has created.
    """

    items: Sequence[Json] = ()
    chat: str | None = None
    beside: Mapping[str, Any] | None = None
    key: IdempotencyKey | None = None
    repeated: Stream | None = None


async def after_response(request: Request, response_id: str, given: Any) -> Past:
    """Read the conversation that ends with a Response; `given` is the new input.

    Raises:
        AnswerRunning: the Response has not ended.
        ConversationGone: an answer of the conversation was erased.
        Forbidden: the caller may not read, or may read only one stream.
        PreviousResponseNotFound: this caller has no such Response.
        InvalidRequest, LogDamaged, Unavailable: it cannot be read.
    """
    _require_reader(request)
    async with in_time(request):
        stream = await _previous(request, response_id)
        stream = await aisdk_turns.stopped(request, stream)
    chat, results = _chat_of(stream), _results(given)
    if chat is not None:
        whole = await stored_conversations.read(request, chat, upto=stream.id, results=results)
    else:
        whole = await stored_conversations.read_one(request, stream, results=results)
    items, places = await asyncio.to_thread(_items, whole)
    beside = {**beside_input(places), PREVIOUS: response_id}
    return Past(items, chat, beside)


async def after_conversation(request: Request, chat: str, given: Any, body: bytes) -> Past:
    """Read a chat's conversation, which is empty if the chat has no streams. Raises what `after_response` raises."""
    _require_reader(request)
    async with in_time(request):
        newest = await aisdk_turns.newest(request, chat)
        digest = hashlib.sha256(body).hexdigest()
        if newest is not None and not newest.ended:
            beside = await streams.read_continuation(pool_of(request, newest.id), newest.id)
            if beside.get("digest") == digest:
                return Past(repeated=newest)
            newest = await aisdk_turns.stopped(request, newest)
    key = aisdk_turns.successor_key(request, f"new {chat}" if newest is None else str(newest.id), digest)
    if newest is None:
        return Past((), chat, beside_input((), digest), key)
    whole = await stored_conversations.read(request, chat, upto=newest.id, results=_results(given))
    items, places = await asyncio.to_thread(_items, whole)
    return Past(items, chat, beside_input(places, digest), key)


def items_of(given: Any) -> list[Json]:
    """Return an input as a list of items. A text becomes one message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _require_reader(request: Request) -> None:
    principal = principal_of(request)
    principal.require("read")
    principal.require_tenant()


async def _previous(request: Request, response_id: str) -> Stream:
    try:
        stream_id: UUID = parse_stream_id(response_id.removeprefix("resp_"))
        return await stream_found(request, stream_id)
    except StreamExpired as error:
        raise PreviousResponseNotFound(str(error)) from None
    except StreamNotFound:
        raise PreviousResponseNotFound(f"Previous response with id {response_id!r:.80} not found.") from None


def _chat_of(stream: Stream) -> str | None:
    """Return the id of a stream's chat; a native client may have given a number."""
    chat = stream.metadata.get("chat")
    return None if chat is None or isinstance(chat, bool) else str(chat)


def _results(given: Any) -> frozenset[str]:
    """Return the ids of the calls to which an input has the results."""
    items = given if isinstance(given, list) else []
    results = [item for item in items if str(item.get("type")).endswith("_output")]
    return frozenset(item["call_id"] for item in results if isinstance(item.get("call_id"), str))


def _items(found: StoredConversation) -> tuple[list[Json], list[Place]]:
    """Return a conversation as items, and where each of its messages begins among them, counted as chat messages."""
    if not found.complete:
        raise ConversationGone(
            "A part of this conversation is not stored, was erased, holds no readable messages, or is too long."
        )
    items: list[Json] = []
    places: list[Place] = []
    start = 0
    for message in found.messages:
        places.append(Place(message.id, start))
        made, count = _written(message)
        items += made
        start += count
    return items, [*places, Place(None, start)]


def _written(message: Message) -> tuple[list[Json], int]:
    """Return a message as items, and how many chat messages these are."""
    try:
        items: list[Json] = forms.for_responses({"messages": list(message.content)})["input"]
        return items, len(forms.messages(items))
    except GenerationError as error:
        raise InvalidRequest(f"The stored conversation cannot be continued: {error.message}") from None
