"""The routes for the Vercel AI SDK: `useChat` with its `DefaultChatTransport`, and `WorkflowChatTransport`.

A page gives each chat an id, which is stored in the metadata of the chat's streams. Its newest stream is the current
answer. A run is one stream, or what follows one of its waits. `WorkflowChatTransport` gets the id of the run when it
sends a message, and asks for the rest of that run; other clients ask for the rest of the chat.

If the last message of a request is the assistant's, the answer continues that message, which is stored with the stream
as the page sent it. A client that follows a run has the message. One that follows a chat may have lost it, so the
message is replayed.

A page answers the questions of a stream that waits by the same request. Then nothing is created: the stream's generator
gets the answers, and the page follows that stream after its wait (`aisdk_waits`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from ..db import event_log, streams
from ..db.postgres import translated
from ..db.stream_creation import NewStream
from ..db.streams import Stream
from ..dialects import aisdk
from ..dialects.aisdk_chunks import AiSdkState
from ..dialects.aisdk_message import Earlier
from ..dialects.aisdk_places import Places
from ..dialects.protocol import Encoded, Reader
from ..errors import (
    AnswerRunning,
    ConversationChanged,
    ConversationGone,
    InboxFull,
    InvalidRequest,
    MessageTooLarge,
    ReservedGenerator,
    StreamEnded,
    UnknownGenerator,
)
from ..pod.pod import Pod
from . import actions, aisdk_approvals, aisdk_turns, aisdk_waits, opening, stopping, waiting_answers
from .aisdk_approvals import Answered
from .aisdk_bodies import (
    REGENERATE,
    SendMessage,
    SendMessages,
    UIMessage,
    continuation_of,
    converted,
    has_last_message_only,
    id_of,
)
from .aisdk_conversations import beside_input
from .event_types import UIMessageChunk
from .following import require_followable
from .models import CreateStream
from .opening import Opening
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, FOLLOWING, JOINING, STREAM
from .request import (
    AsgiResponse,
    common_headers,
    found,
    idempotency_key,
    in_time,
    pod_of,
    pool_of,
    principal_of,
    query_of,
    require_events,
)
from .request_body import parse_json, read_body
from .routing import EVENTS, AnswerHeader, Parameter, Returns, Routes
from .validation import validated

_RUN: Final = re.compile(r"run_([0-9a-f]{32})(?:_([1-9][0-9]{0,9}))?", re.ASCII)
_START_INDEX: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)

_CHAT: Final = {
    "type": "string",
    "minLength": 1,
    "pattern": r"^[^\x00]+$",
    "description": "The id of a chat, or of a run, as in `x-workflow-run-id`.",
}
_FROM: Final = Parameter(
    "startIndex",
    "query",
    "How many chunks to skip. If negative, how many of the chunks so far to send: a few more may come, since the first "
    "one must open a part.",
    {"type": "integer", "minimum": -999_999_999, "maximum": 999_999_999},
)
_REPLAY: Final = Parameter(
    "replay",
    "query",
    "Of a run: also send the message that it continues, as the address of the chat does, and count these chunks. So a "
    "client that asked for a chat can continue with the same stream after the chat has another one.",
    {"type": "boolean"},
)
_RUN_ID: Final = AnswerHeader(
    "x-workflow-run-id",
    "The run: `run_` and the id of the stream, and `_` and the number of the wait that it follows, if any.",
    {"type": "string", "pattern": "^run_[0-9a-f]{32}(_[0-9]+)?$"},
)
_TAIL_INDEX: Final = AnswerHeader(
    "x-workflow-stream-tail-index",
    "Sent if `startIndex` is negative. The index of the first chunk that is sent is this number + `startIndex` + 1.",
    {"type": "integer"},
)
_CHUNKS: Final = "the chunks of the AI SDK's UI message stream, and `[DONE]` after the last one"


ROUTES: Final = Routes("AI SDK", path={"chat": _CHAT})


@ROUTES.route(
    "POST",
    "/v1/ai-sdk/chat",
    "create",
    {200: Returns(f"The answer: {_CHUNKS}.", {EVENTS: UIMessageChunk}, (_RUN_ID,))},
    refusals=(
        *CREATING,
        *JOINING,
        UnknownGenerator,
        ReservedGenerator,
        AnswerRunning,
        ConversationChanged,
        ConversationGone,
        StreamEnded,
        InboxFull,
        MessageTooLarge,
    ),
    body=SendMessages | SendMessage,
    parameters=(IDEMPOTENCY_KEY,),
)
async def send_messages(request: Request) -> AsgiResponse:
    """Queue the answer to a chat's messages, and follow it in the same round trip."""
    require_followable(request)
    body = await read_body(request)
    content = parse_json(body)
    if has_last_message_only(content):
        return await _send_message(request, validated(SendMessage, content), body)
    sent = validated(SendMessages, content)
    answers = await _answers(request, sent, sent.messages)
    if (place := await aisdk_waits.answer(request, answers, _metadata(sent.messages))) is not None:
        return await _follow(request, place.stream, 0, wait=place.seq)
    aisdk_approvals.require_tool_runner(pod_of(request).settings, sent.model, answers)
    messages, places = converted(sent.messages, answers)
    continuation = {**continuation_of(sent.messages, answers), **({} if sent.id is None else beside_input(places))}
    new = _new_stream(request, sent, messages, continuation)
    stream, _ = await actions.create(request, new, body, aisdk_approvals.key_of(request, answers))
    return await _follow(request, stream, 0, continued="message" in continuation)


# With `any`, since a chat's id may have a slash in it.
@ROUTES.route(
    "GET",
    "/v1/ai-sdk/chat/{chat:any}/stream",
    "read",
    {
        200: Returns(f"From `startIndex` on: {_CHUNKS}.", {EVENTS: UIMessageChunk}, (_RUN_ID, _TAIL_INDEX)),
        204: Returns("No answer is running."),
    },
    refusals=FOLLOWING,
    parameters=(_FROM, _REPLAY),
)
async def resume(request: Request) -> AsgiResponse:
    """Send the chunks of a chat's newest stream, or of a run, from `startIndex` on.

    Without `startIndex` the client asks for a running stream, and gets 204 if there is none. With it, the client asks
    again, without a pause, until it has seen a `finish`. So every complete answer ends with one.
    """
    chat = request.path_params["chat"]
    query = query_of(request, {_FROM.name, _REPLAY.name})
    raw = query.get(_FROM.name)
    start_index, replays = _start_index(raw), _replays(query.get(_REPLAY.name))
    async with in_time(request):
        stream = await _stream_of(request, chat)
    if stream is None and raw is not None:
        return Response(aisdk.NO_ANSWER, headers=_headers(request))
    if stream is None or (stream.ended and raw is None and not _RUN.fullmatch(chat)):
        return Response(status_code=204, headers=common_headers(request))
    run = _RUN.fullmatch(chat)
    replay = run is None or replays
    wait = int(run[2]) if run and run[2] and not replay else 0
    return await _follow(request, stream, start_index, replay=replay, wait=wait)


@ROUTES.route(
    "POST",
    "/v1/ai-sdk/chat/{chat:any}/stop",
    "cancel",
    stopping.ANSWERS,
    refusals=(*STREAM, InvalidRequest),
    narrow=True,
)
async def stop(request: Request) -> AsgiResponse:
    """Ask the generator of a chat's newest stream, or of a run, to stop."""
    async with in_time(request):
        stream = await _stream_of(request, request.path_params["chat"])
    return await stopping.stop(request, stream)


async def _send_message(request: Request, sent: SendMessage, body: bytes) -> AsgiResponse:
    """Queue and follow the answer for a page that sends only its last message."""
    last = [] if sent.message is None or sent.trigger == REGENERATE else [sent.message]
    answers = await _answers(request, sent, last)
    if (place := await aisdk_waits.answer(request, answers, _metadata(last))) is not None:
        return await _follow(request, place.stream, 0, wait=place.seq)
    aisdk_approvals.require_tool_runner(pod_of(request).settings, sent.model, answers)
    key = idempotency_key(request, body)
    turn = replace(_turn(sent, last, answers), request_key=None if key is None else key.key)
    whole = await aisdk_turns.continued(request, turn)
    continuation = continuation_of(last, answers)
    stream = whole.repeated
    if stream is None:
        beside = {**continuation, **beside_input(whole.places, turn.digest), "request_key": turn.request_key}
        new = _new_stream(request, sent, whole.messages, beside)
        stream = await aisdk_turns.create(request, new, body, aisdk_approvals.key_of(request, answers) or whole.key)
    return await _follow(request, stream, 0, continued="message" in continuation)


async def _answers(request: Request, sent: SendMessages | SendMessage, messages: Sequence[UIMessage]) -> list[Answered]:
    """Return the user's answers in the message that is continued."""
    last = messages[-1] if messages else None
    parts = last.parts if last is not None and last.role == "assistant" else []
    return await aisdk_approvals.answered(request, sent.id, parts)


def _metadata(messages: Sequence[UIMessage]) -> Any:
    return messages[-1].metadata if messages else None


def _turn(sent: SendMessage, last: Sequence[UIMessage], answers: Sequence[Answered]) -> aisdk_turns.Turn:
    if not last:
        return aisdk_turns.Turn(sent.id, None, message_id=sent.messageId)
    (message,) = last
    if message.role == "system":
        raise InvalidRequest("A message that is sent alone must be the user's or the assistant's.")
    if message.role == "assistant" and id_of(message) is None:
        raise InvalidRequest("An assistant's message that is sent alone needs an id.")
    allowed = [answer.id for answer in answers if answer.approved]
    messages, _ = converted(last, answers)
    return aisdk_turns.Turn(sent.id, messages, message.role, id_of(message), sent.previousMessageId, allowed)


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
    # The protocol cannot say that an answer restarts.
    return actions.new_stream(request, wanted, can_reset=False, continuation=continuation or None)


async def _earlier(request: Request, stream: Stream) -> Earlier | None:
    """Return the message that a stream continues; None if it continues none."""
    async with in_time(request):
        message = (await streams.read_continuation(pool_of(request, stream.id), stream.id)).get("message")
    return None if message is None else Earlier.of(message)


async def _stream_of(request: Request, chat: str) -> Stream | None:
    """Return the stream of a run, or a chat's newest."""
    run = _RUN.fullmatch(chat)
    return await found(request, UUID(run[1])) if run else await _visible(request, chat)


async def _visible(request: Request, chat: str) -> Stream | None:
    """Return a chat's newest stream if the caller may see it."""
    principal = principal_of(request)
    newest = await aisdk_turns.newest(request, chat)
    if newest is None or not principal.sees(newest.tenant, newest.id):
        return None
    principal.require_in_time(newest.ended_at)
    return newest


async def _follow(
    request: Request, stream: Stream, start_index: int, *, replay: bool = False, continued: bool = True, wait: int = 0
) -> AsgiResponse:
    """Follow a stream; `wait` is the number of the event `waiting` whose run is followed, and 0 for the first run."""
    async with in_time(request):
        await require_events(request, stream)
    headers = {_RUN_ID.name: f"run_{stream.id.hex}" + (f"_{wait}" if wait else "")}
    earlier = await _earlier(request, stream) if continued else None
    whole = aisdk.begin(stream.id, 0, earlier, replay=replay)
    run = _Run(await _chunks_before(request, whole, stream.id, wait)) if wait else _Run()
    if start_index < 0:
        places = await _places(pod_of(request), whole, stream.id)
        begun = max(run.base, places.before(max(0, places.chunks + start_index)))
        # The transport adds `startIndex` to this, and counts the chunks that it receives from there.
        index = run.index_of(begun)
        headers[_TAIL_INDEX.name] = str(index - 1 - start_index)
        start_index = index
    elif start_index and (stream.ended or stream.status == "waiting"):
        places = await _places(pod_of(request), whole, stream.id)
        # While it waits, the last chunk that a client has counted is not one of the stream.
        if run.chunks_at(start_index) == places.chunks + (not stream.ended):
            start_index -= 1  # nothing is left but the `finish`, which the client needs to see
    after = run.chunks_at(start_index)
    begin = Opening(
        dialect=aisdk.REPLAY if replay and earlier is not None else aisdk.AI_SDK,
        begun=aisdk.begin(stream.id, after, earlier, replay=replay),
        after=after,
        lead=aisdk.continue_after_wait(stream.id, earlier) if wait and not start_index else b"",
        headers=headers,
    )
    return await opening.follow(request, stream.id, begin)


class _Run(NamedTuple):
    """How a client of a run counts chunks. `base` is how many chunks of the stream precede the run.

    The run after a wait begins with a `start`, which is not a chunk of the stream.
    """

    base: int = 0

    def chunks_at(self, index: int) -> int:
        """Return how many chunks of the stream precede an index."""
        return index if not self.base else self.base + max(index - 1, 0)

    def index_of(self, chunks: int) -> int:
        """Return the index after that many chunks of the stream, which are at least `base`."""
        if not self.base:
            return chunks
        return chunks - self.base + 1 if chunks > self.base else 0


def _headers(request: Request) -> dict[str, str]:
    """Return the headers of an answer in the dialect that is not a stream."""
    dialect = {name.decode(): value.decode() for name, value in aisdk.AI_SDK.headers}
    return common_headers(request) | dialect


async def _places(pod: Pod, begun: Encoded[AiSdkState], stream_id: UUID) -> Places:
    """Find where in a stream's chunks so far a client can begin."""
    reader = Reader(aisdk.AI_SDK, begun, 0)
    places = Places()
    places.read(begun.body)
    pool = pod.shards.of(stream_id).pool
    async with translated(pool):
        async for page in event_log.pages(pool, stream_id):
            places.read(reader.read(page))
    return places


async def _chunks_before(request: Request, begun: Encoded[AiSdkState], stream_id: UUID, wait: int) -> int:
    return await waiting_answers.frames_before(pod_of(request), aisdk.AI_SDK, begun, stream_id, wait)


def _replays(raw: str | None) -> bool:
    if raw not in (None, "true", "1", "false", "0"):
        raise InvalidRequest(f"replay must be true or false, not {raw!r:.80}.")
    return raw in ("true", "1")


def _start_index(raw: str | None) -> int:
    if raw is None:
        return 0
    if not _START_INDEX.fullmatch(raw):
        raise InvalidRequest(
            f"startIndex must be the number of chunks to skip, or, if negative, to send; not {raw!r:.80}."
        )
    return int(raw)
