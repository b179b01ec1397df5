"""The routes of LangGraph's assistants and threads; and answers by name for what Baton does not support.

These are the routes that the stock clients call legacy, below a prefix: a client's URL is `https://…/v1/langgraph`. An
assistant is a generator. A thread is a chat: nothing is stored for it before its first run, so every id names a thread.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from typing_extensions import TypedDict

from ..errors import (
    InvalidRequest,
    LangGraphNotSupported,
    NotHere,
    PathTaken,
    RequestMemoryFull,
    UnknownModel,
)
from ..pod.pod import Pod
from ..version import __version__
from . import langgraph_reading, openai_models, problems
from .langgraph_bodies import (
    AssistantContent,
    CreateThread,
    ReadHistory,
    SearchAssistants,
    ThreadContent,
    ThreadState,
)
from .langgraph_errors import LANGGRAPH_ERROR
from .langgraph_runs import PREFIX, THREAD
from .refusals import GUARDED, READING, WHOLE
from .request import AsgiResponse, in_time, json_answer, pod_of, principal_of
from .request_body import parse_json, read_body
from .routing import JSON, Returns, Routes
from .validation import validated

_ALL_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_EPOCH: Final = datetime.fromtimestamp(0, UTC).isoformat()
_LEGACY: Final = "The thread protocol is not supported. Use `client.runs`, or `useStream` of langgraph-sdk/react."
# Parts of LangGraph's API, by how their paths begin or end, and what to do instead.
_NOT_SUPPORTED: Final = (
    ("/store", "The store is not supported: keep what an agent remembers in a database of your own."),
    ("/runs/crons", "Crons are not supported: begin a run with `after_seconds`, or from a scheduler of your own."),
    ("/commands", _LEGACY),
    ("/stream/events", _LEGACY),
    ("/state", "The state of a thread can be read, and not changed: send a message, or an answer to its interrupt."),
    ("/history", "Only `POST` reads the history of a thread."),
    ("/assistants", "Assistants are Baton's generators: list them with `POST /assistants/search`."),
    ("/threads", "A thread is what its runs have said: this request for threads is not supported."),
    ("/runs", "This request for runs is not supported."),
)
_READING: Final = (*WHOLE, InvalidRequest, RequestMemoryFull)

ROUTES: Final = Routes(
    "LangGraph",
    path={"thread": THREAD, "assistant": {"type": "string", "minLength": 1, "description": "The name of a generator."}},
    form=LANGGRAPH_ERROR,
)


class ServerInfo(TypedDict):
    """What answers here."""

    version: str
    flags: dict[str, bool]


@ROUTES.route("GET", PREFIX + "/info", "read", {200: Returns("The release.", {JSON: ServerInfo})}, refusals=GUARDED)
async def describe_server(request: Request) -> AsgiResponse:
    """Return the release of Baton. Pages of LangGraph ask for it to see whether a server is there."""
    principal_of(request).require_tenant()
    content: ServerInfo = {"version": __version__, "flags": {"assistants": True, "crons": False}}
    return json_answer(request, content)


@ROUTES.route(
    "POST",
    PREFIX + "/assistants/search",
    "read",
    {200: Returns("The assistants.", {JSON: list[AssistantContent]})},
    refusals=(*READING, InvalidRequest, RequestMemoryFull),
    body=SearchAssistants,
    body_required=False,
)
async def search_assistants(request: Request) -> AsgiResponse:
    """List the assistants: the generators of this pod and of the workers."""
    wanted = validated(SearchAssistants, await _json(request))
    principal_of(request).require_tenant()
    names = await _names(pod_of(request))
    # No assistant has metadata that a filter could match.
    shown = [name for name in names if wanted.graph_id in {None, name} and (wanted.name or "") in name]
    page = [] if wanted.metadata else shown[wanted.offset : wanted.offset + wanted.limit]
    return json_answer(request, [_assistant(name) for name in page])


@ROUTES.route(
    "GET",
    PREFIX + "/assistants/{assistant}",
    "read",
    {200: Returns("The assistant.", {JSON: AssistantContent})},
    refusals=(*READING, UnknownModel),
)
async def get_assistant(request: Request) -> AsgiResponse:
    """Return an assistant, if it exists."""
    name = request.path_params["assistant"]
    principal_of(request).require_tenant()
    if name not in await _names(pod_of(request)):
        raise UnknownModel(f"There is no assistant called {name!r:.80}.")
    return json_answer(request, _assistant(name))


@ROUTES.route(
    "POST",
    PREFIX + "/threads",
    "create",
    {200: Returns("The thread.", {JSON: ThreadContent})},
    refusals=(*_READING, LangGraphNotSupported, PathTaken),
    body=CreateThread,
    body_required=False,
)
async def create_thread(request: Request) -> AsgiResponse:
    """Return a thread. It begins with its first run: nothing is stored now, and no metadata is kept."""
    wanted = validated(CreateThread, await _json(request))
    principal_of(request).require_tenant()
    for name in ("ttl", "supersteps"):
        if getattr(wanted, name) is not None:
            raise LangGraphNotSupported(f"{name}: a thread is what its runs have said. Leave it out.")
    if wanted.thread_id is None:
        return json_answer(request, _new_thread(str(uuid.uuid4())))
    stream = await langgraph_reading.newest(request, wanted.thread_id)
    if stream is not None and wanted.if_exists != "do_nothing":
        raise PathTaken(f"The thread {wanted.thread_id!r:.80} has runs already. Use another id, or `if_exists`.")
    return json_answer(request, await _thread(request, wanted.thread_id))


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}",
    "read",
    {200: Returns("The thread.", {JSON: ThreadContent})},
    refusals=_READING,
)
async def get_thread(request: Request) -> AsgiResponse:
    """Return a thread, with the values of its latest state. One without runs is idle."""
    return json_answer(request, await _thread(request, request.path_params["thread"]))


@ROUTES.route(
    "GET",
    PREFIX + "/threads/{thread}/state",
    "read",
    {200: Returns("The latest state.", {JSON: ThreadState})},
    refusals=_READING,
)
async def get_thread_state(request: Request) -> AsgiResponse:
    """Return the latest state of a thread: its messages, and what it waits for. A growing message is not in it."""
    state = await _state(request, request.path_params["thread"])
    return json_answer(request, langgraph_reading.no_state() if state is None else state)


@ROUTES.route(
    "POST",
    PREFIX + "/threads/{thread}/history",
    "read",
    {200: Returns("The latest state, if the thread has runs.", {JSON: list[ThreadState]})},
    refusals=(*_READING, LangGraphNotSupported),
    body=ReadHistory,
    body_required=False,
)
async def get_thread_history(request: Request) -> AsgiResponse:
    """Return the states of a thread: there is only the latest one."""
    wanted = validated(ReadHistory, await _json(request))
    if wanted.before is not None:
        raise LangGraphNotSupported("before: Baton keeps only the latest state of a thread. Leave it out.")
    state = await _state(request, request.path_params["thread"])
    return json_answer(request, [] if state is None else [state])


@ROUTES.undocumented(PREFIX + "{rest:any}", "read", methods=_ALL_METHODS)
async def not_supported(request: Request) -> AsgiResponse:
    """Answer for the rest of LangGraph's API by name."""
    path: str = request.path_params["rest"]
    about = f"{request.method:.20} {problems.path_of(request):.200}"
    for part, sentence in _NOT_SUPPORTED:
        if path.startswith(part) or path.endswith(part):
            raise LangGraphNotSupported(f"{about}: {sentence}")
    raise NotHere(f"No route for {about}.")


async def _json(request: Request) -> Any:
    body = await read_body(request)
    return parse_json(body) if body else {}


async def _names(pod: Pod) -> list[str]:
    return sorted(await openai_models.names(pod))


async def _state(request: Request, thread_id: str) -> ThreadState | None:
    stream = await langgraph_reading.newest(request, thread_id)
    if stream is None:
        return None
    async with in_time(request):
        there = await langgraph_reading.latest_run(request, thread_id, stream)
    return langgraph_reading.thread_state(there, await langgraph_reading.state_of(request, there))


async def _thread(request: Request, thread_id: str) -> ThreadContent:
    stream = await langgraph_reading.newest(request, thread_id)
    if stream is None:
        return _new_thread(thread_id)
    async with in_time(request):
        there = await langgraph_reading.latest_run(request, thread_id, stream)
    state = langgraph_reading.thread_state(there, await langgraph_reading.state_of(request, there))
    changed_at = state["created_at"] or stream.created_at.isoformat()
    return {
        "thread_id": thread_id,
        "created_at": stream.created_at.isoformat(),
        "updated_at": changed_at,
        "state_updated_at": changed_at,
        "metadata": {"graph_id": stream.generator, "assistant_id": stream.generator},
        "status": langgraph_reading.thread_status(stream),
        "config": {},
        "values": state["values"],
        "interrupts": {there.run.id: state["interrupts"]} if state["interrupts"] else {},
    }


def _new_thread(thread_id: str) -> ThreadContent:
    now = datetime.now(UTC).isoformat()
    return {
        "thread_id": thread_id,
        "created_at": now,
        "updated_at": now,
        "state_updated_at": now,
        "metadata": {},
        "status": "idle",
        "config": {},
        "values": None,
        "interrupts": {},
    }


def _assistant(name: str) -> AssistantContent:
    return {
        "assistant_id": name,
        "graph_id": name,
        "name": name,
        "description": None,
        "config": {},
        "context": {},
        "metadata": {},
        "version": 1,
        "created_at": _EPOCH,
        "updated_at": _EPOCH,
    }
