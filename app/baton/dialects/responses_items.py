"""The output items of a Response, and the frames that say how each grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import orjson

from ..generators.conversation import SERVER_LABEL
from .protocol import Chain

Fields = dict[str, Any]
Frame = tuple[str, Fields]


class Item(ABC):
    """An output item that grows. Those of a state never change: a writer continues with copies."""

    prefix: ClassVar[str]
    # The type of the event of a delta, and its constant fields.
    delta_kind: ClassVar[str]
    delta_fields: ClassVar[Mapping[str, Any]] = {}

    __slots__ = ("_earlier", "_head", "_parts", "id", "place")

    def __init__(self, item_id: str, place: int) -> None:
        self.id = item_id
        self.place = place
        self._earlier = Chain()  # its text before this batch
        self._parts: list[str] = []
        fields = {"type": self.delta_kind, "item_id": item_id, "output_index": place, **self.delta_fields}
        # The frame of a delta without its number and text.
        self._head = b'event: %b\ndata: %b,"sequence_number":' % (self.delta_kind.encode(), orjson.dumps(fields)[:-1])

    def copy(self) -> Self:
        """Return a copy that may grow."""
        other = object.__new__(type(self))
        other.id, other.place, other._head = self.id, self.place, self._head
        other._earlier, other._parts = self._earlier, []
        return other

    def settle(self) -> Self:
        """Append the text of this batch to the earlier text."""
        if self._parts:
            self._earlier = self._earlier.plus("".join(self._parts))
            self._parts = []
        return self

    @property
    def text(self) -> str:
        """The whole text so far."""
        return str(self._earlier) + "".join(self._parts)

    def grow(self, delta: str, number: int) -> bytes:
        """Add a delta; return its frame, which has this number."""
        self._parts.append(delta)
        return b'%b%d,"delta":%b}\n\n' % (self._head, number, orjson.dumps(delta))

    @abstractmethod
    def as_dict(self, status: str) -> Fields:
        """Return the item as in the output of a Response."""

    @abstractmethod
    def begin(self) -> Iterator[Frame]:
        """Yield the frames that begin the item."""

    @abstractmethod
    def end(self, text: str) -> Iterator[Frame]:
        """Yield the frames that end the item, without the last one."""

    def _frame(self, kind: str, **fields: Any) -> Frame:
        return kind, {"item_id": self.id, "output_index": self.place, **fields}


class Message(Item):
    """Text."""

    prefix = "msg"
    delta_kind = "response.output_text.delta"
    delta_fields: ClassVar = {"content_index": 0, "logprobs": []}
    __slots__ = ()

    def as_dict(self, status: str) -> Fields:
        """Return a message of the assistant."""
        return self._as_dict(status, [_text_part(self.text)])

    def begin(self) -> Iterator[Frame]:
        """Yield the frames of the message and its only part."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict("in_progress", [])}
        yield self._frame("response.content_part.added", content_index=0, part=_text_part(""))

    def end(self, text: str) -> Iterator[Frame]:
        """Yield the frames of the text and its part."""
        yield self._frame("response.output_text.done", content_index=0, text=text, logprobs=[])
        yield self._frame("response.content_part.done", content_index=0, part=_text_part(text))

    def _as_dict(self, status: str, content: list[Fields]) -> Fields:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class Reasoning(Item):
    """Reasoning, as a summary, which clients show."""

    prefix = "rs"
    delta_kind = "response.reasoning_summary_text.delta"
    delta_fields: ClassVar = {"summary_index": 0}
    __slots__ = ()

    def as_dict(self, status: str) -> Fields:
        """Return an item of reasoning."""
        return self._as_dict([_summary(self.text)])

    def begin(self) -> Iterator[Frame]:
        """Yield the frames of the item and its only part."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict([])}
        yield self._frame("response.reasoning_summary_part.added", summary_index=0, part=_summary(""))

    def end(self, text: str) -> Iterator[Frame]:
        """Yield the frames of the text and its part."""
        yield self._frame("response.reasoning_summary_text.done", summary_index=0, text=text)
        yield self._frame("response.reasoning_summary_part.done", summary_index=0, part=_summary(text))

    def _as_dict(self, summary: list[Fields]) -> Fields:
        return {"id": self.id, "type": "reasoning", "summary": summary}


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call that is held back: it is not known yet whether the client or the generator runs it."""

    order: int
    call_id: str
    name: str
    arguments: Chain = field(default_factory=Chain)


class CallItem(Item):
    """A tool call. Its text is its arguments."""

    __slots__ = ("call_id", "name", "order")

    def __init__(self, item_id: str, place: int, held: HeldCall) -> None:
        super().__init__(item_id, place)
        self.order, self.call_id, self.name = held.order, held.call_id, held.name

    def copy(self) -> Self:
        """Return a copy that may grow."""
        other = super().copy()
        other.order, other.call_id, other.name = self.order, self.call_id, self.name
        return other

    def as_dict(self, status: str) -> Fields:
        """Return the call."""
        return self._as_dict(status, self.text)

    def begin(self) -> Iterator[Frame]:
        """Yield the frame of the call without its arguments."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict("in_progress", "")}

    @abstractmethod
    def _as_dict(self, status: str, arguments: str) -> Fields: ...


class FunctionCall(CallItem):
    """A call that the client runs."""

    prefix = "fc"
    delta_kind = "response.function_call_arguments.delta"
    __slots__ = ()

    def end(self, text: str) -> Iterator[Frame]:
        """Yield the frame of the arguments."""
        yield self._frame("response.function_call_arguments.done", name=self.name, arguments=text)

    def _as_dict(self, status: str, arguments: str) -> Fields:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": arguments,
        }


class ToolRun(CallItem):
    """A call that the generator runs. `output` is its result, as text."""

    prefix = "mcp"
    delta_kind = "response.mcp_call_arguments.delta"
    __slots__ = ("output",)

    def __init__(self, item_id: str, place: int, held: HeldCall) -> None:
        super().__init__(item_id, place, held)
        self.output: str | None = None

    def copy(self) -> Self:
        """Return a copy that may grow."""
        other = super().copy()
        other.output = self.output
        return other

    def begin(self) -> Iterator[Frame]:
        """Yield the frames of the call without its arguments, and that it is in progress."""
        yield from super().begin()
        yield self._frame("response.mcp_call.in_progress")

    def end(self, text: str) -> Iterator[Frame]:
        """Yield the frames of the arguments, and of success or failure."""
        yield self._frame("response.mcp_call_arguments.done", arguments=text)
        yield self._frame("response.mcp_call.failed" if self.output is None else "response.mcp_call.completed")

    def _as_dict(self, status: str, arguments: str) -> Fields:
        return {
            "id": self.id,
            "type": "mcp_call",
            "status": status,
            "server_label": SERVER_LABEL,
            "name": self.name,
            "arguments": arguments,
            "output": self.output,
            "error": None,
            "approval_request_id": None,
        }


def _text_part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary(text: str) -> Fields:
    return {"type": "summary_text", "text": text}
