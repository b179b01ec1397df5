"""What begins a run: new messages for a thread, or the answer to what it waits for.

The thread has the memory, and a client sends only what is new. So the pod reads the conversation when it creates the
stream, and the stream's input holds all of it, as for OpenAI's `conversation`. A thread's newest stream has one
successor: its id is the idempotency key of the next, so of two requests that continue a thread at once one is refused.

The answer to a question becomes an input of the stream that waits. It must be the input that ends the wait: if somebody
else has answered at the same moment, this one is refused, unless it is the same answer again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request

from ..db import stream_creation, streams
from ..db.inputs import Added
from ..db.postgres import Connection
from ..db.stream_creation import IdempotencyKey, NewStream
from ..db.streams import Stream
from ..dialects.langgraph import run_of
from ..dialects.langgraph_interrupts import UnfitAnswer, inputs_of, interrupts_of
from ..errors import (
    AnswerRunning,
    ConversationGone,
    GenerationError,
    IdempotencyConflict,
    InvalidRequest,
    LangGraphNotSupported,
    NothingToResume,
    UnknownGenerator,
)
from ..events import encode_object
from . import (
    across_databases,
    actions,
    aisdk_turns,
    input_sending,
    langgraph_reading,
    stored_conversations,
    waiting_answers,
)
from .aisdk_conversations import Place, beside_input
from .langgraph_bodies import CreateRun
from .langgraph_reading import FoundRun, Wait
from .models import CreateStream
from .request import idempotency_key, in_time, pool_of, principal_of
from .stored_conversations import StoredConversation
from .validation import validated
from .waiting_answers import Given, NotTaken

Json = dict[str, Any]

# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tresume "
# The ids of interrupts: Baton's own, and those of graphs.
_INTERRUPT: Final = re.compile(r"[0-9a-f]{32}(\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Past:
    """What a new run follows, and the key under which its stream is created."""

    said: StoredConversation
    key: IdempotencyKey | None
    digest: str


async def start(request: Request, thread_id: str, wanted: CreateRun, body: bytes) -> FoundRun:
    """Begin a run of a thread.

    Raises:
        AnswerRunning: the newest run has not ended, or another request continued the thread first.
        ConversationGone: a part of the thread was erased.
        Forbidden: the caller may not read, cancel or send inputs, as far as the run needs it.
        InvalidRequest, LangGraphNotSupported: see the message.
        NothingToResume: the thread waits for no answer.
        LogDamaged, Unavailable: the thread cannot be read.
    """
    wanted.require_supported()
    principal = principal_of(request)
    principal.require("read")
    principal.require_tenant()
    if wanted.command is not None:
        return await _resume(request, thread_id, wanted.command.resume)
    if wanted.input is None:
        raise InvalidRequest("input: a run needs an input, or a command that answers an interrupt.")
    past = await _past(request, thread_id, wanted, body)
    if isinstance(past, Stream):
        return await _begun_before(request, past)
    new = await _new_stream(request, thread_id, wanted, past)
    try:
        stream, _ = await actions.create(request, new, body, past.key)
    except IdempotencyConflict:
        if idempotency_key(request, body) is not None:
            raise
        raise AnswerRunning("Another request continued this thread at the same time. Wait for its run.") from None
    except UnknownGenerator as error:
        raise UnknownGenerator(
            f"There is no assistant called {new.generator!r:.80}.", operator=error.operator
        ) from None
    return FoundRun(run_of(stream, thread_id), stream, ())


async def _new_stream(request: Request, thread_id: str, wanted: CreateRun, past: _Past) -> NewStream:
    given, places = await asyncio.to_thread(_input, wanted, past.said)
    creation: Json = {
        "generator": wanted.assistant_id,
        "input": given,
        "metadata": {**(wanted.metadata or {}), "chat": thread_id},
        "webhook": wanted.webhook,
    }
    if wanted.after_seconds is not None:
        creation["start_after"] = (datetime.now(UTC) + timedelta(seconds=wanted.after_seconds)).isoformat()
    beside = beside_input(places, past.digest)
    return actions.new_stream(request, validated(CreateStream, creation), can_reset=True, continuation=beside)


async def _begun_before(request: Request, stream: Stream) -> FoundRun:
    """Return the run that the same request has begun. A new thread's has the thread of the first request."""
    async with in_time(request):
        waits = await langgraph_reading.waits_of(request, stream)
    return FoundRun(run_of(stream, str(stream.metadata["chat"])), stream, [wait.seq for wait in waits])


async def _past(request: Request, thread_id: str, wanted: CreateRun, body: bytes) -> _Past | Stream:
    """Return what a run follows; or the stream that the same request has begun, if it still runs or has the same key.

    The key is looked up after the thread: a run that this request has begun must not be interrupted by it.
    """
    digest = hashlib.sha256(body).hexdigest()
    key = idempotency_key(request, body)
    tenant = principal_of(request).tenant
    async with in_time(request):
        newest = await aisdk_turns.newest(request, thread_id)
        if key is not None:
            homes = across_databases.homes_of_chat(request, thread_id)
            before = await across_databases.first(
                homes, lambda shard: stream_creation.repeated(shard.pool, tenant, key)
            )
            if before is not None:
                return before
        if newest is not None and not newest.ended:
            interrupts = wanted.multitask_strategy == "interrupt"
            beside = await streams.read_continuation(pool_of(request, newest.id), newest.id)
            if beside.get("digest") == digest and not interrupts and newest.status != "waiting":
                return newest
            if interrupts:
                principal_of(request).require("cancel")
                newest, _ = await actions.cancel(request, newest.id)
            newest = await aisdk_turns.stopped(request, newest)
    basis = f"new {thread_id}" if newest is None else str(newest.id)
    successor = aisdk_turns.successor_key(request, basis, digest)
    if key is not None:
        successor = replace(key, also=(successor.key,))
    if newest is None:
        return _Past(StoredConversation(), successor, digest)
    said = await stored_conversations.read(request, thread_id, upto=newest.id, results=_results(wanted.input))
    if not said.complete:
        raise ConversationGone(
            "A part of this thread is not stored, was erased, holds no readable messages, or is too long."
        )
    return _Past(said, successor, digest)


def _messages(given: Mapping[str, Any] | None) -> list[Any]:
    found = (given or {}).get("messages")
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    return found if isinstance(found, list) else [] if found is None else [found]


def _results(given: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the ids of the calls to which new messages have the results."""
    named = [message.get("tool_call_id") for message in _messages(given) if isinstance(message, dict)]
    return frozenset(name for name in named if isinstance(name, str))


def _input(wanted: CreateRun, said: StoredConversation) -> tuple[Json, list[Place]]:
    """Return the input of a stream: the thread's messages and the new ones. And return where each message begins.

    Raises:
        InvalidRequest: a message cannot be read.
        LangGraphNotSupported: a message is to be changed.
    """
    places: list[Place] = []
    content: list[Json] = []
    known: dict[str, Json] = {}
    for message in said.messages:
        places.append(Place(message.id or message.place, len(content)))
        content += message.content
    for shown, chat in zip(langgraph_reading.as_langchain(said.messages), content, strict=True):
        known[shown["id"]] = chat
    new = _messages(wanted.input)
    try:
        converted = langgraph_reading.as_chat(new)
    except GenerationError as error:
        raise InvalidRequest(f"input.messages: {error.message}") from None
    for message, made in zip(new, converted, strict=True):
        name = _id_of(message)
        if name in known:
            _require_unchanged(name, known[name], made)
            continue
        places.append(Place(name or str(uuid.uuid4()), len(content)))
        content += made
    places.append(Place(None, len(content)))
    rest = {name: value for name, value in (wanted.input or {}).items() if name != "messages"}
    options = {name: value for name in ("config", "context") if (value := getattr(wanted, name))}
    if not content:
        return {**rest, **options}, []
    if not new or content[-1]["role"] not in {"user", "tool"} or len(places) - 1 <= len(said.messages):
        raise InvalidRequest("input.messages: the last message must be new, and one of the user or a tool.")
    return {"messages": content, **rest, **options}, places


def _id_of(message: Any) -> str | None:
    inner = message.get("kwargs") if isinstance(message, dict) and message.get("type") == "constructor" else message
    found = inner.get("id") if isinstance(inner, dict) else None
    return found if isinstance(found, str) and 0 < len(found) <= 512 else None


def _require_unchanged(name: str, known: Json, made: Sequence[Json]) -> None:
    """Refuse to replace a message. Clients may send those that the thread has."""
    if any((one["role"], one.get("content") or "") != (known["role"], known.get("content") or "") for one in made):
        raise LangGraphNotSupported(
            f"The thread has a message {name!r:.80} with other content. Messages of a thread cannot be changed."
        )


async def _resume(request: Request, thread_id: str, resume: Any) -> FoundRun:
    """Give an answer to the stream that waits for it; return the run that follows."""
    principal_of(request).require("input")
    stream = await langgraph_reading.newest(request, thread_id)
    async with in_time(request):
        waits = [] if stream is None else await langgraph_reading.waits_of(request, stream)
    if stream is None or stream.ended or not waits:
        raise NothingToResume(f"The thread {thread_id!r:.80} waits for no answer.")
    wait = _wait_of(stream, waits, resume)
    await _send(request, stream, wait, _answers(stream, wait, resume), late=wait is not waits[-1])
    async with in_time(request):
        stream = await streams.get(pool_of(request, stream.id), stream.id) or stream
    return FoundRun(run_of(stream, thread_id, wait.seq), stream, [known.seq for known in waits])


def _wait_of(stream: Stream, waits: Sequence[Wait], resume: Any) -> Wait:
    """Return the wait whose interrupt an answer names, which may be over; without a name, the newest.

    Raises:
        NothingToResume: it names an interrupt of another stream.
    """
    if not isinstance(resume, Mapping) or len(resume) != 1:
        return waits[-1]
    (name,) = resume
    named = (wait for wait in reversed(waits) if _interrupt_id(stream, wait) == name)
    found = next(named, None)
    if found is None and _INTERRUPT.fullmatch(name):
        raise NothingToResume(f"The thread does not wait for an answer to the interrupt {name!r:.80}.")
    return found or waits[-1]


def _interrupt_id(stream: Stream, wait: Wait) -> str:
    (interrupt,) = interrupts_of(wait.waits_for, stream.id, wait.seq, {})
    found: str = interrupt["id"]
    return found


def _answers(stream: Stream, wait: Wait, resume: Any) -> list[bytes]:
    try:
        return [encode_object(one) for one in inputs_of(wait.waits_for, _interrupt_id(stream, wait), resume)]
    except UnfitAnswer as error:
        raise InvalidRequest(str(error)) from None


async def _send(request: Request, stream: Stream, wait: Wait, answers: Sequence[bytes], *, late: bool) -> None:
    """Add the inputs that answer a wait: all, or none. If it is `late`, they must have been given before."""
    # An answer that comes late must not wake a stream that waits again.
    first = {"repeated"} if late else {"woken", "repeated"}

    async def check(_: Connection, place: int, added: Added) -> Added:
        # The first one ends the wait, or the wait has had another answer.
        if added.result in (first if place == 0 else input_sending.TAKEN):
            return added
        if added.result in {"added", "woken", "conflict"}:
            raise AnswerRunning("This question has another answer, or its time has passed. Read the thread again.")
        raise NotTaken(added)

    given = [Given(answer, f"{_KEY_PREFIX}{wait.seq} {number}") for number, answer in enumerate(answers)]
    await waiting_answers.add_together(request, stream, given, check)
