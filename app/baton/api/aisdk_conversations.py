"""The conversation of a chat, as its newest stream has it.

A chat is an id in the metadata of its streams. The input of each holds the whole conversation up to its answer, as chat
messages; so the newest stream, and the log of its answer, are all that is read. Beside the input stand the *places* of
the messages: their ids on the page, and where in the input each begins, since one message of a page may be several chat
messages. The answer counts as the page saw it: of one that failed or was stopped, what came before that.

All values here are immutable. Nothing is locked: two requests that read the same newest stream are told apart when
each creates its own (`Conversation.stream` is part of the key).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from ..db import event_log, streams
from ..db.event_log import Batch
from ..db.postgres import Connection, Pool
from ..db.streams import Stream, Wanted
from ..dialects.aisdk_message import Earlier
from ..dialects.aisdk_page import parts_of
from ..errors import GenerationError, LogDamaged
from ..generators import conversation as forms

Json = dict[str, Any]

# In which a chat's newest stream is looked for, if so many streams have its id that an index does not help.
_PAGES: Final = 5

# Which of an input's fields are the conversation: the others are for one request.
_SPOKEN: Final = ("messages", "input")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message of a page begins among the chat messages. The id is None where the page gave none."""

    id: str | None
    start: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a chat up to and with the answer of its newest stream, `stream`.

    `digest` is what that stream was asked with, if it was created from a conversation.
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
        """Whether a message is the last one, apart from answers without content: a page may not have those."""
        for index in reversed(range(len(self.places))):
            place = self.places[index]
            if place.id == message_id:
                return True
            if place.start < len(self.messages):
                return False
        return False

    def before(self, message_id: str) -> Conversation:
        """Leave out a message and what follows; without such a message, nothing."""
        return self._up_to(self._index(message_id))

    def without_answer(self) -> Conversation:
        """Leave out the newest answer."""
        return self._up_to(len(self.places) - 1)

    def before_answer_to(self, message_id: str) -> Conversation:
        """Leave out an answer and what follows, or what follows a question."""
        index = self._index(message_id)
        if index is not None and self._is_question(index):
            index += 1
        return self._up_to(index)

    def _index(self, message_id: str) -> int | None:
        return next((index for index, place in enumerate(self.places) if place.id == message_id), None)

    def _is_question(self, index: int) -> bool:
        start = self.places[index].start
        # An answer may have become no chat message at all.
        ends = self.places[index + 1].start if index + 1 < len(self.places) else len(self.messages)
        return start < ends and self.messages[start].get("role") == "user"

    def _up_to(self, index: int | None) -> Conversation:
        if index is None or index >= len(self.places):
            return self
        return replace(self, messages=self.messages[: self.places[index].start], places=self.places[:index])


async def newest(connection: Connection, tenant: str, chat: str) -> tuple[Stream | None, int]:
    """Return a chat's newest stream, and how many rows were looked at.

    Where thousands have that chat's id, only as many of the newest are looked at.
    """
    wanted = Wanted(tenant, metadata=[{"chat": chat}])
    looked_at = 0
    for _ in range(_PAGES):
        page = await streams.find(connection, wanted, 1)
        looked_at += page.looked_at
        if page.streams:
            return page.streams[0], looked_at
        if page.before is None:
            break
        wanted = replace(wanted, last=streams.below(page.before))
    return None, looked_at


async def read(pool: Pool, stream: Stream, before_large: Callable[[int], Awaitable[None]]) -> Conversation:
    """Read the conversation that a chat's newest stream, which has ended, is the end of.

    `before_large`: see `streams.read_input`.

    Raises:
        GenerationError: the stream was created with what is no conversation.
        LogDamaged: events are missing, or the stream was erased meanwhile.
    """
    asked = await streams.read_input(pool, stream.id, before_large)
    beside = await streams.read_continuation(pool, stream.id)
    batches = await _whole_log(pool, stream.id)
    return await asyncio.to_thread(_joined, stream, asked, beside, batches)


async def erased(pool: Pool, conversation: Conversation) -> list[UUID]:
    """Return which streams that began an answer of a conversation have no row any more."""
    named = [stream_id for place in conversation.places if (stream_id := stream_of(place.id)) is not None]
    return await streams.missing(pool, named)


def stream_of(message_id: str | None) -> UUID | None:
    """Return the stream that began an answer, which the id of its message names; None for other ids."""
    digits = (message_id or "").removeprefix(_MESSAGE)
    if message_id != f"{_MESSAGE}{digits}" or len(digits) != len(UUID(int=0).hex):
        return None
    try:
        stream_id = UUID(digits)
    except ValueError:
        return None
    return stream_id if stream_id.version == 7 else None


def beside_input(places: Sequence[Place], digest: str | None = None) -> Json:
    """Return what is stored beside an input, for `read`."""
    return {"places": [[place.id, place.start] for place in places], "digest": digest}


_MESSAGE: Final = "msg_"


async def _whole_log(pool: Pool, stream_id: UUID) -> list[Batch]:
    batches: list[Batch] = []
    cursor = 0
    while page := await event_log.read(pool, stream_id, cursor):
        for batch in page:
            if batch.first_seq != cursor + 1:
                raise _damaged(stream_id)
            cursor = batch.last_seq
            batches.append(batch)
    if not batches or not batches[-1].terminal:
        raise _damaged(stream_id)
    return batches


def _joined(stream: Stream, asked: Any, beside: Mapping[str, Any], batches: Sequence[Batch]) -> Conversation:
    """Put the answer behind what it answers, in the place of the message that it continues."""
    messages = forms.messages(_spoken(asked))
    if not messages:
        raise GenerationError("invalid_input", "The newest stream of the chat was created without messages.")
    places = [Place(*place) for place in beside.get("places", ())]
    message = beside.get("message")
    if message is not None and places:
        answer = places.pop()
        messages = messages[: answer.start]
    else:
        message, answer = None, Place(f"{_MESSAGE}{stream.id.hex}", len(messages))
    parts = parts_of(stream.id, batches, None if message is None else Earlier.of(message))
    messages += forms.messages([{"role": "assistant", "parts": parts}])
    return Conversation(stream, messages, [*places, answer], beside.get("digest"))


def _spoken(asked: Any) -> Any:
    return {name: asked[name] for name in _SPOKEN if name in asked} if isinstance(asked, dict) else asked


def _damaged(stream_id: UUID) -> LogDamaged:
    return LogDamaged(f"A part of the answer {stream_id} is missing, so the conversation cannot be continued.")
