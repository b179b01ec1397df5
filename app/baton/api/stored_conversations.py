"""The conversation of a chat, read from its streams: newest first, until an input holds all that was said before.

Most requests carry the whole conversation, so most conversations are the input and the answer of one stream. A request
to the native API may carry only what is new. Then the streams before it are read too, each with its answer. A request
carries the whole conversation if the assistant has spoken in it, or if its API wants that (`continuation.places`).

An answer that failed or was stopped counts with what it has. What a `reset` discarded does not count. An answer in
progress is left out: a page follows it from its beginning.

One read loads `_MAX_STREAMS` rows at most. After `_PAGE_BYTES` of inputs and logs it begins with no further stream. All
values here are immutable, and nothing is locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.requests import Request

from ..db import external_streams, stream_lists, streams
from ..db.event_log import Batch
from ..db.stream_lists import StreamFilter
from ..db.streams import Stream
from ..dialects.aisdk_message import Earlier
from ..dialects.aisdk_page import message_of
from ..errors import GenerationError, LogDamaged, RawContent, StreamExpired, StreamNotFound
from ..events import RESET_HEAD, USAGE_HEAD
from ..generators import conversation as forms
from . import across_databases
from .aisdk_conversations import conversation_of, id_on_page, stream_of, whole_log
from .models import metadata_alternatives
from .request import charge_rows, in_time, pool_of, principal_of, require_events
from .request_body import read_input

Json = dict[str, Any]

_MAX_STREAMS: Final = 50
_PAGE_BYTES: Final = 4 << 20
_RESET: Final = RESET_HEAD.decode()
_USAGE: Final = USAGE_HEAD.decode()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a page, as chat messages; an answer with several steps has several, one without content none.

    `id`: as the page has it; None if no page gave one. `on_page`: the message itself, if a log was read for it.
    `growing`: a stream in progress continues it.
    """

    id: str | None
    content: Sequence[Json]
    place: str  # its id on a page without an id
    on_page: Json | None = None
    growing: bool = False


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """What was said in a chat, oldest first.

    `answers` are the streams whose answers were read from their logs, oldest first, and `active` is one that has not
    ended. `complete` is false if a part is known to be missing. Older streams follow before the id `before`.
    """

    messages: Sequence[Message] = ()
    answers: Sequence[Stream] = ()
    active: Stream | None = None
    complete: bool = True
    before: UUID | None = None

    @property
    def chat_messages(self) -> list[Json]:
        """All of it as chat messages."""
        return [content for message in self.messages for content in message.content]


@dataclass(frozen=True, slots=True)
class _Turn:
    """One stream: what was asked and its answer. `whole`: the question is the whole conversation before the answer."""

    stream: Stream
    question: Sequence[Message]
    answer: Message | None
    whole: bool
    readable: bool
    size_bytes: int

    @property
    def messages(self) -> list[Message]:
        return [*self.question, *([] if self.answer is None else [self.answer])]


async def read(
    request: Request,
    chat: str,
    *,
    before: UUID | None = None,
    upto: UUID | None = None,
    results: frozenset[str] | None = None,
) -> StoredConversation:
    """Read a chat's conversation; with `before` or `upto`, only its streams before an id, or up to one.

    `results` are the ids of the calls whose results follow the conversation. Other calls without one get an error as
    the result; if it is None, those of a complete last answer get none. The caller is charged for the rows.

    Raises:
        Forbidden: the caller may not read, or may read only one stream.
        InvalidRequest: no chat can have that id.
        LogDamaged, Unavailable: it cannot be read.
    """
    principal = principal_of(request)
    principal.require("read")
    principal.require_tenant()
    last = stream_lists.LAST if upto is None else upto
    selection = StreamFilter(
        principal.tenant,
        last=last if before is None else stream_lists.below(before),
        metadata=metadata_alternatives({"chat": chat}),
    )
    async with in_time(request):
        page = await across_databases.find(across_databases.homes_of_chat(request, chat), selection, _MAX_STREAMS)
        charge_rows(request, page.scanned)
        return await _read(request, page.streams, page.before, results)


async def read_one(request: Request, stream: Stream, *, results: frozenset[str] | None = None) -> StoredConversation:
    """Read the conversation of a stream that belongs to no chat. Raises what `read` raises."""
    async with in_time(request):
        return await _read(request, [stream], None, results)


async def before_answer(request: Request, stream: Stream, *, alone: bool = False) -> Sequence[Message]:
    """Return all that was said before the answer of a stream; if `alone`, only what its own input holds.

    Raises what `read` raises.
    """
    async with in_time(request):
        asked = await read_input(request, stream.id)
        beside = await streams.read_continuation(pool_of(request, stream.id), stream.id)
    question, whole, _ = await asyncio.to_thread(_question, stream, asked, beside)
    chat = stream.metadata.get("chat")
    if whole or alone or chat is None:
        return question
    return [*(await read(request, str(chat), before=stream.id)).messages, *question]


async def with_logs(request: Request, chat: str, found: StoredConversation) -> StoredConversation:
    """Return a conversation with the logs of earlier answers read too, so that a page gets all of their parts.

    Newer answers come first. Those for which there is no room, or whose streams have expired, stay as they are in the
    input of a later stream.
    """
    wanted = StreamFilter(principal_of(request).tenant, metadata=metadata_alternatives({"chat": chat}))
    async with in_time(request):
        page = await across_databases.find(across_databases.homes_of_chat(request, chat), wanted, _MAX_STREAMS)
        charge_rows(request, page.scanned)
        continued = await across_databases.continued_messages(request, [stream.id for stream in page.streams])
        writers: dict[str, Stream] = {}
        for stream in page.streams:
            # Raw content has no parts.
            if stream.ended and stream.generator != external_streams.GENERATOR:
                writers.setdefault(continued.get(stream.id) or id_on_page(stream.id), stream)
        messages, size_bytes = list(found.messages), 0
        for index, message in reversed(list(enumerate(messages))):
            writer = None if message.id is None else writers.get(message.id)
            if writer is None or message.on_page is not None or message.growing:
                continue
            if size_bytes > _PAGE_BYTES:
                break
            try:
                batches = await whole_log(pool_of(request, writer.id), writer.id)
            except LogDamaged:
                # It is expiring, and is in the input of a later stream.
                continue
            size_bytes += sum(len(batch.events) for batch in batches)
            earlier = _earlier(await streams.read_continuation(pool_of(request, writer.id), writer.id))
            shown = await asyncio.to_thread(message_of, writer.id, _kept(batches), earlier)
            messages[index] = replace(message, on_page=shown)
    return replace(found, messages=messages)


async def _read(
    request: Request, found: Sequence[Stream], before: UUID | None, results: frozenset[str] | None
) -> StoredConversation:
    turns: list[_Turn] = []
    pending = results
    for stream in found:
        if sum(turn.size_bytes for turn in turns) > _PAGE_BYTES:
            before = turns[-1].stream.id
            break
        turn = await _turn(request, stream, pending)
        if turn is None or (turns and _is_tried_again(turn, turns[-1])):
            continue
        turns.append(turn)
        pending = _answered(turn)
        if turn.whole:
            before = None
            break
    turns.reverse()
    messages = [message for turn in turns for message in turn.messages]
    kept = await _without_erased(request, messages)
    return StoredConversation(
        kept,
        [turn.stream for turn in turns if turn.answer is not None],
        next((turn.stream for turn in reversed(turns) if not turn.stream.ended), None),
        len(kept) == len(messages) and all(turn.readable for turn in turns) and before is None,
        before,
    )


async def _turn(request: Request, stream: Stream, pending: frozenset[str] | None) -> _Turn | None:
    """Read a stream; return None if its messages are not events, or it was erased meanwhile."""
    pool = pool_of(request, stream.id)
    try:
        await require_events(request, stream)
    except (RawContent, StreamNotFound):
        return None
    asked = await read_input(request, stream.id)
    beside = await streams.read_continuation(pool, stream.id)
    try:
        batches = await whole_log(pool, stream.id) if stream.ended else []
    except LogDamaged:
        if await streams.get(pool, stream.id) is None:
            return None
        raise
    return await asyncio.to_thread(_of_stream, stream, asked, beside, batches, pending)


def _of_stream(
    stream: Stream, asked: Any, beside: Mapping[str, Any], batches: Sequence[Batch], pending: frozenset[str] | None
) -> _Turn:
    question, whole, readable = _question(stream, asked, beside)
    earlier = _earlier(beside)
    continued = question.pop() if earlier is not None and question else None
    size_bytes = len(orjson.dumps(asked)) + sum(len(batch.events) for batch in batches)
    if not stream.ended:
        if continued is not None:
            question.append(replace(continued, growing=True))
        return _Turn(stream, question, None, whole, readable, size_bytes)
    shown = message_of(stream.id, _kept(batches), earlier)
    content = forms.messages([shown], allowed=_open_calls(shown) if pending is None else pending)
    answer = Message(shown["id"], content, shown["id"], shown)
    return _Turn(stream, question, answer, whole, readable, size_bytes)


def _question(stream: Stream, asked: Any, beside: Mapping[str, Any]) -> tuple[list[Message], bool, bool]:
    """Return what a stream was asked, whether that is the whole conversation so far, and whether it can be read."""
    try:
        said, readable = forms.messages(conversation_of(asked)), True
    except GenerationError:
        said, readable = [], False
    whole = "places" in beside or any(one["role"] == "assistant" for one in said)
    return list(_split(said, beside.get("places", ()), f"{id_on_page(stream.id)}_in")), whole, readable


def _split(said: Sequence[Json], places: Sequence[Sequence[Any]], prefix: str) -> Iterator[Message]:
    """Yield the messages that chat messages came from. Those without an id are split by who speaks."""
    begun = [(None, 0), *places]
    ends = [*(start for _, start in places), len(said)]
    parts = [(name, said[start:end]) for (name, start), end in zip(begun, ends, strict=True)]
    number = 0
    for name, part in parts:
        for group in [part] if name is not None else _by_speaker(part):
            yield Message(name, group, f"{prefix}_{number}")
            number += 1


def _by_speaker(said: Sequence[Json]) -> Iterator[list[Json]]:
    group: list[Json] = []
    for message in said:
        if group and (message["role"] not in {"assistant", "tool"} or group[-1]["role"] not in {"assistant", "tool"}):
            yield group
            group = []
        group.append(message)
    if group:
        yield group


def _earlier(beside: Mapping[str, Any]) -> Earlier | None:
    message = beside.get("message")
    return None if message is None else Earlier.of(message)


def _kept(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Return a log without what was discarded by a reset. What it used still counts."""
    lines = [line for batch in batches for line in batch.lines]
    resets = [index for index, line in enumerate(lines) if line.startswith(_RESET)]
    if not resets:
        return batches
    kept = [line for line in lines[: resets[-1]] if line.startswith(_USAGE)] + lines[resets[-1] + 1 :]
    return [Batch(1, batches[-1].last_seq, terminal=True, events="\n".join(kept))]


def _open_calls(message: Json) -> frozenset[str]:
    """Return the calls of a complete answer that wait for the client."""
    if message["metadata"].get("status") != "completed":
        return frozenset()
    waiting = {"input-available", "approval-requested"}
    return frozenset(part["toolCallId"] for part in message["parts"] if part.get("state") in waiting)


def _answered(turn: _Turn) -> frozenset[str]:
    """Return the ids of the calls to which a question has the results."""
    said = [content for message in turn.question for content in message.content]
    return frozenset(one["tool_call_id"] for one in said if one["role"] == "tool")


def _is_tried_again(turn: _Turn, after: _Turn) -> bool:
    """Whether the stream after one asks the same, because its answer failed or was stopped."""
    asked, again = ([list(message.content) for message in one.question] for one in (turn, after))
    return asked == again and turn.stream.status in {"failed", "cancelled"}


async def _without_erased(request: Request, messages: Sequence[Message]) -> list[Message]:
    """Leave out the answers that were erased, although they are in a later input. Expired ones stay."""
    begun = {found: message.id for message in messages if (found := stream_of(message.id)) is not None}
    gone = set()
    for stream_id in await across_databases.missing(request, begun):
        if not isinstance(await across_databases.absence(request, stream_id), StreamExpired):
            gone.add(begun[stream_id])
    return [message for message in messages if message.id is None or message.id not in gone]
