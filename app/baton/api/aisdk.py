"""The routes for the Vercel AI SDK: `useChat` with its `DefaultChatTransport`, and `WorkflowChatTransport`.

A chat is the id that the page gave it, kept in the metadata of its streams; of these the newest counts. A run is one
stream: `WorkflowChatTransport` is told its id when it sends, and asks for the rest of it where it would for a chat's.

A request whose last message is the assistant's has that message continued. It is stored with the stream, as the page
sent it: a run is followed by a client that has the message, a chat by one that may have lost it, and replays it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from ..db import event_log, streams
from ..db.postgres import translated
from ..db.stream_creation import NewStream
from ..db.streams import Stream
from ..dialects import aisdk
from ..dialects.aisdk_message import Earlier
from ..dialects.aisdk_places import Places
from ..dialects.dialect import Encoded, Reader
from ..errors import GenerationError, InvalidRequest
from ..events import Status
from ..generators import conversation
from ..pod.pod import Pod
from . import actions, approvals, conversations, turns
from .approvals import Answered
from .conversations import Place, beside_input
from .following import follow_frames, require_followable
from .models import CreateStream, Items, Name, Text, storable, validated
from .request import (
    AsgiResponse,
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
_REGENERATE: Final = "regenerate-message"
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


class SendMessage(BaseModel):
    """What a page sends that leaves the conversation to the server: its last message, or that an answer is taken back.

    `previousMessageId` is the message before it, if the page gives it: without that message here, it is refused.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text
    message: UIMessage | None = None
    model: Name | None = None
    trigger: Any = None
    messageId: Text | None = None  # noqa: N815
    previousMessageId: Text | None = None  # noqa: N815

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


class Stopped(TypedDict):
    """A stream that was asked to stop."""

    id: str
    status: Status


async def send_messages(request: Request) -> AsgiResponse:
    """Queue the answer to a chat's messages, and follow it in the same round trip."""
    require_followable(request)
    body = await read_body(request)
    content = parse_json(body)
    if _leaves_the_rest(content):
        return await _send_message(request, validated(SendMessage, content), body)
    sent = validated(SendMessages, content)
    answers = await _answers(request, sent, sent.messages)
    messages, places = _converted(sent.messages, answers)
    continuation = {**_continuation(sent.messages, answers), **({} if sent.id is None else beside_input(places))}
    new = _new_stream(request, sent, messages, continuation)
    stream, _ = await actions.create(request, new, body, approvals.key_of(request, answers))
    return await _follow(request, stream, 0, continued="message" in continuation)


async def _send_message(request: Request, sent: SendMessage, body: bytes) -> AsgiResponse:
    """Do the same for a page that sends its last message only."""
    last = [] if sent.message is None or sent.trigger == _REGENERATE else [sent.message]
    answers = await _answers(request, sent, last)
    turn = _turn(sent, last, answers)
    whole = await turns.continued(request, turn)
    continuation = _continuation(last, answers)
    stream = whole.repeated
    if stream is None:
        beside = {**continuation, **beside_input(whole.places, turn.digest)}
        new = _new_stream(request, sent, whole.messages, beside)
        stream = await turns.create(request, new, body, approvals.key_of(request, answers) or whole.key)
    return await _follow(request, stream, 0, continued="message" in continuation)


async def resume(request: Request) -> AsgiResponse:
    """Send the chunks of a chat's newest stream, or of a run, from `startIndex` on.

    Without `startIndex` the client wants to see a stream that is under way, and gets 204 where there is none. With it,
    the client asks again until it has seen a `finish`, without a pause: it gets one with every answer that is whole.
    """
    chat = request.path_params["chat"]
    raw = query_of(request, {"startIndex"}).get("startIndex")
    start_index = _start_index(raw)
    async with translated(pod_of(request).pool):
        stream = await _stream_of(request, chat)
    if stream is None and raw is not None:
        return Response(aisdk.NO_ANSWER, headers=_headers(request))
    if stream is None or (stream.ended and raw is None and not _RUN.fullmatch(chat)):
        return Response(status_code=204, headers=common_headers(request))
    return await _follow(request, stream, start_index, replay=not _RUN.fullmatch(chat))


async def stop(request: Request) -> AsgiResponse:
    """Ask the generator of a chat's newest stream, or of a run, to stop. What has ended needs nothing."""
    async with translated(pod_of(request).pool):
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


def _leaves_the_rest(content: Any) -> bool:
    """Whether a body has the last message only, or none at all."""
    if not isinstance(content, dict) or content.get("messages") is not None:
        return False
    return content.get("message") is not None or content.get("trigger") == _REGENERATE


async def _answers(request: Request, sent: SendMessages | SendMessage, messages: Sequence[UIMessage]) -> list[Answered]:
    """Return the user's answers in the message that is continued."""
    last = messages[-1] if messages else None
    parts = last.parts if last is not None and last.role == "assistant" else []
    answers = await approvals.answered(request, sent.id, parts)
    approvals.require_taker(pod_of(request).settings, sent.model, answers)
    return answers


def _turn(sent: SendMessage, last: Sequence[UIMessage], answers: Sequence[Answered]) -> turns.Turn:
    if not last:
        return turns.Turn(sent.id, None, message_id=sent.messageId)
    (message,) = last
    if message.role == "system":
        raise InvalidRequest("A message that is sent alone is the user's or the assistant's.")
    if message.role == "assistant" and _id_of(message) is None:
        raise InvalidRequest("A message of the assistant that is sent alone needs an id.")
    allowed = [answer.id for answer in answers if answer.approved]
    messages, _ = _converted(last, answers)
    return turns.Turn(sent.id, messages, message.role, _id_of(message), sent.previousMessageId, allowed)


def _new_stream(
    request: Request,
    sent: SendMessages | SendMessage,
    messages: Sequence[Mapping[str, Any]],
    continuation: Mapping[str, Any],
) -> NewStream:
    wanted = validated(
        CreateStream,
        {
            "generator": sent.model,
            "input": {"messages": list(messages), **(sent.model_extra or {})},
            "metadata": {} if sent.id is None else {"chat": sent.id},
        },
    )
    # The protocol cannot say that an answer begins again.
    return actions.new_stream(request, wanted, on_worker_lost="fail", continuation=continuation or None)


def _converted(messages: Sequence[UIMessage], answers: Sequence[Answered]) -> tuple[list[dict[str, Any]], list[Place]]:
    """Convert messages here, so that a generator gets one form from all clients; return where each begins, too."""
    allowed = {answer.call_id for answer in answers if answer.approved}
    found: list[dict[str, Any]] = []
    places = []
    try:
        for message in messages:
            places.append(Place(_id_of(message), len(found)))
            last = {"allowed": allowed} if message is messages[-1] else {}
            found += conversation.messages([{"role": message.role, "parts": message.parts}], **last)
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return found, places


def _id_of(message: UIMessage) -> str | None:
    return message.id if isinstance(message.id, str) and message.id else None


def _continuation(messages: Sequence[UIMessage], answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the message that the stream continues, and the calls that the user has allowed in it, if there is one."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or _id_of(last) is None:
        return {}
    message = {"id": last.id, "parts": last.parts, "metadata": last.metadata}
    try:
        Earlier.of(message)
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return {"message": message, "approvals": [answer.as_approval() for answer in answers if answer.approved]}


async def _earlier(request: Request, stream: Stream) -> Earlier | None:
    """Return the message that a stream continues, if it does."""
    async with translated(pod_of(request).pool):
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
    async with pod_of(request).pool.acquire() as connection:
        newest, looked_at = await conversations.newest(connection, principal.tenant, chat)
    charge_rows(request, looked_at)
    if newest is None or not principal.sees(newest.tenant, newest.id):
        return None
    principal.require_in_time(newest.ended_at)
    return newest


async def _follow(
    request: Request, stream: Stream, start_index: int, *, replay: bool = False, continued: bool = True
) -> AsgiResponse:
    headers = {"x-workflow-run-id": f"run_{stream.id.hex}"}
    earlier = await _earlier(request, stream) if continued else None
    opening = aisdk.begin(stream.id, 0, earlier, replay=replay)
    if start_index < 0:
        places = await _places(pod_of(request), opening, stream.id)
        begun = places.before(max(0, places.chunks + start_index))
        # The transport adds `startIndex` to this, and counts on from there what it receives.
        headers["x-workflow-stream-tail-index"] = str(begun - 1 - start_index)
        start_index = begun
    elif start_index and stream.ended:
        places = await _places(pod_of(request), opening, stream.id)
        if start_index == places.chunks:
            start_index -= 1  # nothing is left but to see the `finish` again
    opening = aisdk.begin(stream.id, start_index, earlier, replay=replay)
    dialect = aisdk.REPLAY if replay and earlier is not None else aisdk.AI_SDK
    return await follow_frames(request, stream.id, dialect, opening, after=start_index, headers=headers)


def _headers(request: Request) -> dict[str, str]:
    """What an answer of the dialect carries that is no stream."""
    dialect = {name.decode(): value.decode() for name, value in aisdk.AI_SDK.headers}
    return common_headers(request) | dialect


async def _places(pod: Pod, opening: Encoded[aisdk.AiSdkState], stream_id: UUID) -> Places:
    """Read where a client can begin in a stream's chunks so far."""
    reader = Reader(aisdk.AI_SDK, opening, 0)
    places = Places()
    places.read(opening.body)
    cursor = 0
    async with translated(pod.pool):
        while page := await event_log.read(pod.pool, stream_id, cursor):
            places.read(reader.read(page))
            cursor = page[-1].last_seq
    return places


def _start_index(raw: str | None) -> int:
    if raw is None:
        return 0
    if not _START_INDEX.fullmatch(raw):
        raise InvalidRequest(
            f"startIndex is the number of chunks to leave out, or, if negative, of those to send; not {raw!r:.80}."
        )
    return int(raw)
