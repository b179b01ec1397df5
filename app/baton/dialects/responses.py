"""The dialect of OpenAI's Responses API: a stream as the events of a Response.

Text, reasoning and tool calls become output items, which begin, grow by deltas and end with the whole of what they
held. `sequence_number` counts the frames from 0. Calls may grow side by side, so each stays open until its result or
the stream's end; text and reasoning end where anything else begins.

A call for the client is a `function_call`. One that the generator ran is an `mcp_call`, as of a tool that OpenAI's own
server ran, with its result: clients run every `function_call`. Whose a call is shows at its result, or at the end of
the stream; until then it is held back, unless its first event says so.

Events without a counterpart (`custom`) are left out. A `reset` takes back deltas that were given already, so the
stream ends there with an `error` event; who retrieves the Response later gets the new answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self, TypeVar
from uuid import UUID

import orjson

from ..db.event_log import Batch
from ..db.streams import Stream
from ..events import begins_call, escape_line_ends
from ..generators.conversation import SERVER_LABEL
from ..usage import added
from . import sse
from .dialect import Chain, Encoded, Header, Over
from .openai import RESET, Tokens, error_of

# What a Response repeats of its request, with what it says where the request said nothing.
_REPEATED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "reasoning": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_RESET: Final = f"{RESET}. Retrieve the response without streaming to get the new one."

Fields = dict[str, Any]
Frame = tuple[str, Fields]
GrowingItem = TypeVar("GrowingItem", bound="Item")
GrowingCall = TypeVar("GrowingCall", bound="Call")


@dataclass(frozen=True, slots=True)
class ResponseState:
    """What the dialect remembers.

    `frames`: how many there were. `output`: the items that are done, with their places. What still grows is `prose`,
    which is text or reasoning, and `calls` in the order in which they began, some of them held back; `newest` says
    which of them is the newest of an index.
    """

    response: Mapping[str, Any]
    frames: int = 0
    started: bool = False
    places: int = 0
    output: tuple[tuple[int, Fields], ...] = ()
    prose: Message | Reasoning | None = None
    calls: Mapping[int, Call | Held] = field(default_factory=dict)
    newest: Mapping[int, int] = field(default_factory=dict)
    calls_begun: int = 0
    usage: Mapping[str, Any] | None = None
    over: Over | None = None


class Responses:
    """The dialect."""

    name = "openai.responses"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    reconnects: ClassVar[bool] = False

    def begin(self, stream: Stream, given: Any, after: int = 0) -> Encoded[ResponseState]:
        """Return the frames that precede the first event; `given` is the stream's input."""
        writer = _Writer(ResponseState(_unchanging(stream, given)))
        writer.emit("response.created", response=writer.response("queued"))
        writer.emit("response.queued", response=writer.response("queued"))
        return writer.encoded(after)

    def encode(self, batch: Batch, state: ResponseState, after: int) -> Encoded[ResponseState]:
        """Encode a batch."""
        writer = _Writer(state)
        for line in batch.lines:
            writer.take(orjson.loads(line))
        return writer.encoded(after)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """A comment, which opens the way through proxies."""
        return self.comment

    def broken(self, state: ResponseState, code: str, message: str) -> tuple[bytes, Over]:
        """An error event."""
        writer = _Writer(state)
        writer.fail(code, message)
        return writer.encoded(state.frames).body, "ended"


def response_of(stream: Stream, given: Any, lines: Iterable[str]) -> Fields:
    """Return the Response that the events so far make up; those before a `reset` do not count."""
    writer = _Writer(ResponseState(_unchanging(stream, given)))
    status = "queued"
    for event in map(orjson.loads, lines):
        status = "in_progress"
        if event["type"] == "reset":
            writer = _Writer(ResponseState(writer.state.response))
        else:
            writer.take(event)
    return writer.ended or writer.response(status)


def response_id(stream_id: UUID) -> str:
    """The id that a stream has as a Response."""
    return f"resp_{stream_id.hex}"


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
class Held:
    """A call of which nobody knows yet whether the client or the generator runs it: the client was not sent it."""

    order: int
    call_id: str
    name: str
    arguments: Chain = field(default_factory=Chain)


class Call(Item):
    """A tool call, whose text is its arguments."""

    __slots__ = ("call_id", "name", "order")

    def __init__(self, item_id: str, place: int, held: Held) -> None:
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


class FunctionCall(Call):
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


class ToolRun(Call):
    """A call of a tool that the generator ran, or is to run; `output` is its result, as text."""

    prefix = "mcp"
    delta_kind = "response.mcp_call_arguments.delta"
    __slots__ = ("output",)

    def __init__(self, item_id: str, place: int, held: Held) -> None:
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


class _Writer:
    """Turns events into frames, from one state to the next."""

    def __init__(self, state: ResponseState) -> None:
        self.state = state
        self.ended: Fields | None = None  # the Response, once the terminal event has come
        self._frames: list[bytes] = []
        self._started = state.started
        self._places = state.places
        self._output = list(state.output)
        self._prose = state.prose
        self._calls = dict(state.calls)
        self._newest = dict(state.newest)
        self._calls_begun = state.calls_begun
        self._own: set[int] = set()  # the places of the growing items that are this writer's, and not the state's
        self._usage = state.usage
        self._over = state.over

    def encoded(self, after: int) -> Encoded[ResponseState]:
        """Return the frames that follow number `after`, and the state behind them."""
        before = self.state.frames
        for item in self._growing():
            if item.place in self._own:
                item.settle()
        state = ResponseState(
            self.state.response,
            before + len(self._frames),
            self._started,
            self._places,
            tuple(self._output),
            self._prose,
            self._calls,
            self._newest,
            self._calls_begun,
            self._usage,
            self._over,
        )
        body = escape_line_ends(b"".join(self._frames[max(0, after - before) :]))
        return Encoded(body, before + 1, state.frames, state, self._over)

    def take(self, event: Fields) -> None:
        """Turn one event into frames."""
        take = _TAKES.get(event["type"])
        if take is None or self._over:
            return
        if not self._started and event["type"] != "reset":
            self._started = True
            self.emit("response.in_progress", response=self.response("in_progress"))
        take(self, event)

    def emit(self, kind: str, **fields: Any) -> None:
        """Add a frame."""
        data = orjson.dumps({"type": kind, "sequence_number": self.state.frames + len(self._frames), **fields})
        self._frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def response(self, status: str, **fields: Any) -> Fields:
        """Return the Response as it is."""
        output = [*self._output, *((item.place, item.as_dict("in_progress")) for item in self._growing())]
        return {
            **self.state.response,
            "status": status,
            "output": [item for _, item in sorted(output, key=lambda entry: entry[0])],
            "usage": _usage(self._usage),
            **fields,
        }

    def fail(self, code: str, message: str) -> None:
        """End with an error event. Clients look for the error at one place or the other."""
        self.emit("error", code=code, message=message, param=None, error=error_of(code, message))
        self._over = "ended"

    def text(self, event: Fields) -> None:
        """Add to the text, or begin it."""
        self._say(Message, event["delta"])

    def reasoning(self, event: Fields) -> None:
        """Add to the reasoning, or begin it."""
        self._say(Reasoning, event["delta"])

    def call(self, event: Fields) -> None:
        """Add to a call, or begin it."""
        order = self._newest.get(event["index"], -1)
        call = self._calls.get(order)
        if call is None and order >= 0 and not (event.get("id") or event.get("name")):
            return  # of a call that has ended
        if call is None or begins_call(event, call.call_id):
            call = self._begin_call(event)
        delta = event.get("arguments_delta")
        if isinstance(call, Held):
            self._calls[call.order] = replace(call, arguments=call.arguments.plus(delta or ""))
        elif delta:
            if call.place not in self._own:
                call = self._calls[call.order] = self._owned(call)
            self._grow(call, delta)

    def result(self, event: Fields) -> None:
        """End the call that it is the result of: the generator has run it."""
        self._end_prose()
        result = event.get("result")
        output = result if isinstance(result, str) else orjson.dumps(result).decode()
        found = [call for call in self._calls.values() if call.call_id == event["id"]]
        for call in found or [self._hold(event["id"], event.get("name") or "unknown")]:
            if isinstance(call, FunctionCall):
                self._end(call)
                continue
            run = self._release(call, ToolRun) if isinstance(call, Held) else call
            if run.place not in self._own:
                run = self._owned(run)
            if isinstance(run, ToolRun):
                run.output = output
            self._end(run)

    def approval(self, event: Fields) -> None:
        """End the call that the user is to allow: there is no way to ask here, and it is not for the client to run."""
        for call in [call for call in self._calls.values() if call.call_id == event["id"]]:
            if isinstance(call, Held):
                self._end_prose()
                self._end(self._release(call, ToolRun), "incomplete")

    def count(self, event: Fields) -> None:
        """Add to the usage."""
        self._usage = added(self._usage, event)

    def reset(self, event: Fields) -> None:
        """End, if anything was told that does not count any more."""
        if self._started:
            self.fail("reset", _RESET)

    def done(self, event: Fields) -> None:
        """End everything."""
        status, reason = event["status"], event["finish_reason"]
        cause = _INCOMPLETE.get(reason) if status == "completed" else None
        whole = status == "completed" and not cause
        for held in [call for call in self._calls.values() if isinstance(call, Held)]:
            self._end_prose()
            self._release(held, FunctionCall)
        for item in self._growing():
            self._end(item, "completed" if whole else "incomplete")
        self._usage = event["usage"] or self._usage
        if whole and {item["type"] for _, item in self._output} - {"reasoning"} == {"mcp_call"}:
            # Agents ask again until there is a message.
            self._prose = self._begin(Message(self._next_id(Message), self._places))
            self._end_prose()
        if whole:
            self._finish("completed", "completed")
        elif status == "failed":
            self._finish("failed", "failed", error=_error(event["error"]))
        else:
            # There is no event for what was cancelled; the status tells.
            details = {"reason": cause} if cause else None
            self._finish("incomplete", "incomplete" if cause else "cancelled", incomplete_details=details)

    def _finish(self, kind: str, status: str, **fields: Any) -> None:
        self._over = "ended"
        self.ended = self.response(status, **fields)
        self.emit(f"response.{kind}", response=self.ended)

    def _growing(self) -> list[Item]:
        """The items that still grow, in the order of their places."""
        begun = [call for call in self._calls.values() if isinstance(call, Item)]
        found: list[Item] = [*begun, *([self._prose] if self._prose else [])]
        return sorted(found, key=lambda item: item.place)

    def _begin_call(self, event: Fields) -> Call | Held:
        """Begin a call if it is known who runs it."""
        held = self._hold(event.get("id") or f"call_{event['index']}", event.get("name") or "")
        self._newest[event["index"]] = held.order
        kind = _CALLS.get(event.get("run_by") or "")
        if kind is None:
            return held
        self._end_prose()
        return self._release(held, kind)

    def _hold(self, call_id: str, name: str) -> Held:
        held = self._calls[self._calls_begun] = Held(self._calls_begun, call_id, name)
        self._calls_begun += 1
        return held

    def _release(self, held: Held, kind: type[GrowingCall]) -> GrowingCall:
        """Begin a call that was held back."""
        call = self._begin(kind(self._next_id(kind), self._places, held))
        self._calls[held.order] = call
        if arguments := str(held.arguments):
            self._grow(call, arguments)
        return call

    def _say(self, kind: type[Message] | type[Reasoning], delta: str) -> None:
        if type(self._prose) is not kind:
            self._end_prose()
            self._prose = self._begin(kind(self._next_id(kind), self._places))
        elif self._prose.place not in self._own:
            self._prose = self._owned(self._prose)
        self._grow(self._prose, delta)

    def _owned(self, item: GrowingItem) -> GrowingItem:
        """Return a copy that may be changed."""
        self._own.add(item.place)
        return item.copy()

    def _grow(self, item: Item, delta: str) -> None:
        self._frames.append(item.grow(delta, self.state.frames + len(self._frames)))

    def _begin(self, item: GrowingItem) -> GrowingItem:
        self._places += 1
        self._own.add(item.place)
        for frame in item.begin():
            self._emit_frame(frame)
        return item

    def _end_prose(self) -> None:
        """End the text or the reasoning that grows, if any does."""
        if self._prose:
            self._end(self._prose)

    def _end(self, item: Item, status: str = "completed") -> None:
        text, content = item.text, item.as_dict(status)
        for frame in item.end(text):
            self._emit_frame(frame)
        self.emit("response.output_item.done", output_index=item.place, item=content)
        self._output.append((item.place, content))
        if isinstance(item, Call):
            del self._calls[item.order]
        else:
            self._prose = None

    def _emit_frame(self, frame: Frame) -> None:
        kind, fields = frame
        self.emit(kind, **fields)

    def _next_id(self, kind: type[Item]) -> str:
        return f"{kind.prefix}_{self._suffix()}"

    def _suffix(self) -> str:
        return f"{self.state.response['id'].removeprefix('resp_')}_{self._places}"


_CALLS: Final[Mapping[str, type[Call]]] = {"client": FunctionCall, "generator": ToolRun}
_TAKES: Final[Mapping[str, Callable[[_Writer, Fields], None]]] = {
    "text": _Writer.text,
    "reasoning": _Writer.reasoning,
    "tool_call": _Writer.call,
    "tool_result": _Writer.result,
    "tool_approval": _Writer.approval,
    "usage": _Writer.count,
    "reset": _Writer.reset,
    "done": _Writer.done,
}


def _unchanging(stream: Stream, given: Any) -> Fields:
    """What stays the same in a Response from its first event to its last."""
    request = given if isinstance(given, Mapping) and "input" in given else {}
    repeated = {name: request.get(name, default) for name, default in _REPEATED.items()}
    return {
        "id": response_id(stream.id),
        "object": "response",
        "created_at": int(stream.created_at.timestamp()),
        "model": request.get("model") or stream.generator,
        # Each goes on without its client.
        "background": True,
        "error": None,
        "incomplete_details": None,
        "metadata": {name: _as_text(value) for name, value in stream.metadata.items()},
        **repeated,
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _text_part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary(text: str) -> Fields:
    return {"type": "summary_text", "text": text}


def _error(error: Fields) -> Fields:
    """An error with one of the codes that OpenAI's clients know, and ours in the sentence."""
    code = "rate_limit_exceeded" if error["code"] == "provider_rate_limited" else "server_error"
    return {"code": code, "message": f"{error['message']} ({error['code']})"}


def _usage(counts: Mapping[str, Any] | None) -> Fields | None:
    tokens = Tokens.of(counts)
    if tokens is None:
        return None
    return {
        "input_tokens": tokens.given,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_written},
        "output_tokens": tokens.made,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.total,
    }


RESPONSES: Final = Responses()
