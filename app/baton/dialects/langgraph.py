"""The dialect of LangGraph's server: a stream as the events of runs of a thread.

A *run* is what a client started: a stream up to its first wait, or what follows one of its waits. At a wait the run
ends with an interrupt, as a run of a graph does. The stream continues in another run, when somebody answers.

The frames of a run are numbered over all stream modes, and a client gets those of its modes. So a client may return in
other modes, and a number means the same on every pod. `values` has all messages of the thread. It is sent when a run
begins, after each result of a tool, and at the end: an answer in progress is in the chunks of `messages`.

`end` or `error` ends a run. A connection that ends earlier is cut: clients then return after their last frame.

After a `reset` the run has another attempt: its messages so far are removed, and it begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, get_args
from uuid import UUID

import orjson

from ..db.event_log import Batch
from ..db.streams import Stream
from ..events import MAX_SEQ, begins_call, encode_object, escape_line_ends
from ..usage import added
from . import langgraph_messages as messages
from . import sse
from .langgraph_interrupts import interrupts_of
from .protocol import Chain, Encoded, Header, Over

Fields = dict[str, Any]
Mode = Literal["custom", "messages-tuple", "updates", "values"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

# The node that the results of tools appear to come from.
_TOOLS: Final = "tools"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of a growing message. `index` is that of its events."""

    index: int
    id: str | None
    name: str
    arguments: Chain = field(default_factory=Chain)

    @property
    def whole(self) -> tuple[str, str, str]:
        """Its id, its name, and its arguments so far."""
        return self.id or f"call_{self.index}", self.name, str(self.arguments)


@dataclass(frozen=True, slots=True)
class Growing:
    """A message of the assistant that is not complete."""

    id: str
    text: Chain = field(default_factory=Chain)
    reasoning: Chain = field(default_factory=Chain)
    calls: tuple[Call, ...] = ()
    usage: Mapping[str, Any] | None = None

    def call_of(self, event: Mapping[str, Any]) -> int | None:
        """Return the place of the call that an event continues; None if it begins one."""
        for place in reversed(range(len(self.calls))):
            if self.calls[place].index == event["index"]:
                return None if begins_call(event, self.calls[place].id) else place
        return None

    def as_message(self, finish_reason: str | None = None) -> Fields:
        """Return it with what it has so far."""
        return messages.ai(
            self.id,
            str(self.text),
            reasoning=str(self.reasoning),
            calls=[call.whole for call in self.calls],
            usage=self.usage,
            finish_reason=finish_reason,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A run: a stream after its wait with the number `wait`, or from its beginning if that is 0.

    `alone`: of what precedes the answer, only the stream's own input is shown, as to the holder of its token.
    """

    stream_id: UUID
    thread_id: str
    assistant_id: str
    wait: int = 0
    alone: bool = False

    @property
    def id(self) -> str:
        """The id of the run: that of the stream, with the number of the wait, if any."""
        return str(self.stream_id) + (f"_{self.wait}" if self.wait else "")


@dataclass(frozen=True, slots=True)
class LangGraphState:
    """The state of the dialect.

    `earlier` are the messages before the answer, and `done` the complete ones of it, as JSON. `begun` is how many
    messages the attempt has begun. `calls` has the name and the arguments of each call in them, by its id. `live` is
    false before the run's first event. At the end of a run, `interrupts` has what it waits for, or `error` why it
    failed.
    """

    run: Run
    earlier: tuple[bytes, ...]
    frames: int = 0
    live: bool = False
    attempt: int = 1
    done: tuple[bytes, ...] = ()
    begun: int = 0
    growing: Growing | None = None
    calls: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    interrupts: Sequence[Fields] = ()
    error: Fields | None = None
    over: Over | None = None

    def values(self) -> bytes:
        """Return the values of the thread as JSON: its messages, and what it waits for."""
        fields = b'{"messages":[%b]' % b",".join([*self.earlier, *self.done])
        if self.interrupts:
            fields += b',"__interrupt__":%b' % encode_object(self.interrupts)
        return fields + b"}"


class LangGraph:
    """The dialect, for one run, in some of the stream modes."""

    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    # After a clean end without `end` or `error`, clients ask for the run's status, and return only while it is running.
    # If it has ended since, or was erased, they would take what they have for the whole. After a cut they return.
    reconnects: ClassVar[bool] = False

    def __init__(self, run: Run, modes: Iterable[Mode]) -> None:
        self._run = run
        self._modes = frozenset(modes)
        shown = "+".join(mode for mode in MODES if mode in self._modes)
        # What precedes the answer is in the state, and so in the encodings that clients share.
        self.name = f"langgraph:{run.wait}:{'alone' if run.alone else 'thread'}:{shown}"

    def begin(self, earlier: Iterable[Mapping[str, Any]], after: int = 0) -> Encoded[LangGraphState]:
        """Return the frames that precede the first event. `earlier` are the thread's messages before the answer."""
        state = LangGraphState(self._run, tuple(encode_object(message) for message in earlier))
        writer = _Writer(state, self._modes, after)
        if not self._run.wait:
            writer.start()
        return writer.encoded()

    def encode(self, batch: Batch, state: LangGraphState, after: int) -> Encoded[LangGraphState]:
        """Encode a batch."""
        writer = _Writer(state, self._modes, after)
        for seq, event in enumerate(map(orjson.loads, batch.lines), batch.first_seq):
            writer.add(event, seq)
        return writer.encoded()

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, which makes proxies forward the response."""
        return sse.COMMENT

    def broken(self, state: LangGraphState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error without a number."""
        return _frame(None, "error", orjson.dumps({"error": code, "message": message})), "ended"


class LangGraphResult:
    """The dialect of a client that waits for a run: one JSON object, at its end.

    The header is sent before, so that the client has the address at which it can wait again after a cut. Until the end
    it gets white space. The object is the values of the thread, or has the error, unless `quiet`.
    """

    headers: ClassVar[Sequence[Header]] = (
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    comment: ClassVar[bytes] = b"\n"
    reconnects: ClassVar[bool] = False

    def __init__(self, run: Run, *, quiet: bool = False) -> None:
        self._frames = LangGraph(run, ())
        self._quiet = quiet
        self.name = f"langgraph.result:{self._frames.name}:{'quiet' if quiet else 'raises'}"

    def begin(self, earlier: Iterable[Mapping[str, Any]]) -> Encoded[LangGraphState]:
        """Return what precedes the first event: nothing."""
        return self._frames.begin(earlier)._replace(body=b"")

    def encode(self, batch: Batch, state: LangGraphState, after: int) -> Encoded[LangGraphState]:
        """Encode a batch: to nothing, unless the run ends in it."""
        encoded = self._frames.encode(batch, state, MAX_SEQ)
        return encoded._replace(body=self._result(encoded.state) if encoded.over else b"")

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return white space, which makes proxies forward the response."""
        return self.comment

    def broken(self, state: LangGraphState, code: str, message: str) -> tuple[bytes, Over]:
        """Return the error in place of the values."""
        return orjson.dumps({"__error__": {"error": code, "message": message}}), "ended"

    def _result(self, state: LangGraphState) -> bytes:
        if state.error is not None and not self._quiet:
            return encode_object({"__error__": state.error})
        return state.values()


class _Writer:
    """Turns events into frames, from one state to the next."""

    def __init__(self, state: LangGraphState, modes: frozenset[Mode], after: int) -> None:
        self._before = state.frames
        self._state = state
        self._modes = modes
        self._after = after
        self._number = state.frames
        self._frames: list[bytes] = []
        self._growing = state.growing

    def encoded(self) -> Encoded[LangGraphState]:
        """Return the frames, and the state after them."""
        state = replace(self._state, frames=self._number, growing=self._growing)
        return Encoded(escape_line_ends(b"".join(self._frames)), self._before + 1, self._number, state, over=state.over)

    def start(self) -> None:
        """Begin the run."""
        self._set(live=True)
        self._begin_attempt()

    def add(self, event: Fields, seq: int) -> None:
        """Turn one event into frames."""
        if self._state.over:
            return
        match event["type"]:
            case "text" | "reasoning":
                self._prose(event)
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "usage":
                self._count(event)
            case "custom":
                self._emit("custom", "custom", _custom(event))
            case "reset":
                self._reset()
            case "waiting":
                self._wait(event, seq)
            case "done":
                self._end(event)

    def _prose(self, event: Fields) -> None:
        growing, delta = self._open(), event["delta"]
        if event["type"] == "text":
            self._growing = replace(growing, text=growing.text.plus(delta))
            self._chunk(growing.id, delta)
        else:
            self._growing = replace(growing, reasoning=growing.reasoning.plus(delta))
            self._chunk(growing.id, additional_kwargs={"reasoning_content": delta})

    def _call(self, event: Fields) -> None:
        delta = event.get("arguments_delta") or ""
        place = None if self._growing is None else self._growing.call_of(event)
        if place is None and not (event.get("id") or event.get("name")):
            return  # it belongs to a call that has its result
        growing = self._open()
        calls = list(growing.calls)
        if place is None:
            place, begun = len(calls), Call(event["index"], event.get("id"), event.get("name") or "")
            calls.append(begun)
            named: Fields = {"name": begun.name, "id": begun.whole[0]}
        else:
            named = {"name": None, "id": None}
        calls[place] = replace(calls[place], arguments=calls[place].arguments.plus(delta))
        self._growing = replace(growing, calls=tuple(calls))
        part = {**named, "args": delta, "index": place, "type": "tool_call_chunk"}
        self._chunk(growing.id, tool_call_chunks=[part])

    def _result(self, event: Fields) -> None:
        self._close()
        name = self._state.calls.get(event["id"], (None, ""))[0]
        result = event.get("result")
        content = result if isinstance(result, str) else encode_object(result).decode()
        message = messages.tool(self._next_id(), content, event["id"], name)
        self._emit("messages-tuple", "messages", [message, self._about(_TOOLS)])
        self._complete(message, _TOOLS)
        self._values()

    def _count(self, event: Fields) -> None:
        if self._growing is None:
            return
        self._growing = replace(self._growing, usage=added(self._growing.usage, event))
        if used := messages.usage_of(event):
            self._chunk(self._growing.id, usage_metadata=used)

    def _reset(self) -> None:
        state = self._state
        begun = [messages.numbered(self._name, number) for number in range(state.begun)]
        self._growing = None
        self._set(attempt=state.attempt + 1, done=(), begun=0, calls={})
        for message_id in begun:
            self._emit("messages-tuple", "messages", [messages.removed(message_id), self._about()])
        self._begin_attempt()

    def _wait(self, event: Fields, seq: int) -> None:
        """End the run with an interrupt, or begin it, after the wait before it."""
        self._close()
        if not self._state.live:
            if seq == self._state.run.wait:
                self.start()
            return
        found = interrupts_of(event["for"], self._state.run.stream_id, seq, self._state.calls)
        self._set(interrupts=found)
        self._emit("updates", "updates", {"__interrupt__": found})
        self._values()
        self._over("end")

    def _end(self, event: Fields) -> None:
        self._close(event["finish_reason"])
        if event["status"] == "completed":
            self._values()
            self._over("end")
        elif event["status"] == "failed":
            self._fail(event["error"]["code"], event["error"]["message"])
        else:
            self._fail("cancelled", "The run was cancelled.")

    def _fail(self, code: str, message: str) -> None:
        error = {"error": code, "message": message}
        self._set(error=error)
        self._over("error", error)

    def _begin_attempt(self) -> None:
        self._emit(None, "metadata", {"run_id": self._state.run.id, "attempt": self._state.attempt})
        self._values()

    def _over(self, event: str, data: Fields | None = None) -> None:
        self._emit(None, event, data)
        self._set(over="ended")

    def _open(self) -> Growing:
        """Return the growing message; begin one if there is none."""
        if self._growing is None:
            self._growing = Growing(self._next_id())
        return self._growing

    def _close(self, finish_reason: str | None = None) -> None:
        """Complete the growing message."""
        growing, self._growing = self._growing, None
        if growing is None:
            return
        message = growing.as_message(finish_reason)
        self._chunk(growing.id, response_metadata=message["response_metadata"], chunk_position="last")
        calls = {call_id: (name, arguments) for call_id, name, arguments in (call.whole for call in growing.calls)}
        self._set(calls={**self._state.calls, **calls})
        self._complete(message, self._state.run.assistant_id)

    def _complete(self, message: Fields, node: str) -> None:
        self._set(done=(*self._state.done, encode_object(message)))
        self._emit("updates", "updates", {node: {"messages": [message]}})

    @property
    def _name(self) -> str:
        """The id of the answer's first message. After a reset clients must not join chunks to the old ones."""
        attempt = self._state.attempt
        return f"msg_{self._state.run.stream_id.hex}" + (f"_attempt_{attempt}" if attempt > 1 else "")

    def _next_id(self) -> str:
        number = self._state.begun
        self._set(begun=number + 1)
        return messages.numbered(self._name, number)

    def _chunk(self, message_id: str, content: str = "", **fields: Any) -> None:
        if self._wants("messages-tuple"):
            self._emit("messages-tuple", "messages", [messages.chunk(message_id, content, **fields), self._about()])
        elif self._state.live:
            self._number += 1

    def _about(self, node: str | None = None) -> Fields:
        run = self._state.run
        known = {"run_id": run.id, "thread_id": run.thread_id, "assistant_id": run.assistant_id}
        return {**known, "langgraph_node": node or run.assistant_id}

    def _values(self) -> None:
        if not self._wants("values"):
            self._number += self._state.live
            return
        self._put("values", self._state.values())

    def _wants(self, mode: Mode) -> bool:
        """Whether the next frame, if it is of this mode, is for the client."""
        return self._state.live and mode in self._modes and self._number >= self._after

    def _emit(self, mode: Mode | None, event: str, data: Any) -> None:
        """Add a frame of a mode, or one for all clients."""
        if mode is None or mode in self._modes:
            self._put(event, encode_object(data))
        else:
            self._number += self._state.live

    def _put(self, event: str, data: bytes) -> None:
        if not self._state.live:
            return
        self._number += 1
        if self._number > self._after:
            self._frames.append(_frame(self._number, event, data))

    def _set(self, **fields: Any) -> None:
        self._state = replace(self._state, **fields)


def run_of(stream: Stream, thread_id: str, wait: int = 0, *, alone: bool = False) -> Run:
    """Return a run of a stream."""
    return Run(stream.id, thread_id, stream.generator, wait, alone)


def _custom(event: Fields) -> Any:
    """Return what a node of a graph has written; for other generators, the name and the data."""
    data = event.get("data")
    return data if event["name"] == "langgraph" else {"name": event["name"], "data": data}


def _frame(number: int | None, event: str, data: bytes) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode(), data)
