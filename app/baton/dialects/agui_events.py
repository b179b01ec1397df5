"""Turns the events of a stream into those of AG-UI, from one state to the next.

AG-UI's client keeps a list of messages. The answer is one message until a tool's result comes, or until text follows a
call: then the next one begins. The first has the id `msg_` and the stream's digits, as in the other dialects; the
others add a number.

A tool call stays open until its result comes or the answer ends, so calls may interleave. The client runs the calls
that have no result when the run is finished, and not before. So a call that the generator was to run gets a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import orjson

from ..events import escape_line_ends
from ..usage import added
from .agui_interrupts import Interrupt, interrupt_id
from .openai import RESET, Tokens
from .protocol import Encoded, Over

Kind = Literal["text", "reasoning"]
Fields = dict[str, Any]

PROTOCOL_VERSION: Final = "1.0"
_NAMELESS: Final = "unknown"
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
_NO_RESULT: Final = "Error: this call has no result."
_DENIED: Final = "Error: the user did not allow this call."
_DECISION: Final = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approved"],
}


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What all states of a run share: its names, and what the client had before it.

    `history` is the client's messages as a JSON list, which a restarted answer is put after; None if it is not known.
    `taken` are the ids of the calls in these messages.
    """

    thread: str
    id: str
    stream: str
    history: bytes | None = None
    taken: frozenset[str] = frozenset()

    @property
    def names(self) -> Fields:
        """The fields that name the run in its first and its last event."""
        return {"threadId": self.thread, "runId": self.id}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An open message of text or of reasoning."""

    kind: Kind
    id: str
    head: bytes  # the frame of its content without the text


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A tool call. `asked` is the number of the question about it; 0 if the user was not asked."""

    id: str
    head: bytes  # the frame of its arguments without the text
    run_by: str | None
    open: bool = True
    answered: bool = False
    asked: int = 0


class AgUiState(NamedTuple):
    """What is open after a number of frames. It is a tuple because each batch makes one."""

    run: Run
    frames: int = 0
    part: Part | None = None
    message: str = ""  # the id of the assistant's message that grows; empty if the next output begins one
    messages: int = 0  # the assistant's, so far
    thoughts: int = 0
    results: int = 0
    has_calls: bool = False  # the message that grows
    calls: Mapping[str, Call] = _NOTHING
    ids: Mapping[int, str] = _NOTHING  # of calls, by index
    renamed: Mapping[str, str] = _NOTHING  # new calls whose ids the client's messages already had
    begun: bool = False  # a reset would discard something
    usage: Mapping[str, Any] | None = None
    pause: bytes = b""


class Events:
    """The frames of a batch, and the state after them."""

    def __init__(self, state: AgUiState) -> None:
        self.state = state
        self.over: Over | None = None
        self._before = state.frames
        self._frames: list[bytes] = []

    def add(self, event: Mapping[str, Any], seq: int) -> None:
        """Add the frames of the event with this number; those of an unknown type have none."""
        if self.state.pause:
            self._set(pause=b"")
        match event["type"]:
            case "text" | "reasoning":
                self._part(event["type"], event["delta"])
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "tool_approval":
                self._question(event["id"], seq)
            case "custom":
                self._end_part()
                self._emit("CUSTOM", name=event["name"], value=event.get("data"))
            case "usage":
                self._set(usage=added(self.state.usage, event))
            case _:
                self._turn(event, seq)

    def _turn(self, event: Mapping[str, Any], seq: int) -> None:
        """Add the frames of an event after which the answer pauses, restarts or ends."""
        match event["type"]:
            case "waiting":
                self._wait(event, seq)
            case "reset":
                self._reset()
            case "done":
                self._done(event)

    def fail(self, code: str, message: str) -> None:
        """Add the error that ends the run. Nothing needs to be closed before it, and nothing may follow."""
        self._emit("RUN_ERROR", message=message, code=code, **_usage(self.state.usage))
        self.over = "ended"

    def encoded(self, after: int) -> Encoded[AgUiState]:
        """Return the frames that follow number `after`."""
        first, last = self._before + 1, self._before + len(self._frames)
        body = escape_line_ends(b"".join(self._frames[max(0, after - self._before) :]))
        return Encoded(body, first, last, self.state._replace(frames=last), self.over, self.state.pause)

    def _part(self, kind: Kind, delta: str) -> None:
        if not delta:
            return
        part = self.state.part
        if part is None or part.kind != kind:
            part = self._begin_part(kind)
        self._frames.append(b"%b%b}\n\n" % (part.head, orjson.dumps(delta)))

    def _begin_part(self, kind: Kind) -> Part:
        self._end_part()
        if kind == "text":
            name = self.state.message if self.state.message and not self.state.has_calls else self._begin_message()
            self._emit("TEXT_MESSAGE_START", messageId=name, role="assistant")
            part = Part(kind, name, _head("TEXT_MESSAGE_CONTENT", messageId=name))
        else:
            name = self._thought(self.state.thoughts + 1)
            self._set(thoughts=self.state.thoughts + 1)
            self._emit("REASONING_START", messageId=name)
            self._emit("REASONING_MESSAGE_START", messageId=name, role="reasoning")
            part = Part(kind, name, _head("REASONING_MESSAGE_CONTENT", messageId=name))
        self._set(part=part, begun=True)
        return part

    def _end_part(self) -> None:
        part = self.state.part
        if part is None:
            return
        if part.kind == "text":
            self._emit("TEXT_MESSAGE_END", messageId=part.id)
        else:
            self._emit("REASONING_MESSAGE_END", messageId=part.id)
            self._emit("REASONING_END", messageId=part.id)
        self._set(part=None)

    def _begin_message(self) -> str:
        number = self.state.messages + 1
        name = message_id(self.state.run.stream) + (f"_{number}" if number > 1 else "")
        self._set(message=name, messages=number, has_calls=False)
        return name

    def _thought(self, number: int) -> str:
        return f"{message_id(self.state.run.stream)}_reasoning_{number}"

    def _call(self, event: Mapping[str, Any]) -> None:
        given = self._id_of(event)
        call = self.state.calls.get(self.state.renamed.get(given, given))
        if call is None:
            call = self._begin_call(self._new_id(given), event.get("name"), event.get("run_by"))
            self._set(ids={**self.state.ids, event["index"]: given})
        delta = event.get("arguments_delta")
        if call.open and delta:
            self._frames.append(b"%b%b}\n\n" % (call.head, orjson.dumps(delta)))

    def _begin_call(self, call_id: str, name: str | None, run_by: str | None) -> Call:
        self._end_part()
        parent = self.state.message or self._begin_message()
        call = Call(call_id, _head("TOOL_CALL_ARGS", toolCallId=call_id), run_by)
        self._emit("TOOL_CALL_START", toolCallId=call_id, toolCallName=name or _NAMELESS, parentMessageId=parent)
        self._put(call)
        self._set(has_calls=True, begun=True)
        return call

    def _id_of(self, event: Mapping[str, Any]) -> str:
        index: int = event["index"]
        return event.get("id") or self.state.ids.get(index) or f"call_{index}"

    def _new_id(self, given: str) -> str:
        """Return an id that no call of an earlier message has: some servers count their calls from 0 in each answer."""
        taken = self.state.run.taken
        if given not in taken:
            return given
        name = next(name for n in count(2) if (name := f"{given}-{n}") not in taken)
        self._set(renamed={**self.state.renamed, given: name})
        return name

    def _put(self, call: Call) -> None:
        self._set(calls={**self.state.calls, call.id: call})

    def _close(self, call: Call) -> Call:
        if call.open:
            self._emit("TOOL_CALL_END", toolCallId=call.id)
            call = replace(call, open=False)
            self._put(call)
        return call

    def _result(self, event: Mapping[str, Any]) -> None:
        call_id = self.state.renamed.get(event["id"], event["id"])
        call = self.state.calls.get(call_id)
        if call is None and call_id not in self.state.run.taken:
            call = self._begin_call(call_id, event.get("name"), "generator")
        if event.get("denied") is True:
            self._answer(call_id, call, _DENIED)
        else:
            self._answer(call_id, call, _text(event.get("result")))

    def _answer(self, call_id: str, call: Call | None, content: str) -> None:
        """Add a call's result; `call` is None for a call of an earlier message."""
        self._end_part()
        if call is not None:
            self._put(replace(self._close(call), answered=True))
        number = self.state.results + 1
        name = f"{message_id(self.state.run.stream)}_result_{number}"
        self._emit("TOOL_CALL_RESULT", messageId=name, toolCallId=call_id, content=content, role="tool")
        self._set(results=number, message="", begun=True)

    def _question(self, given: str, seq: int) -> None:
        call = self.state.calls.get(self.state.renamed.get(given, given))
        if call is not None and not call.answered:
            self._put(replace(self._close(call), asked=seq))

    def _wait(self, event: Mapping[str, Any], seq: int) -> None:
        """Close everything: the run is interrupted here, and what follows the wait is another run's."""
        self._end_all()
        outcome = {"type": "interrupt", "interrupts": self._interrupts(event, seq)}
        # Without the usage, which the end of the stream has: readers add up what runs report.
        frame = _frame("RUN_FINISHED", **self.state.run.names, outcome=outcome)
        self._set(pause=escape_line_ends(frame))

    def _interrupts(self, event: Mapping[str, Any], seq: int) -> list[Fields]:
        reason = event.get("for")
        limit = {"expiresAt": event["until"]} if event.get("until") else {}
        asked = self._asked()
        if isinstance(reason, Mapping) and reason.get("type") == "approval":
            named = reason.get("calls")
            if isinstance(named, list):
                asked = [call for call in asked if self._given(call.id) in named]
            if asked:
                return [self._approval(call, seq) | limit for call in asked]
        kind = reason.get("type") if isinstance(reason, Mapping) else None
        name = interrupt_id(Interrupt(self.state.run.stream, seq, 0))
        shown = kind if isinstance(kind, str) else "input_required"
        return [{"id": name, "reason": shown, **limit, "metadata": {"for": reason}}]

    def _given(self, call_id: str) -> str:
        """Return the id that a call has in the log."""
        return next((given for given, name in self.state.renamed.items() if name == call_id), call_id)

    def _approval(self, call: Call, wait: int) -> Fields:
        name = interrupt_id(Interrupt(self.state.run.stream, wait, call.asked))
        return {"id": name, "reason": "tool_call", "toolCallId": call.id, "responseSchema": _DECISION}

    def _asked(self) -> list[Call]:
        return [call for call in self.state.calls.values() if call.asked and not call.answered]

    def _reset(self) -> None:
        """Put the client's messages back as they were before the answer, or end with an error."""
        if not self.state.begun:
            return
        run, had_thoughts = self.state.run, self.state.thoughts > 0
        if run.history is None:
            self.fail("reset", f"{RESET}. Send the message again.")
            return
        self._end_all()
        again = [self._thought(1)] if had_thoughts else []
        self._frames.append(snapshot(run.history, again))
        self.state = AgUiState(run, self.state.frames, usage=self.state.usage)

    def _end_all(self) -> None:
        self._end_part()
        for call in list(self.state.calls.values()):
            self._close(call)

    def _done(self, event: Mapping[str, Any]) -> None:
        if event["status"] == "failed":
            self.fail(event["error"]["code"], event["error"]["message"])
            return
        self._end_all()
        if event["status"] == "cancelled":
            outcome: Fields = {"outcome": {"type": "cancelled"}}
        elif asked := self._asked():
            outcome = {"outcome": {"type": "interrupt", "interrupts": [self._approval(call, 0) for call in asked]}}
        else:
            outcome = {}
        if event["status"] == "completed":
            for call in list(self.state.calls.values()):
                if call.run_by == "generator" and not (call.answered or call.asked):
                    self._answer(call.id, call, _NO_RESULT)
        known = {"metadata": {"finishReason": event["finish_reason"]}} if event.get("finish_reason") else {}
        usage = _usage(event.get("usage") or self.state.usage)
        self._emit("RUN_FINISHED", **self.state.run.names, **outcome, **usage, **known)
        self.over = "ended"

    def _emit(self, kind: str, **fields: Any) -> None:
        self._frames.append(_frame(kind, **fields))

    def _set(self, **changes: Any) -> None:
        self.state = self.state._replace(**changes)


def message_id(stream: str) -> str:
    """Return the id of the first message of a stream with these digits."""
    return f"msg_{stream}"


def started(run: Run, stream_id: str) -> bytes:
    """Return the frame that begins a run. Its metadata has the id by which the other APIs know the stream."""
    fields = {**run.names, "protocolVersion": PROTOCOL_VERSION, "metadata": {"streamId": stream_id}}
    return escape_line_ends(_frame("RUN_STARTED", **fields))


def snapshot(history: bytes, thoughts: Sequence[str] = ()) -> bytes:
    """Return the frame that replaces the client's messages by these, which are a JSON list.

    The client keeps its messages of reasoning unless the frame has one. So for an answer that begins again, `thoughts`
    has the id of the first of them: it is sent empty, and the others go.
    """
    empty = b",".join(orjson.dumps({"id": name, "role": "reasoning", "content": ""}) for name in thoughts)
    inside = history.strip()[1:-1]
    both = b",".join(filter(None, (inside, empty)))
    return b'data: {"type":"MESSAGES_SNAPSHOT","messages":[%b]}\n\n' % both


def _frame(kind: str, **fields: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({"type": kind, **fields})


def _head(kind: str, **fields: Any) -> bytes:
    """Return the bytes of a frame before the value of its last field, `delta`."""
    return b'data: %b,"delta":' % orjson.dumps({"type": kind, **fields})[:-1]


def _text(result: Any) -> str:
    return result if isinstance(result, str) else orjson.dumps(result).decode()


def _usage(counts: Mapping[str, Any] | None) -> Fields:
    tokens = Tokens.of(counts)
    if tokens is None:
        return {}
    known = {
        "inputTokens": tokens.given,
        "outputTokens": tokens.made,
        "totalTokens": tokens.given + tokens.made,
        "reasoningTokens": tokens.reasoning,
        "cachedInputTokens": tokens.cached,
        "cacheWriteInputTokens": tokens.cache_written,
    }
    return {"usage": [known]}
