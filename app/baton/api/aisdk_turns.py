"""Turns: what a page of the AI SDK that sends only its last message does to the stored conversation.

A message of the user is added to the conversation, or replaces the one with its id, if it was edited. A message of the
assistant replaces the newest answer: it is that answer, with the results of the page's tools or the user's approvals.
`regenerate-message` removes an answer. Nothing is guessed: a message that does not fit the end of the conversation is
refused, and the error names it.

Each stream of a chat has one successor: the id of the newest is the idempotency key of the next. So two tabs that send
the same turn at once get the same stream. If they send different turns, one of them is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request

from ..db import streams
from ..db.stream_creation import IdempotencyKey, NewStream
from ..db.streams import Stream
from ..errors import (
    AnswerRunning,
    ConversationChanged,
    ConversationGone,
    GenerationError,
    IdempotencyConflict,
    InvalidRequest,
    StreamExpired,
)
from . import across_databases, actions, aisdk_conversations
from .aisdk_conversations import Conversation, Place
from .request import charge_rows, in_time, key_lifetime_seconds, pool_of, principal_of
from .request_body import turn_of, without_turn

# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tchat "
# The pauses, in seconds, while a message waits for an answer that was asked to stop.
_STOPPING_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_REUSED: Final = streams.LIVE | {"completed"}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a page sent. `message` is its last message as chat messages; None asks to regenerate the newest answer."""

    chat: str
    message: Sequence[Mapping[str, Any]] | None
    role: str | None = None
    message_id: str | None = None  # of that message, or of the one to regenerate
    previous_id: str | None = None  # of the message before it, if the page gave it
    allowed: Sequence[str] = ()  # ids of approvals
    request_key: str | None = None  # the client's key for this request: a repeated request has the same one

    @property
    def digest(self) -> str:
        """A hash of the turn. Two different turns that continue one conversation have different hashes."""
        message = None if self.message is None else list(self.message)
        content = [self.role, self.message_id, message, sorted(self.allowed)]
        return hashlib.sha256(orjson.dumps(content)).hexdigest()


@dataclass(frozen=True, slots=True)
class Continued:
    """The whole conversation including a turn, and the key under which its stream is created.

    `repeated` is the stream that the same turn has created before.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    places: Sequence[Place] = ()
    key: IdempotencyKey | None = None
    repeated: Stream | None = None


async def continued(request: Request, turn: Turn) -> Continued:
    """Find the conversation that a turn continues.

    Raises:
        AnswerRunning: the newest answer is not complete.
        ConversationChanged, ConversationGone: the turn does not fit what is stored.
        Forbidden: the caller may not read, or may read only one stream.
        LogDamaged, Unavailable: the conversation cannot be read.
    """
    principal = principal_of(request)
    principal.require("read")
    principal.require_tenant()
    async with in_time(request):
        stream = await newest(request, turn.chat)
        if stream is None:
            return await _begin_chat(request, turn)
        beside = await streams.read_continuation(pool_of(request, stream.id), stream.id)
        if _is_repeated(turn, stream, beside):
            return Continued(repeated=stream)
        stream = await stopped(request, stream)
        conversation = await _read(request, stream)
        return await _added(request, turn, conversation)


async def create(request: Request, new: NewStream, body: bytes, key: IdempotencyKey | None) -> Stream:
    """Queue the stream of a turn, or return the one that the same turn created.

    Raises:
        AnswerRunning: another turn came first.
    """
    try:
        stream, _ = await actions.create(request, new, body, key)
    except IdempotencyConflict:
        raise AnswerRunning("Another message continued this chat at the same time. Wait for its answer.") from None
    return stream


async def newest(request: Request, chat: str) -> Stream | None:
    """Return a chat's newest stream, and charge the caller for the search; None if it has none.

    Raises:
        InvalidRequest: the id is not one that a chat can have.
    """
    if "\0" in chat:
        raise InvalidRequest("A chat's id cannot contain a NUL character.")
    homes = across_databases.homes_of_chat(request, chat)
    stream, looked_at = await aisdk_conversations.newest(homes, principal_of(request).tenant, chat)
    charge_rows(request, looked_at)
    return stream


async def _begin_chat(request: Request, turn: Turn) -> Continued:
    """Begin a chat with a question that names no message before it."""
    if turn.role != "user" or turn.previous_id is not None or turn.message is None:
        raise await _not_stored(request, turn.previous_id or turn.message_id)
    key = _key(request, f"new {turn.chat}", turn)
    return Continued(list(turn.message), [Place(turn.message_id, 0)], key)


def _is_repeated(turn: Turn, stream: Stream, beside: Mapping[str, Any]) -> bool:
    """Whether a stream already answers this turn.

    A question that is repeated after its answer has ended asks for another answer, unless the same request is repeated.
    So does another `regenerate-message`. A repeated continuation of an answer comes from another tab, unless the first
    one's stream has failed.
    """
    if beside.get("digest") != turn.digest:
        return False
    if turn.request_key is not None and beside.get("request_key") == turn.request_key:
        return True
    return not stream.ended if turn.role != "assistant" else stream.status in _REUSED


async def stopped(request: Request, stream: Stream) -> Stream:
    """Wait for the end of an answer that was asked to stop.

    Raises:
        AnswerRunning: it has not ended.
        ConversationGone: it was erased meanwhile.
    """
    if stream.ended:
        return stream
    pauses = iter(_STOPPING_SECONDS)
    async with without_turn(request):
        while not stream.ended:
            pause = next(pauses, None)
            if stream.cancel_requested_at is None or pause is None:
                raise AnswerRunning(_running(stream))
            await asyncio.sleep(pause)
            found = await streams.get(pool_of(request, stream.id), stream.id)
            if found is None:
                raise ConversationGone("The last answer of this chat was erased.")
            stream = found
    return stream


def _running(stream: Stream) -> str:
    if stream.status == "waiting":
        return f"The answer {stream.id} of this chat waits for an answer to its question. Answer it, or stop it."
    return f"The answer {stream.id} of this chat still runs. Wait for its end, or stop it."


async def _read(request: Request, stream: Stream) -> Conversation:
    try:
        conversation = await aisdk_conversations.read(pool_of(request, stream.id), stream, turn_of(request))
    except GenerationError as error:
        raise InvalidRequest(f"The stored conversation cannot be continued: {error.message}") from None
    for stream_id in await across_databases.missing(request, aisdk_conversations.named(conversation)):
        # An expired answer is still in the input of the newest stream, which is fine. An erased one must not be used.
        if not isinstance(await across_databases.absence(request, stream_id), StreamExpired):
            raise ConversationGone(f"The answer {stream_id} of this chat was erased.")
    return conversation


async def _added(request: Request, turn: Turn, conversation: Conversation) -> Continued:
    if turn.message is None:
        return _answered_again(request, turn, await _without_regenerated(request, turn, conversation))
    if turn.role == "assistant":
        if turn.message_id != conversation.answer_id:
            raise await _mismatch(request, conversation, turn.message_id)
        rest = conversation.before(turn.message_id) if turn.message_id is not None else conversation
    else:
        rest = conversation if turn.message_id is None else conversation.before(turn.message_id)
    if turn.previous_id is not None and not rest.ends_with(turn.previous_id):
        raise await _mismatch(request, conversation, turn.previous_id)
    places = [*rest.places, Place(turn.message_id, len(rest.messages))]
    return Continued([*rest.messages, *turn.message], places, _key(request, str(rest.stream.id), turn))


async def _without_regenerated(request: Request, turn: Turn, conversation: Conversation) -> Conversation:
    """Leave out the answer that is regenerated, and all after it."""
    if turn.message_id is None:
        return conversation.without_answer()
    if not conversation.has(turn.message_id):
        raise await _mismatch(request, conversation, turn.message_id)
    return conversation.before_answer_to(turn.message_id)


def _answered_again(request: Request, turn: Turn, rest: Conversation) -> Continued:
    if not rest.messages:
        raise InvalidRequest("There is no message before the answer to regenerate.")
    return Continued(rest.messages, rest.places, _key(request, str(rest.stream.id), turn))


async def _mismatch(
    request: Request, conversation: Conversation, message_id: str | None
) -> ConversationChanged | ConversationGone:
    """Return the error that says why a message does not fit the stored conversation."""
    stream_id = aisdk_conversations.stream_of(message_id)
    if stream_id is not None and await across_databases.get(request, stream_id) is None:
        return await _not_stored(request, message_id)
    return ConversationChanged(
        f"The message {message_id!r:.120} is not at the end of this chat: its last answer is "
        f"{conversation.answer_id!r:.120}."
    )


async def _not_stored(request: Request, message_id: str | None) -> ConversationGone:
    """Return the error that says that a message is not stored."""
    stream_id = aisdk_conversations.stream_of(message_id)
    if stream_id is None:
        return ConversationGone("No message of this chat is stored: it was erased, has expired, or never existed.")
    why = await across_databases.absence(request, stream_id)
    return ConversationGone(f"The message {message_id!r:.120} is not stored. {why}")


def successor_key(request: Request, basis: str, digest: str) -> IdempotencyKey:
    """Return the key of what follows a stream, so that only one stream does. `basis` names what it follows."""
    name = hashlib.sha256(basis.encode(errors="surrogatepass")).hexdigest()
    return IdempotencyKey(_KEY_PREFIX + name, bytes.fromhex(digest), key_lifetime_seconds(request))


def _key(request: Request, basis: str, turn: Turn) -> IdempotencyKey:
    return successor_key(request, basis, turn.digest)
