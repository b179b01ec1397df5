"""The routes of LangGraph's runs: create, follow, wait, cancel.

The answer that begins a run names it in `Content-Location`, and in `Location` the address at which the SDKs follow it
after a cut, with the stream modes. Both are relative to the base URL of the clients, which has the prefix of these
routes. A run without a thread gets a thread of its own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from ..db.stream_lists import StreamFilter
from ..dialects.langgraph import MODES, LangGraph, LangGraphResult, Mode
from ..errors import (
    AnswerRunning,
    ConversationGone,
    InboxFull,
    InvalidRequest,
    LangGraphNotSupported,
    MessageTooLarge,
    NothingToResume,
    RequestMemoryFull,
    ReservedGenerator,
    StreamEnded,
    UnknownGenerator,
)
from ..events import MAX_SEQ, parse_cursor
from . import across_databases, actions, langgraph_reading, langgraph_turns, opening
from .admission import Handler
from .answering import cancelling
from .event_types import LangGraphEvent
from .following import require_followable
from .langgraph_bodies import CancelRun, CreateRun, JoinRun, ListRuns, RunContent, modes_of
from .langgraph_errors import LANGGRAPH_ERROR
from .langgraph_reading import FoundRun
from .models import metadata_alternatives
from .opening import Opening
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, FOLLOWING, JOINING, WHOLE
from .request import (
    AsgiResponse,
    charge_rows,
    common_headers,
    header_of,
    in_time,
    json_answer,
    principal_of,
    query_of,
)
from .request_body import parse_json, read_body, release_body
from .routing import EVENTS, JSON, AnswerHeader, Parameter, Returns, Routes
from .validation import validated

PREFIX: Final = "/v1/langgraph"
THREAD: Final = {"type": "string", "minLength": 1, "description": "The id of a thread: `metadata.chat` of its streams."}
RUN: Final = {
    "type": "string",
    "description": "The id of a run: that of its stream, and `_` and the number of the wait that it follows, if any.",
}
_FROM_THE_START: Final = "-1"
# Of the runs of a thread that are filtered by their status.
_MOST_LISTED: Final = 1000
_CURSOR: Final = Parameter(
    "Last-Event-ID",
    "header",
    "The number of the last frame that the client has.",
    {"type": "string", "pattern": "^(-1|[0-9]{0,18})$"},
)
_STARTING: Final = (
    *CREATING,
    *JOINING,
    AnswerRunning,
    ConversationGone,
    InboxFull,
    LangGraphNotSupported,
    MessageTooLarge,
    NothingToResume,
    ReservedGenerator,
    StreamEnded,
    UnknownGenerator,
)
_LOCATION: Final = AnswerHeader("location", "Where to follow the run, relative to the base URL of LangGraph's clients.")
_RUN_LOCATION: Final = AnswerHeader("content-location", "The run, relative to the base URL of LangGraph's clients.")
_FRAMES: Final = Returns("The events of the run.", {EVENTS: LangGraphEvent}, (_LOCATION, _RUN_LOCATION))
_CREATED: Final = Returns("The run.", {JSON: RunContent}, (_RUN_LOCATION,))
_RESULT: Final = Returns(
    "The values of the thread; `__interrupt__` in them is what it waits for. Or `__error__`.", {JSON: dict[str, Any]}
)

_THREADS: Final = uuid.UUID("0a6f1f3e-6d0c-5d0f-9f0b-2f1d5a0c7b11")  # the namespace of their ids

ROUTES: Final = Routes("LangGraph", path={"thread": THREAD, "run": RUN}, form=LANGGRAPH_ERROR)


def _beginning(path: str, answer: Returns) -> Callable[[Handler], Handler]:
    """Return the decorator of a route that begins a run."""
    return ROUTES.route(
        "POST",
        PREFIX + path,
        "create",
        {200: answer},
        refusals=_STARTING,
        body=CreateRun,
        parameters=(IDEMPOTENCY_KEY,),
    )


@_beginning("/runs/stream", _FRAMES)
async def stream_new_thread(request: Request) -> AsgiResponse:
    """Begin a run of a new thread, and follow it."""
    return await _stream(request, _new_thread(request))


@_beginning("/threads/{thread}/runs/stream", _FRAMES)
async def stream_run(request: Request) -> AsgiResponse:
    """Begin a run of a thread, or answer its interrupt, and follow it."""
    return await _stream(request, request.path_params["thread"])


@_beginning("/runs/wait", _RESULT)
async def wait_for_new_thread(request: Request) -> AsgiResponse:
    """Begin a run of a new thread, and wait for its end."""
    return await _wait(request, _new_thread(request))


@_beginning("/threads/{thread}/runs/wait", _RESULT)
async def wait_for_run(request: Request) -> AsgiResponse:
    """Begin a run of a thread, or answer its interrupt, and wait for its end."""
    return await _wait(request, request.path_params["thread"])


@_beginning("/runs", _CREATED)
async def create_run_of_new_thread(request: Request) -> AsgiResponse:
    """Begin a run of a new thread."""
    return await _create(request, _new_thread(request))


@_beginning("/threads/{thread}/runs", _CREATED)
async def create_run(request: Request) -> AsgiResponse:
    """Begin a run of a thread, or answer its interrupt."""
    return await _create(request, request.path_params["thread"])


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}/runs",
    "read",
    {200: Returns("The runs, the newest first.", {JSON: list[RunContent]})},
    refusals=(*WHOLE, InvalidRequest),
    query=(ListRuns,),
)
async def list_runs(request: Request) -> AsgiResponse:
    """List the runs of a thread: of each stream the newest one."""
    options = validated(ListRuns, query_of(request, ListRuns.model_fields))
    thread_id = request.path_params["thread"]
    principal = principal_of(request)
    principal.require_tenant()
    wanted = StreamFilter(principal.tenant, metadata=metadata_alternatives({"chat": thread_id}))
    end = options.offset + options.limit
    async with in_time(request):
        # How many of the runs have the status is not known before.
        most = end if options.status is None else _MOST_LISTED
        page = await across_databases.find(across_databases.homes_of_chat(request, thread_id), wanted, most)
        charge_rows(request, page.scanned)
        skipped = options.offset if options.status is None else 0
        runs = [await langgraph_reading.latest_run(request, thread_id, stream) for stream in page.streams[skipped:]]
    listed = [run for run in runs if options.status in {None, run.status}][options.offset - skipped : end - skipped]
    return json_answer(request, [langgraph_reading.run_content(run) for run in listed])


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}/runs/{run}",
    "read",
    {200: Returns("The run.", {JSON: RunContent})},
    refusals=WHOLE,
)
async def get_run(request: Request) -> AsgiResponse:
    """Return a run."""
    return json_answer(request, langgraph_reading.run_content(await _found(request)))


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}/runs/{run}/stream",
    "read",
    {200: _FRAMES},
    refusals=(*FOLLOWING, LangGraphNotSupported, RequestMemoryFull),
    query=(JoinRun,),
    parameters=(_CURSOR,),
)
async def join_stream(request: Request) -> AsgiResponse:
    """Follow a run after the frame `Last-Event-ID`; without it, or with `-1`, from its beginning."""
    options = validated(JoinRun, query_of(request, {"cancel_on_disconnect"}))
    cancels = _require_cancel(request, cancels=options.cancel_on_disconnect)
    modes = modes_of(request.query_params.getlist("stream_mode"), MODES)
    given = header_of(request, "Last-Event-ID")
    after = 0 if given == _FROM_THE_START else min(parse_cursor(given), MAX_SEQ)
    return await _follow(request, await _found(request), modes, after, cancels=cancels)


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}/runs/{run}/join",
    "read",
    {200: _RESULT},
    refusals=(*FOLLOWING, RequestMemoryFull),
    query=(JoinRun,),
)
async def join_run(request: Request) -> AsgiResponse:
    """Wait for the end of a run."""
    options = validated(JoinRun, query_of(request, {"cancel_on_disconnect"}))
    cancels = _require_cancel(request, cancels=options.cancel_on_disconnect)
    return await _result(request, await _found(request), cancels=cancels)


@ROUTES.route(
    "POST",
    PREFIX + "/threads/{thread}/runs/{run}/cancel",
    "cancel",
    {202: Returns("The run was asked to stop."), 200: _RESULT},
    refusals=(*FOLLOWING, LangGraphNotSupported, RequestMemoryFull),
    query=(CancelRun,),
)
async def cancel_run(request: Request) -> AsgiResponse:
    """Cancel a run; with `wait=1`, wait for its end. What it has said stays in the thread."""
    options = validated(CancelRun, query_of(request, CancelRun.model_fields))
    if options.action != "interrupt":
        raise LangGraphNotSupported(f"action: {options.action!r:.40} is not supported. Use `interrupt`.")
    there = await _found(request)
    if there.is_last:
        await actions.cancel(request, there.stream.id)
    if not options.wait:
        return Response(status_code=202, headers=common_headers(request))
    principal_of(request).require("read")
    return await _result(request, there, quiet=True)


async def _stream(request: Request, thread_id: str) -> AsgiResponse:
    require_followable(request)
    body = await read_body(request)
    wanted = validated(CreateRun, parse_json(body))
    cancels = _require_cancel(request, cancels=wanted.on_disconnect == "cancel")
    there = await langgraph_turns.start(request, thread_id, wanted, body)
    modes = modes_of(wanted.stream_mode)
    del body, wanted
    release_body(request)
    return await _follow(request, there, modes, 0, cancels=cancels)


async def _wait(request: Request, thread_id: str) -> AsgiResponse:
    require_followable(request)
    body = await read_body(request)
    wanted = validated(CreateRun, parse_json(body))
    cancels = _require_cancel(request, cancels=wanted.on_disconnect == "cancel")
    there = await langgraph_turns.start(request, thread_id, wanted, body)
    del body
    release_body(request)
    return await _result(request, there, cancels=cancels)


async def _create(request: Request, thread_id: str) -> AsgiResponse:
    body = await read_body(request)
    wanted = validated(CreateRun, parse_json(body))
    there = await langgraph_turns.start(request, thread_id, wanted, body)
    headers = {_RUN_LOCATION.name: _address(there)}
    return json_answer(request, langgraph_reading.run_content(there), headers=headers)


async def _found(request: Request) -> FoundRun:
    return await langgraph_reading.find(request, request.path_params["thread"], request.path_params["run"])


async def _follow(
    request: Request, there: FoundRun, modes: Sequence[Mode], after: int, *, cancels: bool = False
) -> AsgiResponse:
    address = _address(there)
    query = urlencode([("stream_mode", mode) for mode in modes])
    dialect = LangGraph(there.run, modes)
    earlier = await langgraph_reading.earlier(request, there)
    begin = Opening(
        dialect=dialect,
        begun=await asyncio.to_thread(dialect.begin, earlier, after),
        after=after,
        headers={_LOCATION.name: f"{address}/stream?{query}", _RUN_LOCATION.name: address},
        on_gone=cancelling(request, there.stream.id) if cancels else None,
    )
    return await opening.follow(request, there.stream.id, begin)


async def _result(request: Request, there: FoundRun, *, quiet: bool = False, cancels: bool = False) -> AsgiResponse:
    """Answer with the values of the thread at the end of a run."""
    address = _address(there)
    dialect = LangGraphResult(there.run, quiet=quiet)
    earlier = await langgraph_reading.earlier(request, there)
    begin = Opening(
        dialect=dialect,
        begun=await asyncio.to_thread(dialect.begin, earlier),
        headers={_LOCATION.name: f"{address}/join", _RUN_LOCATION.name: address},
        on_gone=cancelling(request, there.stream.id) if cancels else None,
    )
    return await opening.follow(request, there.stream.id, begin)


def _require_cancel(request: Request, *, cancels: bool) -> bool:
    """Raise Forbidden, before anything is created, if a run is to be cancelled by a caller that may not do so."""
    if cancels:
        principal_of(request).require("cancel")
    return cancels


def _address(there: FoundRun) -> str:
    return f"/threads/{quote(there.run.thread_id, safe='')}/runs/{there.run.id}"


def _new_thread(request: Request) -> str:
    """Return the id of a new thread. A repeated request has the same, so that its thread is found in one database."""
    key = header_of(request, "Idempotency-Key")
    return str(uuid.uuid4() if key is None else uuid.uuid5(_THREADS, f"{principal_of(request).tenant}\n{key}"))
