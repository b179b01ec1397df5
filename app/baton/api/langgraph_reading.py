"""Reading a thread and its runs: a thread is a chat, and a run is one of its streams, or what follows a wait of one.

The state of a thread is made from its newest stream by the dialect itself, so that it has the same messages, with the
same ids, as the frames of its runs. Nothing here is locked: a state may be older than the answer to a later request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.requests import Request

from ..db import event_log
from ..db.event_log import Batch
from ..db.streams import Stream
from ..dialects import langgraph_messages as messages
from ..dialects.langgraph import LangGraph, LangGraphState, Run, run_of
from ..errors import StreamNotFound
from ..events import STREAM_ID
from ..generators.conversation import messages as chat_messages
from . import aisdk_turns, stored_conversations
from .langgraph_bodies import RunContent, RunStatus, ThreadState, ThreadStatus
from .request import found, in_time, pool_of, principal_of, require_events
from .stored_conversations import Message

Json = dict[str, Any]

_RUN: Final = re.compile(rf"({STREAM_ID})(?:_([1-9][0-9]{{0,9}}))?", re.ASCII)
_WAITING: Final = '{"type":"waiting"'
_THREAD_STATES: Final[dict[str, ThreadStatus]] = {"waiting": "interrupted", "completed": "idle", "cancelled": "idle"}
_RUN_STATES: Final[dict[str, RunStatus]] = {
    "queued": "pending",
    "waiting": "interrupted",
    "completed": "success",
    "failed": "error",
    "cancelled": "interrupted",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of a stream: the number of its event, and what the generator gave."""

    seq: int
    waits_for: Any


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run, its stream, and the numbers of the stream's waits."""

    run: Run
    stream: Stream
    waits: Sequence[int]

    @property
    def is_last(self) -> bool:
        """Whether the stream has no later run."""
        return not self.waits or self.waits[-1] <= self.run.wait

    @property
    def status(self) -> RunStatus:
        """How far the run is. A run that has ended with a question is interrupted, whatever follows."""
        if not self.is_last:
            return "interrupted"
        if self.stream.status == "waiting":
            # Its answer is on the way.
            return "pending"
        return _RUN_STATES.get(self.stream.status, "running")


async def newest(request: Request, thread_id: str) -> Stream | None:
    """Return a thread's newest stream if the caller may see it; None without one.

    Raises:
        Forbidden: the caller may read only one stream.
    """
    principal = principal_of(request)
    principal.require_tenant()
    async with in_time(request):
        stream = await aisdk_turns.newest(request, thread_id)
    if stream is not None:
        principal.require_in_time(stream.ended_at)
    return stream


async def find(request: Request, thread_id: str, run_id: str) -> FoundRun:
    """Return a run of a thread.

    Raises:
        RawContent, StreamExpired, Unauthenticated, Unavailable: it cannot be read.
        StreamNotFound: the thread has no such run.
    """
    parsed = _RUN.fullmatch(run_id)
    if parsed is None:
        raise StreamNotFound(f"There is no run {run_id!r:.80}.")
    wait = int(parsed[2] or 0)
    async with in_time(request):
        stream = await found(request, UUID(parsed[1]))
        await require_events(request, stream)
        waits = await waits_of(request, stream)
    if str(stream.metadata.get("chat")) != thread_id or (wait and all(wait != known.seq for known in waits)):
        raise StreamNotFound(f"The thread {thread_id!r:.80} has no run {run_id!r:.80}.")
    alone = principal_of(request).stream_id is not None
    return FoundRun(run_of(stream, thread_id, wait, alone=alone), stream, [known.seq for known in waits])


async def latest_run(request: Request, thread_id: str, stream: Stream) -> FoundRun:
    """Return the newest run of a stream of a thread that somebody has started."""
    waits = [wait.seq for wait in await waits_of(request, stream)]
    begun = waits[:-1] if stream.status == "waiting" else waits
    return FoundRun(run_of(stream, thread_id, begun[-1] if begun else 0), stream, waits)


async def waits_of(request: Request, stream: Stream) -> list[Wait]:
    """Return the waits of a stream. The log of one that has not waited is not read."""
    if stream.run <= 1 and stream.waiting_since is None:
        return []
    found_waits: list[Wait] = []
    async for page in event_log.pages(pool_of(request, stream.id), stream.id):
        for batch in page:
            for seq, line in enumerate(batch.lines, batch.first_seq):
                if line.startswith(_WAITING):
                    found_waits.append(Wait(seq, orjson.loads(line)["for"]))
    return found_waits


async def earlier(request: Request, there: FoundRun) -> list[Json]:
    """Return the messages of a thread before a run's stream. Raises what `stored_conversations.read` raises."""
    said = await stored_conversations.before_answer(request, there.stream, alone=there.run.alone)
    return await asyncio.to_thread(as_langchain, said)


async def state_of(request: Request, there: FoundRun) -> LangGraphState:
    """Return the state of a run, after all of its events so far.

    Raises:
        Forbidden, InvalidRequest, LogDamaged, Unavailable: it cannot be read.
    """
    before = await earlier(request, there)
    batches: list[Batch] = []
    async with in_time(request):
        async for page in event_log.pages(pool_of(request, there.stream.id), there.stream.id):
            batches += page
    return await asyncio.to_thread(after_all, there.run, before, batches)


def after_all(run: Run, before: Iterable[Json], batches: Iterable[Batch]) -> LangGraphState:
    """Return the state of a run after some batches; `before` are the messages before the answer."""
    dialect = LangGraph(run, ())
    state = dialect.begin(before).state
    for batch in batches:
        state = dialect.encode(batch, state, 0).state
    return state


def as_langchain(said: Sequence[Message]) -> list[Json]:
    """Return messages as LangChain's, each with an id of its own."""
    tools = messages.called(content for message in said for content in message.content)
    return [
        messages.from_chat(content, messages.numbered(message.id or message.place, number), tools)
        for message in said
        for number, content in enumerate(message.content)
    ]


def thread_status(stream: Stream) -> ThreadStatus:
    """Return the status of a thread by its newest stream."""
    return _THREAD_STATES.get(stream.status, "error" if stream.status == "failed" else "busy")


def run_content(there: FoundRun) -> RunContent:
    """Return a run as LangGraph's clients get it."""
    stream = there.stream
    metadata = {name: value for name, value in stream.metadata.items() if name != "chat"}
    return {
        "run_id": there.run.id,
        "thread_id": there.run.thread_id,
        "assistant_id": stream.generator,
        "created_at": stream.created_at.isoformat(),
        "updated_at": _changed_at(stream),
        "status": there.status,
        "metadata": metadata,
        "kwargs": {},
        "multitask_strategy": "reject",
    }


def thread_state(there: FoundRun, state: LangGraphState) -> ThreadState:
    """Return the latest state of a thread, whose newest run it is."""
    stream, thread_id = there.stream, there.run.thread_id
    status = thread_status(stream)
    values: Json = orjson.loads(state.values())
    interrupts = values.pop("__interrupt__", [])
    node = stream.generator
    error = None
    if status == "error":
        error = orjson.dumps({"error": stream.error_code, "message": stream.error_message}).decode()
    task = {
        "id": there.run.id,
        "name": node,
        "path": ["__pregel_pull", node],
        "error": error,
        "interrupts": interrupts,
        "checkpoint": None,
        "state": None,
        "result": None,
    }
    place = {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": there.run.id}
    return {
        "values": values,
        "next": [] if status == "idle" else [node],
        "tasks": [] if status == "idle" else [task],
        "metadata": {"run_id": there.run.id, "thread_id": thread_id, "assistant_id": node, "graph_id": node},
        "created_at": _changed_at(stream),
        "checkpoint": place,
        "parent_checkpoint": None,
        "interrupts": interrupts,
        "checkpoint_id": there.run.id,
        "parent_checkpoint_id": None,
    }


def no_state() -> ThreadState:
    """Return the state of a thread without runs."""
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "metadata": None,
        "created_at": None,
        "checkpoint": None,
        "parent_checkpoint": None,
        "interrupts": [],
        "checkpoint_id": None,
        "parent_checkpoint_id": None,
    }


def as_chat(given: Sequence[Any]) -> list[list[Json]]:
    """Return each message of a client as chat messages.

    Raises:
        GenerationError: one of them is no message.
    """
    return [chat_messages({"messages": [message]}) for message in given]


def _changed_at(stream: Stream) -> str:
    return (stream.finished_at or stream.waiting_since or stream.started_at or stream.created_at).isoformat()
