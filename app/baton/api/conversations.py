"""The native route of conversations: what was said in a chat, in the form of any API that clients use."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal, NotRequired
from urllib.parse import quote, urlencode
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from typing_extensions import TypedDict

from ..errors import InvalidRequest, LogDamaged, RequestMemoryFull
from ..events import Status
from . import problems, stored_conversations
from .refusals import READING
from .request import AsgiResponse, json_answer, query_of
from .routing import JSON, Returns, Routes
from .validation import validated

Form = Literal["messages", "responses", "anthropic", "aisdk"]

CHAT: Final = {
    "type": "string",
    "minLength": 1,
    "pattern": r"^[^\x00]+$",
    "description": "The id of a chat: `metadata.chat` of its streams.",
}


class ReadConversation(BaseModel):
    """The query of `GET /v1/conversations/{chat}`."""

    model_config = ConfigDict(extra="forbid")

    form: Form = Field("messages", description="The API whose requests hold messages like these.")
    before: UUID | None = Field(None, description="Only what older streams hold than this one.")


class Answer(TypedDict):
    """A stream, and its state."""

    id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Status


class ConversationContent(TypedDict):
    """What was said in a chat, oldest first.

    `messages` (for the form `responses`: `input`; for `anthropic` with `system`, if there are instructions) is what a
    request in the form holds. `answers` are the streams whose answers were read: those that failed or were cancelled
    are in the conversation with what they have. `active` is a stream that has not ended; its answer is left out.
    `complete` is false if some of the conversation is known to be missing: on an older page (`next`), or erased.
    """

    id: str
    object: Literal["conversation"]
    form: Form
    messages: NotRequired[list[dict[str, Any]]]
    input: NotRequired[list[dict[str, Any]]]
    system: NotRequired[str | list[dict[str, Any]]]
    answers: list[Answer]
    active: Answer | None
    complete: bool
    next: str | None


ROUTES: Final = Routes("conversations", path={"chat": CHAT})


# With `any`, since a chat's id may have a slash in it.
@ROUTES.route(
    "GET",
    "/v1/conversations/{chat:any}",
    "read",
    {200: Returns("The conversation; empty if the chat has no streams.", {JSON: ConversationContent})},
    refusals=(*READING, InvalidRequest, LogDamaged, RequestMemoryFull),
    query=(ReadConversation,),
    name="conversation",
)
async def get_conversation(request: Request) -> AsgiResponse:
    """Return what was said in a chat so far, in the form of a request to an API. Follow `next` for what is older."""
    options = validated(ReadConversation, query_of(request))
    chat: str = request.path_params["chat"]
    found = await stored_conversations.read(request, chat, before=options.before)
    if options.form == "aisdk":
        found = await stored_conversations.with_logs(request, chat, found)
    following = None
    if found.before is not None:
        query = urlencode({"form": options.form, "before": str(found.before)})
        following = f"{problems.address(request, 'conversation', chat=quote(chat, safe=''))}?{query}"
    content: dict[str, Any] = {
        "id": chat,
        "object": "conversation",
        "form": options.form,
        **await asyncio.to_thread(stored_conversations.in_form, found, options.form),
        "answers": [{"id": str(stream.id), "status": stream.status} for stream in found.answers],
        "active": None if found.active is None else {"id": str(found.active.id), "status": found.active.status},
        "complete": found.complete,
        "next": following,
    }
    return json_answer(request, content)
