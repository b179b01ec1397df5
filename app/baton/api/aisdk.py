"""The routes for the Vercel AI SDK: `useChat` with its `DefaultChatTransport`, and `WorkflowChatTransport`.

A chat is the id that the page gave it, kept in the metadata of its streams; of these the newest counts. A run is one
stream: `WorkflowChatTransport` is told its id when it sends, and asks for the rest of it where it would for a chat's.

A request whose last message is the assistant's has that message continued. It is stored with the stream, as the page
sent it: a run is followed by a client that has the message, a chat by one that may have lost it, and replays it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from .. import log, streams
from ..database import translated
from ..dialects import aisdk
from ..dialects.aisdk_message import Earlier
from ..dialects.dialect import Encoded, Reader
from ..errors import GenerationError, InvalidRequest
from ..events import MAX_SEQ, Status
from ..generators import conversation
from ..models import CreateStream, Items, Name, Text, storable, validated
from ..pod import Pod
from ..streams import Stream, Wanted
from . import actions, approvals
from .approvals import Answered
from .following import follow_frames, require_followable
from .request import (
    Answer,
    answered,
    charge_rows,
    common_headers,
    found,
    json_answer,
    parse_json,
    pod_of,
    principal_of,
    query_of,
    read_body,
)

_RUN: Final = re.compile(r"run_([0-9a-f]{32})")
_OLD_SDK: Final = (
    "a message has `parts`; `content` is what AI SDK 3 and 4 send, whose pages cannot read these answers: use AI SDK "
    "5, 6 or 7"
)
# In which a chat's newest stream is looked for, if so many streams have its id that an index does not help.
_PAGES: Final = 5
_START_INDEX: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)


class UIMessage(BaseModel):
    """One message of a page."""

    model_config = ConfigDict(strict=True)

    id: Any = None
    role: Literal["system", "user", "assistant"]
    parts: Items[dict[str, Any]]
    metadata: Any = None

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, message: Any) -> Any:
        """Refuse a page that cannot read the answer before that costs anything. No later AI SDK sends `content`."""
        if isinstance(message, dict) and "content" in message:
            raise ValueError(_OLD_SDK)
        return message


class SendMessages(BaseModel):
    """What a page sends. `model` names a generator; all that is not named here goes to it with the messages."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text | None = None
    messages: Items[UIMessage]
    model: Name | None = None
    trigger: Any = None
    messageId: Any = None  # noqa: N815

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


class Stopped(TypedDict):
    """A stream that was asked to stop."""

    id: str
    status: Status


async def send_messages(request: Request) -> Answer:
    """Queue the answer to a chat's messages, and follow it in the same round trip."""
    require_followable(request)
    body = await read_body(request)
    sent = validated(SendMessages, parse_json(body))
    answers = await approvals.answered(request, sent.id, _last_parts(sent))
    approvals.require_taker(pod_of(request).settings, sent.model, answers)
    approved = [answer for answer in answers if answer.approved]
    wanted = validated(
        CreateStream,
        {
            "generator": sent.model,
            "input": {"messages": _chat_messages(sent.messages, approved), **(sent.model_extra or {})},
            "metadata": {} if sent.id is None else {"chat": sent.id},
        },
    )
    continuation = _continuation(sent, approved)
    # The protocol cannot say that an answer begins again.
    new = actions.new_stream(request, wanted, on_worker_lost="fail", continuation=continuation)
    stream, _ = await actions.create(request, new, body, approvals.key_of(request, answers))
    return await _follow(request, stream, 0, continued=continuation is not None)


async def resume(request: Request) -> Answer:
    """Send the chunks of a chat's newest stream, or of a run, from `startIndex` on.

    Without `startIndex` the client wants to see a stream that is under way, and gets 204 where there is none. With it,
    the client asks again until it has seen a `finish`, without a pause: it gets one with every answer that is whole.
    """
    chat = request.path_params["chat"]
    raw = query_of(request).get("startIndex")
    start_index = _start_index(raw)
    async with translated():
        stream = await _stream_of(request, chat)
    if stream is None and raw is not None:
        return Response(aisdk.NO_ANSWER, headers=_headers(request))
    if stream is None or (stream.ended and raw is None and not _RUN.fullmatch(chat)):
        return Response(status_code=204, headers=common_headers(request))
    return await _follow(request, stream, start_index, replay=not _RUN.fullmatch(chat))


async def stop(request: Request) -> Answer:
    """Ask the generator of a chat's newest stream, or of a run, to stop. What has ended needs nothing."""
    async with translated():
        stream = await _stream_of(request, request.path_params["chat"])
    if stream is None or stream.ended:
        return Response(status_code=204, headers=common_headers(request))
    stream, stopping = await actions.cancel(request, stream.id)
    content: Stopped = {"id": str(stream.id), "status": stream.status}
    return json_answer(request, content, status=202 if stopping else 200)


ROUTES = [
    Route("/v1/ai-sdk/chat", answered(send_messages, "create"), methods=["POST"]),
    # With `any`, since a chat's id may have a slash in it.
    Route("/v1/ai-sdk/chat/{chat:any}/stream", answered(resume, "read"), methods=["GET"]),
    Route("/v1/ai-sdk/chat/{chat:any}/stop", answered(stop, "cancel", narrow=True), methods=["POST"]),
]


def _chat_messages(messages: list[UIMessage], approved: Sequence[Answered]) -> list[dict[str, Any]]:
    """Convert them here, so that a generator gets one form from all clients."""
    allowed = {answer.call_id for answer in approved}
    try:
        found = [conversation.messages([_role_and_parts(message)]) for message in messages[:-1]]
        found += [conversation.messages([_role_and_parts(message)], allowed=allowed) for message in messages[-1:]]
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return [message for some in found for message in some]


def _role_and_parts(message: UIMessage) -> dict[str, Any]:
    return {"role": message.role, "parts": message.parts}


def _last_parts(sent: SendMessages) -> list[dict[str, Any]]:
    """Return the parts of the message that is continued."""
    last = sent.messages[-1] if sent.messages else None
    return last.parts if last is not None and last.role == "assistant" else []


def _continuation(sent: SendMessages, approved: Sequence[Answered]) -> dict[str, Any] | None:
    """Return the message that the stream continues, and the calls that the user has allowed in it."""
    last = sent.messages[-1] if sent.messages else None
    if last is None or last.role != "assistant" or not isinstance(last.id, str) or not last.id:
        return None
    message = {"id": last.id, "parts": last.parts, "metadata": last.metadata}
    try:
        Earlier.of(message)
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return {"message": message, "approvals": [answer.as_approval() for answer in approved]}


async def _earlier(request: Request, stream: Stream) -> Earlier | None:
    """Return the message that a stream continues, if it does."""
    async with translated():
        message = (await streams.read_continuation(pod_of(request).pool, stream.id)).get("message")
    return None if message is None else Earlier.of(message)


async def _stream_of(request: Request, chat: str) -> Stream | None:
    """Return the stream of a run, or a chat's newest."""
    run = _RUN.fullmatch(chat)
    return await found(request, UUID(run[1])) if run else await _newest(request, chat)


async def _newest(request: Request, chat: str) -> Stream | None:
    if "\0" in chat:
        raise InvalidRequest("The id of a chat cannot hold a NUL character.")
    principal = principal_of(request)
    newest = await _newest_of_chat(request, principal.tenant, chat)
    if newest is None or not principal.sees(newest.tenant, newest.id):
        return None
    principal.require_in_time(newest.ended_at)
    return newest


async def _newest_of_chat(request: Request, tenant: str, chat: str) -> Stream | None:
    """Return a chat's newest stream. Where thousands have that chat's id, only as many of the newest are looked at."""
    wanted = Wanted(tenant, metadata=[{"chat": chat}])
    async with pod_of(request).pool.acquire() as connection:
        for _ in range(_PAGES):
            page = await streams.find(connection, wanted, 1)
            charge_rows(request, page.looked_at)
            if page.streams:
                return page.streams[0]
            if page.before is None:
                break
            wanted = replace(wanted, last=streams.below(page.before))
    return None


async def _follow(
    request: Request, stream: Stream, start_index: int, *, replay: bool = False, continued: bool = True
) -> Answer:
    headers = {"x-workflow-run-id": f"run_{stream.id.hex}"}
    earlier = await _earlier(request, stream) if continued else None
    opening = aisdk.begin(stream.id, 0, earlier, replay=replay)
    if start_index < 0:
        chunks = await _count(pod_of(request), opening, stream.id)
        headers["x-workflow-stream-tail-index"] = str(chunks - 1)
        start_index = max(0, chunks + start_index)
    elif start_index and stream.ended and start_index == await _count(pod_of(request), opening, stream.id):
        start_index -= 1  # nothing is left but to see the `finish` again
    opening = aisdk.begin(stream.id, start_index, earlier, replay=replay)
    dialect = aisdk.REPLAY if replay and earlier is not None else aisdk.AI_SDK
    return await follow_frames(request, stream.id, dialect, opening, after=start_index, headers=headers)


def _headers(request: Request) -> dict[str, str]:
    """What an answer of the dialect carries that is no stream."""
    dialect = {name.decode(): value.decode() for name, value in aisdk.AI_SDK.headers}
    return common_headers(request) | dialect


async def _count(pod: Pod, opening: Encoded[aisdk.State], stream_id: UUID) -> int:
    """Count a stream's chunks so far."""
    reader = Reader(aisdk.AI_SDK, opening, MAX_SEQ)
    cursor = 0
    async with translated():
        while page := await log.read(pod.pool, stream_id, cursor):
            reader.read(page)
            cursor = page[-1].last_seq
    return reader.last


def _start_index(raw: str | None) -> int:
    if raw is None:
        return 0
    if not _START_INDEX.fullmatch(raw):
        raise InvalidRequest(
            f"startIndex is the number of chunks to leave out, or, if negative, of those to send; not {raw!r:.80}."
        )
    return int(raw)
