"""The routes for AG-UI: `HttpAgent` of `@ag-ui/client`, and other clients of AG-UI 1.0.

A thread is a chat, and a run is a stream: its `runId` is remembered as an idempotency key is. The same `runId` is the
same stream, replayed from its beginning. The id of a stream is its `runId` as well, so a client can join a stream that
was created elsewhere. A client that leaves does not end its run.

A run that a stream's wait has interrupted is continued by the answers in `resume` (`agui_resuming`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from ..db import stream_creation, streams
from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..dialects import agui
from ..dialects.agui import AG_UI
from ..dialects.agui_events import Run
from ..errors import (
    InboxFull,
    InvalidRequest,
    MessageTooLarge,
    ReservedGenerator,
    StreamEnded,
    UnknownGenerator,
)
from ..stream_ids import is_of_stream
from . import across_databases, actions, agui_resuming, aisdk_approvals, aisdk_turns, opening, stopping, waiting_answers
from .agui_bodies import RunAgentInput, as_json, calls_of, places_of, shown, thoughts_of
from .aisdk_approvals import Answered
from .aisdk_conversations import beside_input
from .event_types import AgUiEvent
from .following import require_followable
from .models import CreateStream
from .opening import Opening
from .refusals import CREATING, FOLLOWING, JOINING, STREAM
from .request import (
    AsgiResponse,
    common_headers,
    found,
    in_time,
    key_lifetime_seconds,
    pod_of,
    pool_of,
    principal_of,
    require_events,
)
from .request_body import parse_json, read_body, read_input, release_body
from .routing import EVENTS, Returns, Routes
from .validation import validated

Json = dict[str, Any]

_STREAM_ID: Final = re.compile(r"(?:run_|msg_)?([0-9a-f]{32})|([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)
# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tag-ui "
_REUSED: Final = "This runId belongs to a run of another thread. Use a new one for each run."
# A state of each client has the conversation, so that a restarted answer can be put after it.
_MOST_HISTORY_BYTES: Final = 64 << 10
_NOT_ALLOWED: Final = "Error: the user did not allow this call"

_GENERATOR: Final = {"type": "string", "minLength": 1, "pattern": r"^[^\x00]+$", "description": "The generator."}
_RUN: Final = {
    "type": "string",
    "minLength": 1,
    "pattern": r"^[^\x00]+$",
    "description": "The `runId`, the id of a stream, or a `threadId`, which means the newest run of the thread.",
}
_EVENTS: Final = "the events of AG-UI"

ROUTES: Final = Routes("AG-UI", path={"generator": _GENERATOR, "run": _RUN})


@ROUTES.route(
    "POST",
    "/v1/ag-ui/{generator:any}/runs/{run:any}/connect",
    "read",
    {200: Returns(f"The whole run: {_EVENTS}; nothing, if the thread has none.", {EVENTS: AgUiEvent})},
    refusals=(*FOLLOWING, InvalidRequest),
    body=RunAgentInput,
    body_required=False,
)
async def connect(request: Request) -> AsgiResponse:
    """Send a run from its beginning, after the messages before it. Nothing is created.

    The client replaces its messages. If it sends those that it has, its parts of the reasoning are replaced too.
    """
    require_followable(request)
    body = await read_body(request)
    sent = validated(RunAgentInput, parse_json(body)).messages if body.strip() else []
    release_body(request)
    stream = await _find(request, request.path_params["run"])
    if stream is None:
        return Response(b"", headers=common_headers(request) | {n.decode(): v.decode() for n, v in AG_UI.headers})
    return await _replay(request, stream, sent)


@ROUTES.route(
    "POST",
    "/v1/ag-ui/{generator:any}/runs/{run:any}/stop",
    "cancel",
    stopping.ANSWERS,
    refusals=(*STREAM, InvalidRequest),
    narrow=True,
)
async def stop_run(request: Request) -> AsgiResponse:
    """Ask the generator of a run to stop."""
    return await stopping.stop(request, await _find(request, request.path_params["run"]))


@ROUTES.route(
    "POST",
    "/v1/ag-ui/{generator:any}",
    "create",
    {200: Returns(f"The run: {_EVENTS}.", {EVENTS: AgUiEvent})},
    refusals=(*CREATING, *JOINING, UnknownGenerator, ReservedGenerator, StreamEnded, InboxFull, MessageTooLarge),
    body=RunAgentInput,
)
async def run_agent(request: Request) -> AsgiResponse:
    """Start a run, and follow it. The same `runId` again replays the run; `resume` continues an interrupted one."""
    require_followable(request)
    body = await read_body(request)
    sent = validated(RunAgentInput, parse_json(body))
    if sent.resume:
        resumed = await agui_resuming.resume(request, sent)
        if resumed.place is not None:
            return await _continue(request, *resumed.place)
        return await _create(request, sent, body, resumed.answers)
    stream = await _stream_with_id(request, sent.runId)
    if stream is not None:
        principal_of(request).require("read")
        release_body(request)
        return await _replay(request, stream, sent.messages)
    return await _create(request, sent, body, ())


async def _create(request: Request, sent: RunAgentInput, body: bytes, answers: Sequence[Answered]) -> AsgiResponse:
    """Queue the stream of a run, and follow it; `answers` are those to questions of an answer that has ended."""
    generator: str = request.path_params["generator"]
    aisdk_approvals.require_tool_runner(pod_of(request).settings, generator, answers)
    given = sent.given()
    given["messages"] = [*sent.messages, *_refused(answers)]
    history = as_json(given["messages"])
    beside = {
        **beside_input(places_of(given["messages"])),
        "agui": {"thread": sent.threadId, "run": sent.runId},
        **({"approvals": [answer.as_approval() for answer in answers if answer.approved]} if answers else {}),
    }
    wanted = validated(CreateStream, {"generator": generator, "input": given, "metadata": {"chat": sent.threadId}})
    can_reset = len(history) <= _MOST_HISTORY_BYTES
    new = actions.new_stream(request, wanted, can_reset=can_reset, continuation=beside)
    key = aisdk_approvals.key_of(request, answers) or _key(request, sent.runId, sent.threadId)
    stream, created = await actions.create(request, new, body, key)
    run = Run(sent.threadId, sent.runId, stream.id.hex, _kept(history), calls_of(given["messages"]))
    messages = sent.messages
    del body, given, history, new, wanted, beside
    if not created:
        # The same runId does not prove that the caller knows the messages before the answer.
        principal_of(request).require("read")
        return await _replay(request, stream, messages)
    release_body(request)
    return await opening.follow(request, stream.id, Opening(dialect=AG_UI, begun=agui.begin(run, str(stream.id))))


def _refused(answers: Sequence[Answered]) -> list[Json]:
    """Return the results of the calls that the user did not allow: models want one of every call."""
    return [
        {
            "id": f"{answer.id}.result",
            "role": "tool",
            "toolCallId": answer.call_id,
            "content": f"{_NOT_ALLOWED}: {answer.reason}" if answer.reason else f"{_NOT_ALLOWED}.",
        }
        for answer in answers
        if not answer.approved
    ]


async def _replay(request: Request, stream: Stream, has: Sequence[Json]) -> AsgiResponse:
    """Follow a stream from its beginning, after the messages before it. `has` are the messages of the client."""
    async with in_time(request):
        await require_events(request, stream)
    run, messages = await _run(request, stream)
    thoughts = thoughts_of(has, stream.id.hex)
    begun = agui.begin(run, str(stream.id), None if messages is None else as_json(messages), thoughts)
    del messages
    return await opening.follow(request, stream.id, Opening(dialect=AG_UI, begun=begun))


async def _continue(request: Request, stream: Stream, wait: int) -> AsgiResponse:
    """Follow a stream after its wait, whose event has this number."""
    run, _ = await _run(request, stream)
    begun = agui.begin(run, str(stream.id))
    after = await waiting_answers.frames_before(pod_of(request), AG_UI, begun, stream.id, wait)
    begin = Opening(dialect=AG_UI, begun=begun, after=after)
    return await opening.follow(request, stream.id, begin)


async def _run(request: Request, stream: Stream) -> tuple[Run, list[Json] | None]:
    """Return the run of a stream, and the messages before its answer; None if its input is no conversation."""
    async with in_time(request):
        beside = await streams.read_continuation(pool_of(request, stream.id), stream.id)
        asked = await read_input(request, stream.id)
    messages = shown(asked, beside, stream.id.hex)
    names: Mapping[str, str] = beside.get("agui") or {}
    run = Run(
        names.get("thread") or str(stream.metadata.get("chat") or stream.id),
        names.get("run") or f"run_{stream.id.hex}",
        stream.id.hex,
        None if messages is None else _kept(as_json(messages)),
        calls_of(messages or ()),
    )
    return run, messages


def _kept(history: bytes) -> bytes | None:
    return history if len(history) <= _MOST_HISTORY_BYTES else None


def _key(request: Request, run: str, thread: str) -> IdempotencyKey:
    name = hashlib.sha256(run.encode(errors="surrogatepass")).hexdigest()
    digest = hashlib.sha256(thread.encode(errors="surrogatepass")).digest()
    return IdempotencyKey(_KEY_PREFIX + name, digest, key_lifetime_seconds(request), conflict=_REUSED)


async def _find(request: Request, name: str) -> Stream | None:
    """Return the stream with an id, that of a run, or the newest of a thread; None if the caller sees none.

    Raises:
        StreamExpired, StreamNotFound: the name is one that only streams have. An empty run would look like its end.
        Unauthenticated: the caller's token has expired, some time after the stream's end.
    """
    stream = await _stream_with_id(request, name) or await _stream_of_run(request, name)
    if stream is None:
        async with in_time(request):
            stream = _visible(request, await aisdk_turns.newest(request, name))
    if stream is not None:
        principal_of(request).require_in_time(stream.ended_at)
    elif (named := _STREAM_ID.fullmatch(name)) and named[1] and name != named[1]:
        async with in_time(request):
            return await found(request, UUID(named[1]))
    return stream


async def _stream_with_id(request: Request, name: str) -> Stream | None:
    named = _STREAM_ID.fullmatch(name)
    stream_id = UUID(named[1] or named[2]) if named else None
    # Clients make up random ids, which are of another version.
    if stream_id is None or not is_of_stream(stream_id):
        return None
    async with in_time(request):
        return _visible(request, await across_databases.get(request, stream_id))


async def _stream_of_run(request: Request, run: str) -> Stream | None:
    key, tenant = _key(request, run, "").key, principal_of(request).tenant
    # The database is that of the thread, which the request does not name.
    stream = await across_databases.first(
        pod_of(request).shards.all_open(), lambda shard: stream_creation.created_by(shard.pool, tenant, key)
    )
    return _visible(request, stream)


def _visible(request: Request, stream: Stream | None) -> Stream | None:
    return stream if stream is not None and principal_of(request).sees(stream.tenant, stream.id) else None
