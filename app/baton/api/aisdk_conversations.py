"""The conversation of a chat, read from its newest stream.

A chat is an id in the metadata of its streams. The input of each stream holds the whole conversation before its answer,
as chat messages. So only the newest stream and the log of its answer are read. Beside the input, the row has the
*places* of the messages: their ids on the page, and the index where each begins, since one message of a page may become
several chat messages. An answer that failed or was stopped counts with what the page received before that.

All values here are immutable. Nothing is locked: if two requests read the same newest stream, only one of them can
create the next (`Conversation.stream` is part of the key).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from ..db import event_log, stream_lists, streams
from ..db.event_log import Batch
from ..db.postgres import Pool
from ..db.stream_lists import StreamFilter
from ..db.streams import Stream
from ..dialects.aisdk_message import Earlier
from ..dialects.aisdk_page import parts_of
from ..errors import GenerationError, LogDamaged
from ..generators import conversation as forms
from ..pod.request_bodies import LARGE_BYTES
from ..pod.shard import Shard
from ..stream_ids import is_of_stream
from . import across_databases
from .models import metadata_alternatives

Json = dict[str, Any]

# How many pages are searched for a chat's newest stream, if its id is so common that the index does not help.
_PAGES: Final = 5

# The fields of an input that hold the conversation. The others are for one request.
_CONVERSATION: Final = ("messages", "input")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message of a page begins among the chat messages. The id is None where the page gave none."""

    id: str | None
    start: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a chat, including the answer of its newest stream, `stream`.

    `digest` is that of the turn that created the stream, if it was created from a conversation.
    """

    stream: Stream
    messages: Sequence[Json]
    places: Sequence[Place]
    digest: str | None

    @property
    def answer_id(self) -> str | None:
        """The id that the newest answer has on the page."""
        return self.places[-1].id

    def has(self, message_id: str) -> bool:
        """Whether a message has that id."""
        return self._index(message_id) is not None

    def ends_with(self, message_id: str) -> bool:
        """Whether a message is the last one, ignoring answers without content, which a page may not have."""
        for index in reversed(range(len(self.places))):
            place = self.places[index]
            if place.id == message_id:
                return True
            if place.start < len(self.messages):
                return False
        return False

    def before(self, message_id: str) -> Conversation:
        """Leave out a message and all after it; if there is no such message, leave out nothing."""
        return self._up_to(self._index(message_id))

    def without_answer(self) -> Conversation:
        """Leave out the newest answer."""
        return self._up_to(len(self.places) - 1)

    def before_answer_to(self, message_id: str) -> Conversation:
        """Leave out all that follows a question. For an answer, leave out the answer, too."""
        index = self._index(message_id)
        if index is not None and self._is_question(index):
            index += 1
        return self._up_to(index)

    def _index(self, message_id: str) -> int | None:
        return next((index for index, place in enumerate(self.places) if place.id == message_id), None)

    def _is_question(self, index: int) -> bool:
        start = self.places[index].start
        # An answer without content has no chat message.
        ends = self.places[index + 1].start if index + 1 < len(self.places) else len(self.messages)
        return start < ends and self.messages[start].get("role") == "user"

    def _up_to(self, index: int | None) -> Conversation:
        if index is None or index >= len(self.places):
            return self
        return replace(self, messages=self.messages[: self.places[index].start], places=self.places[:index])


async def newest(shards: Sequence[Shard], tenant: str, chat: str) -> tuple[Stream | None, int]:
    """Return a chat's newest stream, and how many rows were read.

    If thousands of streams have the chat's id, only the newest of them are searched.
    """
    wanted = StreamFilter(tenant, metadata=metadata_alternatives({"chat": chat}))
    looked_at = 0
    for _ in range(_PAGES):
        page = await across_databases.find(shards, wanted, 1)
        looked_at += page.scanned
        if page.streams:
            return page.streams[0], looked_at
        if page.before is None:
            break
        wanted = replace(wanted, last=stream_lists.below(page.before))
    return None, looked_at


async def read(pool: Pool, stream: Stream, before_large: Callable[[int], Awaitable[None]]) -> Conversation:
    """Read the conversation that ends with a chat's newest stream, which has ended.

    `before_large`: see `streams.read_input`.

    Raises:
        GenerationError: the stream's input is not a conversation.
        LogDamaged: events are missing, or the stream was erased meanwhile.
    """
    asked = await streams.read_input(pool, stream.id, large_bytes=LARGE_BYTES, before_large=before_large)
    beside = await streams.read_continuation(pool, stream.id)
    batches = await whole_log(pool, stream.id)
    return await asyncio.to_thread(_joined, stream, asked, beside, batches)


def named(conversation: Conversation) -> list[UUID]:
    """Return the streams that began an answer of a conversation."""
    return [stream_id for place in conversation.places if (stream_id := stream_of(place.id)) is not None]


def stream_of(message_id: str | None) -> UUID | None:
    """Return the stream that began an answer, from the id of its message; None for other ids."""
    digits = (message_id or "").removeprefix(_MESSAGE)
    if message_id != f"{_MESSAGE}{digits}" or len(digits) != len(UUID(int=0).hex):
        return None
    try:
        stream_id = UUID(digits)
    except ValueError:
        return None
    return stream_id if is_of_stream(stream_id) else None


def id_on_page(stream_id: UUID) -> str:
    """Return the id that a page gives the answer of a stream."""
    return f"{_MESSAGE}{stream_id.hex}"


def beside_input(places: Sequence[Place], digest: str | None = None) -> Json:
    """Return what to store beside an input, for `read`."""
    return {"places": [[place.id, place.start] for place in places], "digest": digest}


_MESSAGE: Final = "msg_"


async def whole_log(pool: Pool, stream_id: UUID) -> list[Batch]:
    """Read the log of a stream that has ended.

    Raises:
        LogDamaged: events are missing, or the stream was erased meanwhile.
    """
    batches: list[Batch] = []
    cursor = 0
    async for page in event_log.pages(pool, stream_id):
        for batch in page:
            if batch.first_seq != cursor + 1:
                raise _damaged(stream_id)
            cursor = batch.last_seq
            batches.append(batch)
    if not batches or not batches[-1].terminal:
        raise _damaged(stream_id)
    return batches


def _joined(stream: Stream, asked: Any, beside: Mapping[str, Any], batches: Sequence[Batch]) -> Conversation:
    """Append the answer to its input; it replaces the message that it continues."""
    messages = forms.messages(conversation_of(asked))
    if not messages:
        raise GenerationError("invalid_input", "The newest stream of the chat was created without messages.")
    places = [Place(*place) for place in beside.get("places", ())]
    message = beside.get("message")
    if message is not None and places:
        answer = places.pop()
        messages = messages[: answer.start]
    else:
        message, answer = None, Place(id_on_page(stream.id), len(messages))
    parts = parts_of(stream.id, batches, None if message is None else Earlier.of(message))
    messages += forms.messages([{"role": "assistant", "parts": parts}])
    return Conversation(stream, messages, [*places, answer], beside.get("digest"))


def conversation_of(asked: Any) -> Any:
    """Return the part of an input that is the conversation."""
    return {name: asked[name] for name in _CONVERSATION if name in asked} if isinstance(asked, dict) else asked


def _damaged(stream_id: UUID) -> LogDamaged:
    return LogDamaged(f"Part of the answer {stream_id} is missing, so the conversation cannot be continued.")
