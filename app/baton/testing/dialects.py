"""What a client of each dialect gets of a simulated stream, by the encoders of the pods."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final, Literal, TypeAlias, get_args

from ..db.streams import Stream
from ..dialects import agui, agui_events, aisdk, langgraph, langgraph_messages, native, text
from ..dialects.aisdk_data import AI_SDK_DATA, Version
from ..dialects.anthropic import MESSAGES
from ..dialects.chat import CHAT
from ..dialects.durable import DIALECTS, DurableReader
from ..dialects.durable_offsets import prefix_of
from ..dialects.protocol import Reader
from ..dialects.responses import RESPONSES
from ..errors import GenerationError
from ..events import encode_object
from ..generators import conversation
from .memory import StreamMemory
from .simulation import Creation

DialectName: TypeAlias = Literal[
    "native",
    "aisdk",
    "aisdk.v3",
    "aisdk.v4",
    "responses",
    "chat",
    "anthropic",
    "agui",
    "langgraph",
    "text",
    "durable",
]

NAMES: Final[tuple[str, ...]] = get_args(DialectName)


class Seen(str):
    """The body of a response, without keep-alives. `cut`: the connection breaks after it, since it is incomplete."""

    __slots__ = ("cut",)

    cut: bool


def seen_by(dialect: DialectName, memory: StreamMemory, creation: Creation) -> Seen:
    """Return what a client gets that follows the stream from its beginning.

    Raises:
        ValueError: the dialect is unknown.
    """
    if dialect not in _BEGIN:
        raise ValueError(f"The dialect must be one of {', '.join(NAMES)}, not {dialect!r:.80}.")
    client = Client(dialect, memory, creation)
    seen = Seen(client.read().decode())
    seen.cut = client.cut
    return seen


class Client:
    """Follows a stream in a dialect, from its beginning."""

    def __init__(self, dialect: str, memory: StreamMemory, creation: Creation) -> None:
        self._memory = memory
        self._opening, self._reader = _BEGIN[dialect](memory, creation)
        self._batches = 0

    def read(self) -> bytes:
        """Return what the client gets that it has not got yet."""
        new = self._memory.batches[self._batches :]
        self._batches += len(new)
        opening, self._opening = self._opening, b""
        return opening + b"".join([self._reader.read([batch]) for batch in new])

    @property
    def cut(self) -> bool:
        """Whether the connection breaks here, since the dialect cannot say what has happened."""
        return self._reader.over == "cut"


_Begun: TypeAlias = tuple[bytes, Reader[Any]]


def _native(_memory: StreamMemory, _creation: Creation) -> _Begun:
    return b"", Reader(native.FULL, native.START, 0)


def _text(_memory: StreamMemory, _creation: Creation) -> _Begun:
    return b"", Reader(text.TEXT, text.START, 0)


def _aisdk(_memory: StreamMemory, creation: Creation) -> _Begun:
    begun = aisdk.begin(creation.stream_id)
    return begun.body, Reader(aisdk.AI_SDK, begun, 0)


def _aisdk_data(version: Version) -> Callable[[StreamMemory, Creation], _Begun]:
    def begin(_memory: StreamMemory, creation: Creation) -> _Begun:
        begun = AI_SDK_DATA[version].begin(creation.stream_id.hex)
        return begun.body, Reader(AI_SDK_DATA[version], begun, 0)

    return begin


def _anthropic(_memory: StreamMemory, creation: Creation) -> _Begun:
    begun = MESSAGES.begin(_row_of(creation), "whole")
    return begun.body, Reader(MESSAGES, begun, 0)


def _agui(_memory: StreamMemory, creation: Creation) -> _Begun:
    digits = creation.stream_id.hex
    asked = _asked(creation)
    history = encode_object(conversation.for_agui(asked)) if asked else None
    run = agui_events.Run(_thread_of(creation), f"run_{digits}", digits, history)
    begun = agui.begin(run, str(creation.stream_id))
    return begun.body, Reader(agui.AG_UI, begun, 0)


def _langgraph(_memory: StreamMemory, creation: Creation) -> _Begun:
    """Follow the first run, in all stream modes: a wait ends it."""
    dialect = langgraph.LangGraph(langgraph.run_of(_row_of(creation), _thread_of(creation)), langgraph.MODES)
    asked = _asked(creation)
    tools = langgraph_messages.called(message for _, message in asked)
    begun = dialect.begin(langgraph_messages.from_chat(message, name, tools) for name, message in asked)
    return begun.body, Reader(dialect, begun, 0)


def _thread_of(creation: Creation) -> str:
    return str(creation.metadata.get("chat") or creation.stream_id)


def _asked(creation: Creation) -> list[tuple[str, dict[str, Any]]]:
    """Return the messages of a stream's input, each with an id; none if it is no conversation."""
    try:
        said = conversation.messages(creation.input)
    except GenerationError:
        return []
    return [(f"msg_{creation.stream_id.hex}_in_{number}", message) for number, message in enumerate(said)]


def _chat(_memory: StreamMemory, creation: Creation) -> _Begun:
    begun = CHAT.begin(_row_of(creation), creation.input)
    return begun.body, Reader(CHAT, begun, 0)


def _responses(_memory: StreamMemory, creation: Creation) -> _Begun:
    begun = RESPONSES.begin(_row_of(creation), creation.input)
    return begun.body, Reader(RESPONSES, begun, 0)


def _durable(memory: StreamMemory, creation: Creation) -> _Begun:
    return b"", DurableReader(DIALECTS["events"], prefix_of(creation.stream_id), 0, None, lambda: memory.tail)


def _row_of(creation: Creation) -> Stream:
    """Return the stream's row as it is when it was created."""
    row: dict[str, Any] = {field.name: None for field in fields(Stream)}
    row |= {
        "id": creation.stream_id,
        "tenant": creation.tenant,
        "generator": creation.name,
        "metadata": creation.metadata,
        "status": "queued",
        "epoch": 0,
        "attempts": 0,
        "run": 0,
        "created_at": datetime.datetime.now(datetime.UTC),
    }
    return Stream(**row)


_BEGIN: Final[Mapping[str, Callable[[StreamMemory, Creation], _Begun]]] = {
    "native": _native,
    "aisdk": _aisdk,
    "aisdk.v3": _aisdk_data("v3"),
    "aisdk.v4": _aisdk_data("v4"),
    "responses": _responses,
    "chat": _chat,
    "anthropic": _anthropic,
    "agui": _agui,
    "langgraph": _langgraph,
    "text": _text,
    "durable": _durable,
}
