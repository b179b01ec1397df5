"""Two routes of OpenAI's Conversations API. `GET /v1/conversations/{id}` is `conversations`.

A conversation is its streams: nothing is stored without one. So an id is only a name, and a conversation with items or
metadata of its own cannot be created.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from typing_extensions import TypedDict

from ..errors import BodyTimeout, InvalidRequest, LogDamaged, RequestMemoryFull, RequestTooLarge
from . import stored_conversations
from .conversations import CHAT
from .openai_errors import OPENAI_ERROR
from .refusals import GUARDED, READING
from .request import AsgiResponse, json_answer, query_of
from .request_body import parse_json, read_body
from .responses import ItemList, ListItems, page_of_items
from .routing import JSON, Returns, Routes
from .validation import validated


class CreateConversation(BaseModel):
    """The body of `POST /v1/conversations`."""

    model_config = ConfigDict(extra="allow")

    items: list[Any] | None = None
    metadata: dict[str, Any] | None = None


class NewConversation(TypedDict):
    """A conversation without streams."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


ROUTES: Final = Routes("OpenAI", path={"chat": CHAT}, form=OPENAI_ERROR)


@ROUTES.route(
    "POST",
    "/v1/conversations",
    "create",
    {200: Returns("The id of a conversation that begins with its first Response.", {JSON: NewConversation})},
    refusals=(*GUARDED, InvalidRequest, BodyTimeout, RequestTooLarge, RequestMemoryFull),
    body=CreateConversation,
    body_required=False,
)
async def create_conversation(request: Request) -> AsgiResponse:
    """Make an id for a conversation. Nothing is stored, and any other name works as well."""
    body = await read_body(request)
    wanted = validated(CreateConversation, parse_json(body) if body else {})
    if wanted.items or wanted.metadata:
        raise InvalidRequest("A conversation has no items or metadata of its own: send them with its first Response.")
    content: NewConversation = {
        "id": f"conv_{uuid.uuid4().hex}",
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": {},
    }
    return json_answer(request, content)


# With `any`, since a chat's id may have a slash in it.
@ROUTES.route(
    "GET",
    "/v1/conversations/{chat:any}/items",
    "read",
    {200: Returns("The items of the conversation, as far as one request reads it.", {JSON: ItemList})},
    refusals=(*READING, InvalidRequest, LogDamaged, RequestMemoryFull),
    query=(ListItems,),
)
async def list_conversation_items(request: Request) -> AsgiResponse:
    """List what was said in a conversation, as items of the Responses API."""
    query = validated(ListItems, query_of(request, ListItems.model_fields))
    found = await stored_conversations.read(request, request.path_params["chat"])
    items = (await asyncio.to_thread(stored_conversations.in_form, found, "responses"))["input"]
    return json_answer(request, page_of_items(items, query, "item_"))
