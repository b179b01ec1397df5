"""The output items of a Response, and the frames that say how each grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import orjson

from ..generators.conversation import SERVER_LABEL
from .dialect import Chain

Fields = dict[str, Any]
Frame = tuple[str, Fields]


class Item(ABC):
    """An output item that grows. A state has some, which no longer change: a writer goes on with copies."""

    prefix: ClassVar[str]
    # The event that tells of a delta, and what it says besides.
    delta_kind: ClassVar[str]
    delta_fields: ClassVar[Mapping[str, Any]] = {}

    __slots__ = ("_earlier", "_head", "_parts", "id", "place")

    def __init__(self, item_id: str, place: int) -> None:
        self.id = item_id
        self.place = place
        self._earlier = Chain()  # its text up to the batch at hand
        self._parts: list[str] = []
        fields = {"type": self.delta_kind, "item_id": item_id, "output_index": place, **self.delta_fields}
        # All but the number and the text, which each delta has of its own.
        self._head = b'event: %b\ndata: %b,"sequence_number":' % (self.delta_kind.encode(), orjson.dumps(fields)[:-1])

    def copy(self) -> Self:
        """The same, to go on with."""
        other = object.__new__(type(self))
        other.id, other.place, other._head = self.id, self.place, self._head
        other._earlier, other._parts = self._earlier, []
        return other

    def settle(self) -> Self:
        """Put what it grew by in this batch behind it."""
        if self._parts:
            self._earlier = self._earlier.plus("".join(self._parts))
            self._parts = []
        return self

    @property
    def text(self) -> str:
        """The whole of it so far."""
        return str(self._earlier) + "".join(self._parts)

    def grow(self, delta: str, number: int) -> bytes:
        """Take a delta; return its frame, which has this number."""
        self._parts.append(delta)
        return b'%b%d,"delta":%b}\n\n' % (self._head, number, orjson.dumps(delta))

    @abstractmethod
    def as_dict(self, status: str) -> Fields:
        """The item as a Response's output has it."""

    @abstractmethod
    def begin(self) -> Iterator[Frame]:
        """The frames that it begins with."""

    @abstractmethod
    def end(self, text: str) -> Iterator[Frame]:
        """The frames that say that it is complete, but for the last."""

    def _frame(self, kind: str, **fields: Any) -> Frame:
        return kind, {"item_id": self.id, "output_index": self.place, **fields}


class Message(Item):
    """Text."""

    prefix = "msg"
    delta_kind = "response.output_text.delta"
    delta_fields: ClassVar = {"content_index": 0, "logprobs": []}
    __slots__ = ()

    def as_dict(self, status: str) -> Fields:
        """A message of the assistant."""
        return self._as_dict(status, [_text_part(self.text)])

    def begin(self) -> Iterator[Frame]:
        """The message, and its only part."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict("in_progress", [])}
        yield self._frame("response.content_part.added", content_index=0, part=_text_part(""))

    def end(self, text: str) -> Iterator[Frame]:
        """The text, and its part."""
        yield self._frame("response.output_text.done", content_index=0, text=text, logprobs=[])
        yield self._frame("response.content_part.done", content_index=0, part=_text_part(text))

    def _as_dict(self, status: str, content: list[Fields]) -> Fields:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class Reasoning(Item):
    """Reasoning, as a summary: that is what clients show."""

    prefix = "rs"
    delta_kind = "response.reasoning_summary_text.delta"
    delta_fields: ClassVar = {"summary_index": 0}
    __slots__ = ()

    def as_dict(self, status: str) -> Fields:
        """An item of reasoning."""
        return self._as_dict([_summary(self.text)])

    def begin(self) -> Iterator[Frame]:
        """The item, and its only part."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict([])}
        yield self._frame("response.reasoning_summary_part.added", summary_index=0, part=_summary(""))

    def end(self, text: str) -> Iterator[Frame]:
        """The text, and its part."""
        yield self._frame("response.reasoning_summary_text.done", summary_index=0, text=text)
        yield self._frame("response.reasoning_summary_part.done", summary_index=0, part=_summary(text))

    def _as_dict(self, summary: list[Fields]) -> Fields:
        return {"id": self.id, "type": "reasoning", "summary": summary}


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call of which nobody knows yet whether the client or the generator runs it: the client was not sent it."""

    order: int
    call_id: str
    name: str
    arguments: Chain = field(default_factory=Chain)


class CallItem(Item):
    """A tool call, whose text is its arguments."""

    __slots__ = ("call_id", "name", "order")

    def __init__(self, item_id: str, place: int, held: HeldCall) -> None:
        super().__init__(item_id, place)
        self.order, self.call_id, self.name = held.order, held.call_id, held.name

    def copy(self) -> Self:
        """The same, to go on with."""
        other = super().copy()
        other.order, other.call_id, other.name = self.order, self.call_id, self.name
        return other

    def as_dict(self, status: str) -> Fields:
        """A call."""
        return self._as_dict(status, self.text)

    def begin(self) -> Iterator[Frame]:
        """The call, without its arguments."""
        yield "response.output_item.added", {"output_index": self.place, "item": self._as_dict("in_progress", "")}

    @abstractmethod
    def _as_dict(self, status: str, arguments: str) -> Fields: ...


class FunctionCall(CallItem):
    """A call for the client."""

    prefix = "fc"
    delta_kind = "response.function_call_arguments.delta"
    __slots__ = ()

    def end(self, text: str) -> Iterator[Frame]:
        """The arguments."""
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
    """A call of a tool that the generator ran, or is to run; `output` is its result, as text."""

    prefix = "mcp"
    delta_kind = "response.mcp_call_arguments.delta"
    __slots__ = ("output",)

    def __init__(self, item_id: str, place: int, held: HeldCall) -> None:
        super().__init__(item_id, place, held)
        self.output: str | None = None

    def copy(self) -> Self:
        """The same, to go on with."""
        other = super().copy()
        other.output = self.output
        return other

    def begin(self) -> Iterator[Frame]:
        """The call, without its arguments, and that it is at work."""
        yield from super().begin()
        yield self._frame("response.mcp_call.in_progress")

    def end(self, text: str) -> Iterator[Frame]:
        """The arguments, and whether there is a result."""
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
