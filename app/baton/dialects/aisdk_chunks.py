"""Turns events into chunks of the AI SDK's UI message stream, from one state to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import orjson

from ..events import Status, escape_line_ends, read_json
from ..usage import added
from .aisdk_approval_id import approval_id
from .aisdk_message import Earlier
from .protocol import Chain, Encoded, Over

Kind = Literal["text", "reasoning"]

_DONE: Final = b"data: [DONE]\n\n"
_NAMELESS: Final = "unknown"  # the protocol wants a name of every tool
_FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool-calls",
    "content_filter": "content-filter",
    "error": "error",
}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An open part of the answer."""

    kind: Kind
    id: str
    head: bytes  # the frame of a delta without its text


@dataclass(frozen=True, slots=True, eq=False)
class ToolInput:
    """A tool call, and its arguments before this batch."""

    id: str
    name: str
    head: bytes  # the frame of a delta without its text
    arguments: Chain = field(default_factory=Chain)
    open: bool = True
    executed: bool = False  # the generator runs the tool
    settled: bool = False  # it has an outcome, or another stream asks about it


NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class AiSdkState(NamedTuple):
    """What is open after a number of chunks.

    The call that grew last is kept separately; its entry in `calls` is older. So a delta costs the same however many
    calls there are. It is a tuple because each batch makes one, and a frozen dataclass takes longer to make.
    """

    calls: dict[str, ToolInput]
    ids: Mapping[int, str]  # of calls, by index
    chunks: int = 0
    parts: int = 0  # of text and of reasoning, so far
    part: Part | None = None  # the last one, while it is open
    growing: ToolInput | None = None
    open_calls: int = 0
    called: bool = False  # this step has a tool call
    answered: bool = False  # and the result of one
    begun: bool = False  # a reset would discard something
    stream: str = ""  # its id, for the ids of approvals
    taken: frozenset[str] = frozenset()  # the ids of answered calls of the message that is continued
    renamed: Mapping[str, str] = NOTHING  # new calls whose ids the message already had
    usage: Mapping[str, int | float] | None = None  # the sum so far
    pause: bytes = b""  # what ends connections; only while the stream waits


class Chunks:
    """The chunks of a batch, and the state after them.

    Most events are deltas, which change only what is gathered here, and not the state.
    """

    def __init__(self, state: AiSdkState) -> None:
        self.state = state
        self.ended = False
        self._before = state.chunks
        self._frames: list[bytes] = []
        self._deltas: list[str] = []  # of the growing call's arguments
        self._copied = False  # the `calls` of the state are a copy of this batch

    def add(self, event: Mapping[str, Any], seq: int) -> None:
        """Add the chunks of the event with this number; those of an unknown type have none."""
        if self.state.pause:
            self._resume()
        match event["type"]:
            case "text" | "reasoning":
                self._part(event["type"], event["delta"])
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "tool_approval":
                self._approval(event, seq)
            case "waiting":
                self._wait(event, seq)
            case "usage":
                self._count(event)
            case "custom":
                self._custom(event)
            case "done":
                self._done(event)

    def fail(self, code: str, message: str, status: Status | None = None) -> None:
        """Add an error and the end of the stream. The end has a status if the answer has ended.

        A page gets only the text of the chunk, as the message of an `Error`: so the code follows the sentence. The
        message's metadata, which a page saves, has both.
        """
        if self.state.pause:
            self._resume()
        self._end_part()
        if status is not None:
            # An error is the last chunk that `useChat` reads.
            known = {"status": status, "error": {"code": code, "message": message}}
            self._emit("message-metadata", messageMetadata=known)
        self._emit("error", errorText=f"{message} ({code})")
        self._finish("error", status)

    def begin(self, stream_id: UUID, earlier: Earlier | None, *, replay: bool) -> None:
        """Add the chunks before the first event."""
        metadata: dict[str, Any] = {"streamId": str(stream_id)}
        self._set(stream=stream_id.hex)
        if earlier is None:
            self._emit("start", messageId=f"msg_{stream_id.hex}", messageMetadata=metadata)
        else:
            self._continue(earlier, metadata, replay)
        self._emit("start-step")

    def encoded(self, after: int, over: Over | None = None) -> Encoded[AiSdkState]:
        """Return the frames that follow number `after`."""
        first = self._before + 1
        last = self._before + len(self._frames)
        body = escape_line_ends(b"".join(self._frames[max(0, after - self._before) :]))
        state = self.state._replace(chunks=last, growing=self._grown())
        return Encoded(body + _DONE if over else body, first, last, state, over, state.pause)

    def _continue(self, earlier: Earlier, metadata: dict[str, Any], replay: bool) -> None:
        self._emit("start", messageId=earlier.id, messageMetadata=earlier.metadata_with(metadata, whole=replay))
        self._frames.extend(map(frame, earlier.chunks() if replay else earlier.denials()))
        calls = {
            call_id: ToolInput(call_id, name, b"", open=False, settled=True)
            for call_id, name in earlier.unanswered.items()
        }
        self._set(parts=earlier.prose, calls=calls, taken=earlier.answered)

    def _count(self, event: Mapping[str, Any]) -> None:
        """Add to the usage, and send the new sum: clients keep the last one."""
        total = added(self.state.usage, event)
        self._set(usage=total)
        counts = {_camel(name): value for name, value in total.items()}
        self._emit("message-metadata", messageMetadata={"usage": counts})

    def _part(self, kind: Kind, delta: str) -> None:
        part = self.state.part
        if part is None or part.kind != kind:
            part = self._begin_part(kind)
        self._frames.append(b"%b%b}\n\n" % (part.head, orjson.dumps(delta)))

    def _begin_part(self, kind: Kind) -> Part:
        self._before_output()
        number = self.state.parts + 1
        part = Part(kind, f"{kind}-{number}", _head(f"{kind}-delta", "delta", id=f"{kind}-{number}"))
        self._set(part=part, parts=number)
        self._emit(f"{kind}-start", id=part.id)
        return part

    def _call(self, event: Mapping[str, Any]) -> None:
        given = self._id_of(event)
        call = self._find_call(self._page_id(given))
        if call is None:
            self._before_output()
            call = self._begin_call(self._new_page_id(given), event.get("name"), event.get("run_by") == "generator")
            self._set(ids={**self.state.ids, event["index"]: given})
            self._emit("tool-input-start", toolCallId=call.id, toolName=call.name, **_executed(call.executed))
        delta = event.get("arguments_delta")
        if call.open and delta:
            if call is not self.state.growing:
                self._put_back()
                self._set(growing=call)
            self._deltas.append(delta)
            self._frames.append(b"%b%b}\n\n" % (call.head, orjson.dumps(delta)))

    def _begin_call(self, call_id: str, name: str | None, executed: bool) -> ToolInput:
        head = _head("tool-input-delta", "inputTextDelta", toolCallId=call_id)
        call = ToolInput(call_id, name or _NAMELESS, head, executed=executed)
        self._put(call)
        self._set(open_calls=self.state.open_calls + 1, called=True)
        return call

    def _page_id(self, given: str) -> str:
        """Return the id that a call has on the page."""
        return self.state.renamed.get(given, given)

    def _new_page_id(self, given: str) -> str:
        """Return an id that no other call of the message has: some servers count their calls from 0 in each answer."""
        if given not in self.state.taken:
            return given
        name = next(name for n in count(2) if (name := f"{given}-{n}") not in self.state.taken)
        self._set(renamed={**self.state.renamed, given: name})
        return name

    def _find_call(self, call_id: str) -> ToolInput | None:
        growing = self.state.growing
        return growing if growing and growing.id == call_id else self.state.calls.get(call_id)

    def _grown(self) -> ToolInput | None:
        """Return the growing call with its new arguments."""
        call = self.state.growing
        if call and self._deltas:
            call = replace(call, arguments=call.arguments.plus("".join(self._deltas)))
        return call

    def _put_back(self) -> None:
        """Store the growing call with the others."""
        if call := self._grown():
            self._put(call)
            self._deltas = []
            self._set(growing=None)

    def _put(self, call: ToolInput) -> None:
        if not self._copied:
            self._set(calls=dict(self.state.calls))
            self._copied = True
        self.state.calls[call.id] = call

    def _id_of(self, event: Mapping[str, Any]) -> str:
        """Return the id of an event's call. Agents reuse an index with a new id for another call in the next step."""
        index: int = event["index"]
        return event.get("id") or self.state.ids.get(index) or f"call_{index}"

    def _result(self, event: Mapping[str, Any]) -> None:
        call_id = self._page_id(event["id"])
        self._end_part()
        self._put_back()
        if call_id not in self.state.taken:
            # The SDK throws on a result without a call.
            call = self.state.calls.get(call_id) or self._begin_call(call_id, event.get("name"), True)
            self._close(call, executed=True)
            self._put(replace(self.state.calls[call_id], settled=True))
        if event.get("denied") is True:
            self._emit("tool-output-denied", toolCallId=call_id)
        else:
            self._emit("tool-output-available", toolCallId=call_id, output=event.get("result"), **_executed(True))
        self._set(answered=self.state.called, begun=True)

    def _approval(self, event: Mapping[str, Any], seq: int) -> None:
        """Ask the user about a call of this stream without an outcome, which may be asked about again."""
        call_id = self._page_id(event["id"])
        self._end_part()
        self._put_back()
        call = self.state.calls.get(call_id)
        if call is None or call.settled or (call.open and not self._close(call, executed=True)):
            return
        self._emit("tool-approval-request", approvalId=approval_id(self.state.stream, seq), toolCallId=call_id)

    def _wait(self, event: Mapping[str, Any], seq: int) -> None:
        """End the step, because the stream waits for people.

        The page could not continue an open call in another response. A call that is open now is the generator's: one
        for the page ends the stream.
        """
        self._end_part()
        self._put_back()
        reason = "tool-calls" if self.state.called else "other"
        for call in list(self.state.calls.values()):
            self._close(call, executed=True)
        self._emit("finish-step")
        # A page sends the number back with the message: it says up to where the page has the answer.
        known = {"waiting": {"seq": seq, "for": event.get("for"), "until": event.get("until")}}
        finish = frame({"type": "finish", "finishReason": reason, "messageMetadata": known})
        self._set(answered=False, called=False, pause=escape_line_ends(finish) + _DONE)

    def _resume(self) -> None:
        """Take the wait back, in place of the `finish` that ended connections, and begin a step."""
        self._set(pause=b"")
        self._emit("message-metadata", messageMetadata={"waiting": None})
        self._emit("start-step")

    def _close(self, call: ToolInput, *, executed: bool = False) -> bool:
        """Send a call's whole input; return whether it was open, and is JSON."""
        if not call.open:
            return False
        self._put(replace(call, arguments=Chain(), open=False))
        self._set(open_calls=self.state.open_calls - 1)
        named = {"toolCallId": call.id, "toolName": call.name, **_executed(executed or call.executed)}
        arguments = str(call.arguments)
        try:
            # Encoded here, where an error for deep nesting can still be handled.
            value = orjson.Fragment(orjson.dumps(read_json(arguments) if arguments.strip() else {}))
        except (ValueError, TypeError):
            self._put(replace(self.state.calls[call.id], settled=True))
            sentence = "The arguments of this call are not JSON."
            self._emit("tool-input-error", **named, input=arguments, errorText=sentence)
            return False
        self._emit("tool-input-available", **named, input=value)
        return True

    def _custom(self, event: Mapping[str, Any]) -> None:
        data = event.get("data")
        if event["name"] == "source" and isinstance(data, dict) and isinstance(data.get("url"), str):
            titled = {"title": str(data["title"])} if data.get("title") else {}
            self._emit("source-url", sourceId=str(data.get("id") or data["url"]), url=data["url"], **titled)
        else:
            named = {"id": event["id"]} if isinstance(event.get("id"), str) else {}
            self._emit(f"data-{event['name']}", **named, data=data)
        self._set(begun=True)

    def _done(self, event: Mapping[str, Any]) -> None:
        if event["status"] == "failed":
            self.fail(event["error"]["code"], event["error"]["message"], "failed")
            return
        self._end_part()
        if event["status"] == "cancelled":
            if self.state.called:
                # The SDK sends the results of the last step automatically, so the last step must be empty.
                self._emit("start-step")
            self._emit("abort", reason=event["finish_reason"])
            # AI SDK 5, 6 and the first of 7 do not know the reason "interrupted".
            self._finish("other", "cancelled")
        else:
            self._put_back()
            for call in list(self.state.calls.values()):
                self._close(call)
            self._emit("finish-step")
            self._finish(_FINISH_REASONS.get(event["finish_reason"], "other"), "completed")

    def _finish(self, reason: str, status: Status | None) -> None:
        # Metadata also makes the page render the message again, and a new step does not.
        known = {} if status is None else {"messageMetadata": {"status": status}}
        self._emit("finish", finishReason=reason, **known)
        self.ended = True

    def _before_output(self) -> None:
        """Prepare for new output of the model: end the open part, and begin a new step after a result."""
        self._end_part()
        if self.state.answered and not self.state.open_calls:
            self._emit("finish-step")
            self._emit("start-step")
            self._set(answered=False, called=False)
        self._set(begun=True)

    def _end_part(self) -> None:
        if part := self.state.part:
            self._emit(f"{part.kind}-end", id=part.id)
            self._set(part=None)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._frames.append(frame({"type": kind, **fields}))

    def _set(self, **changes: Any) -> None:
        self.state = self.state._replace(**changes)


def _executed(executed: bool) -> dict[str, bool]:
    return {"providerExecuted": True} if executed else {}


def frame(chunk: Mapping[str, Any]) -> bytes:
    """Return the frame of a chunk."""
    return b"data: %b\n\n" % orjson.dumps(chunk)


def _head(kind: str, last: str, **fields: Any) -> bytes:
    """Return the bytes of a frame before the value of its last field."""
    return b'data: %b,"%b":' % (orjson.dumps({"type": kind, **fields})[:-1], last.encode())


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
