"""OpenAI's Chat Completions: create, and get the answer in the same request.

A client cannot return to a completion. So a stream that was created here is cancelled when its client leaves, but not
when the pod leaves.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import Request

from ..codes import status_of_end
from ..db.streams import Stream
from ..dialects.chat import CHAT, ChatState, Completion, completion_of
from ..dialects.protocol import Encoded
from ..errors import InvalidRequest, ReservedGenerator, StillRunning, UnknownModel
from ..snapshot import Snapshot
from .actions import Content
from .answering import AnswerForm, follow_or_wait
from .event_types import CompletionChunk, CompletionFailure
from .following import require_followable, require_staying
from .openai_creation import Creation, create, still_running
from .openai_errors import OPENAI_ERROR, error_body
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, JOINING
from .request import AsgiResponse, json_answer
from .request_body import parse_json, read_body, release_body
from .routing import EVENTS, JSON, Returns, Routes
from .validation import Items, validated


class CreateCompletion(Creation):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[Items[dict[str, Any]], Field(min_length=1)]
    n: int | None = None


ROUTES: Final = Routes("OpenAI", form=OPENAI_ERROR)


@ROUTES.route(
    "POST",
    "/v1/chat/completions",
    "create",
    {
        200: Returns("The completion.", {JSON: Completion}),
        409: Returns("The answer was cancelled."),
        429: Returns("The model provider limits requests."),
        500: Returns("The answer failed."),
    },
    refusals=(*CREATING, *JOINING, UnknownModel, ReservedGenerator, StillRunning),
    body=CreateCompletion,
    parameters=(IDEMPOTENCY_KEY,),
    others={
        '"stream": true': {
            200: Returns(
                "The chunks of OpenAI's Chat Completions, and `[DONE]` after the last one.",
                {EVENTS: CompletionChunk | CompletionFailure},
            )
        }
    },
)
async def create_completion(request: Request) -> AsgiResponse:
    """Create a completion, and follow it or wait for it."""
    stream, begun = await _created(request)
    return await follow_or_wait(request, stream, begun, AnswerForm(CHAT, _answer, still_running))


async def _created(request: Request) -> tuple[Stream, Encoded[ChatState] | None]:
    """Create a stream; return it and, if the client wants it streamed, how the completion begins.

    On return the request's body can be freed: the wait for the answer may be long.
    """
    body = await read_body(request)
    wanted = validated(CreateCompletion, parse_json(body))
    if wanted.n not in {None, 1}:
        raise InvalidRequest("n: only one answer can be generated.")
    (require_followable if wanted.stream else require_staying)(request)
    stream = await create(request, wanted, body)
    release_body(request)
    return stream, CHAT.begin(stream, wanted.model_dump(exclude_unset=True)) if wanted.stream else None


async def _answer(request: Request, content: Content) -> AsgiResponse:
    stream = content.stream
    if stream.status == "completed":
        snapshot = await asyncio.to_thread(Snapshot.of, content.lines, content.last_seq)
        return json_answer(request, completion_of(stream, snapshot))
    # Baton has retried what can be retried. Another request would be another answer, and another bill.
    code, message = stream.error_code or "cancelled", stream.error_message or "The answer was cancelled."
    status = status_of_end(code)
    return json_answer(request, error_body(status, code, message), status=status, headers={"x-should-retry": "false"})
