"""The dialect of the Vercel AI SDK: its UI message stream protocol, which `useChat` and its transports read.

Frames are `data: <chunk as JSON>`, with `data: [DONE]` after the last. A chunk's number is its place in the stream,
and a client's `startIndex` is how many of them it has. Every stream that is sent to its end has exactly one `finish`,
as its last chunk, after an `error` or an `abort` too: `WorkflowChatTransport` comes back until it has seen one.

A tool call stays open, so that calls may interleave, until its result comes or the answer is complete; then its whole
input is sent. A call with a result is one that the generator ran, which `providerExecuted` says: without it the page
would run the tool again, or send the message back for a next step. A call without a result is for the page. What the
model says after a result is a new step of the answer. No step begins while a call is open, since the SDK would show a
call twice that continues in another step than it began in. Only a stopped answer ends with an empty step.

A stream may continue a message that the page has (`aisdk_message`). What is sent then differs between a client that has
the message, `AI_SDK`, and one that replays it, `REPLAY`; so a chunk's number belongs to one of the two.

The `finish` of an answer that has ended puts its status into the message's metadata. A page that has saved a message
without one has saved a part of an answer, and asks for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, NamedTuple
from uuid import UUID

import orjson

from ..db.event_log import Batch
from ..events import Status, escape_line_ends, read_json
from ..usage import added
from . import sse
from .aisdk_message import Earlier
from .dialect import Chain, Encoded, Header, Over

Kind = Literal["text", "reasoning"]

RESET: Final = "This answer was interrupted, and begins again. Send the message again."

# The replay of a chat without an answer. The AI SDK 7 that `WorkflowChatTransport` brings does not know "interrupted".
NO_ANSWER: Final = b'data: {"type":"finish","finishReason":"other"}\n\ndata: [DONE]\n\n'

_DONE: Final = b"data: [DONE]\n\n"
_APPROVAL: Final = re.compile(r"approval_([0-9a-f]{32})_(.+)", re.DOTALL)
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
    """A part of the answer that is open."""

    kind: Kind
    id: str
    head: bytes  # of the frame of each delta: all but the delta


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A tool call, and its arguments up to the batch at hand."""

    id: str
    name: str
    head: bytes  # of the frame of each delta: all but the delta
    arguments: Chain = field(default_factory=Chain)
    open: bool = True
    executed: bool = False  # the generator runs the tool


NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class AiSdkState(NamedTuple):
    """What is open after so many chunks.

    The call that grew last is kept apart, and what `calls` has of it is older. So a delta costs the same however many
    calls there are. It is a tuple because each batch makes one, and a frozen dataclass is slower to make.
    """

    calls: dict[str, Call]
    ids: Mapping[int, str]  # of calls, by index
    chunks: int = 0
    parts: int = 0  # of text and of reasoning, so far
    part: Part | None = None  # the last one, while it is open
    growing: Call | None = None
    open_calls: int = 0
    called: bool = False  # this step has a tool call
    answered: bool = False  # and the result of one
    begun: bool = False  # there is something that a reset would take back
    stream: str = ""  # its id, for the ids of approvals
    taken: frozenset[str] = frozenset()  # the ids of answered calls of the message that is continued
    renamed: Mapping[str, str] = NOTHING  # new calls whose ids the message already had
    usage: Mapping[str, int | float] | None = None  # the sum so far


class AiSdk:
    """The dialect."""

    headers: ClassVar[Sequence[Header]] = (*sse.HEADERS, (b"x-vercel-ai-ui-message-stream", b"v1"))
    comment: ClassVar[bytes] = b":\n\n"
    reconnects: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, batch: Batch, state: AiSdkState, after: int) -> Encoded[AiSdkState]:
        """Encode the chunks of a batch that follow number `after`."""
        chunks = Chunks(state)
        over: Over | None = None
        for event in map(orjson.loads, batch.lines):
            if event["type"] == "reset" and chunks.state.begun:
                # For these clients that is the end: a replay comes to it again.
                chunks.fail("reset", RESET, "failed")
            else:
                chunks.add(event)
            if chunks.ended:
                over = "ended"
                break
        return chunks.encoded(after, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Nothing: the first chunk is there at once."""
        return b""

    def broken(self, state: AiSdkState, code: str, message: str) -> tuple[bytes, Over]:
        """An error, and a `finish` without a status: how the answer ended is not known here."""
        chunks = Chunks(state)
        chunks.fail(code, message)
        return chunks.encoded(0, "ended").body, "ended"


class Chunks:
    """The chunks that a batch becomes, and the state after them.

    Deltas are most of what there is: they change nothing but what is gathered here.
    """

    def __init__(self, state: AiSdkState) -> None:
        self.state = state
        self.ended = False
        self._before = state.chunks
        self._frames: list[bytes] = []
        self._pieces: list[str] = []  # of the growing call's arguments
        self._copied = False  # the state's `calls` are this batch's own

    def add(self, event: Mapping[str, Any]) -> None:
        """Add what an event becomes; an event of an unknown kind becomes nothing."""
        match event["type"]:
            case "text" | "reasoning":
                self._part(event["type"], event["delta"])
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "tool_approval":
                self._approval(event)
            case "usage":
                self._count(event)
            case "custom":
                self._custom(event)
            case "done":
                self._done(event)

    def fail(self, code: str, message: str, status: Status | None = None) -> None:
        """Add an error, and the end that every stream has; with a status if this is the answer's end.

        Of the chunk a page gets the text alone, as the message of an `Error`: so the code is behind the sentence. The
        message's metadata, which a page saves, have both.
        """
        self._end_part()
        if status is not None:
            # An error is the last chunk that `useChat` reads.
            known = {"status": status, "error": {"code": code, "message": message}}
            self._emit("message-metadata", messageMetadata=known)
        self._emit("error", errorText=f"{message} ({code})")
        self._finish("error", status)

    def begin(self, stream_id: UUID, earlier: Earlier | None, *, replay: bool) -> None:
        """Add what precedes the first event."""
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
        return Encoded(body + _DONE if over else body, first, last, state, over)

    def _continue(self, earlier: Earlier, metadata: dict[str, Any], replay: bool) -> None:
        self._emit("start", messageId=earlier.id, messageMetadata=earlier.metadata_with(metadata, whole=replay))
        self._frames.extend(map(_frame, earlier.chunks() if replay else earlier.denials()))
        calls = {call_id: Call(call_id, name, b"", open=False) for call_id, name in earlier.unanswered.items()}
        self._set(parts=earlier.prose, calls=calls, taken=earlier.answered)

    def _count(self, event: Mapping[str, Any]) -> None:
        """Add to the usage, and say what it is now: clients keep the last."""
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
        self._say()
        number = self.state.parts + 1
        part = Part(kind, f"{kind}-{number}", _head(f"{kind}-delta", "delta", id=f"{kind}-{number}"))
        self._set(part=part, parts=number)
        self._emit(f"{kind}-start", id=part.id)
        return part

    def _call(self, event: Mapping[str, Any]) -> None:
        given = self._id_of(event)
        call = self._known(self._name_of(given))
        if call is None:
            self._say()
            call = self._begin_call(self._own_name_of(given), event.get("name"), event.get("run_by") == "generator")
            self._set(ids={**self.state.ids, event["index"]: given})
            self._emit("tool-input-start", toolCallId=call.id, toolName=call.name, **_executed(call.executed))
        delta = event.get("arguments_delta")
        if call.open and delta:
            if call is not self.state.growing:
                self._put_back()
                self._set(growing=call)
            self._pieces.append(delta)
            self._frames.append(b"%b%b}\n\n" % (call.head, orjson.dumps(delta)))

    def _begin_call(self, call_id: str, name: str | None, executed: bool) -> Call:
        head = _head("tool-input-delta", "inputTextDelta", toolCallId=call_id)
        call = Call(call_id, name or _NAMELESS, head, executed=executed)
        self._put(call)
        self._set(open_calls=self.state.open_calls + 1, called=True)
        return call

    def _name_of(self, given: str) -> str:
        """Return the id that a call has on the page."""
        return self.state.renamed.get(given, given)

    def _own_name_of(self, given: str) -> str:
        """Return an id that no other call of the message has: some servers count their calls from 0 in each answer."""
        if given not in self.state.taken:
            return given
        name = next(name for n in count(2) if (name := f"{given}-{n}") not in self.state.taken)
        self._set(renamed={**self.state.renamed, given: name})
        return name

    def _known(self, call_id: str) -> Call | None:
        growing = self.state.growing
        return growing if growing and growing.id == call_id else self.state.calls.get(call_id)

    def _grown(self) -> Call | None:
        """Return the growing call with what it grew by."""
        call = self.state.growing
        if call and self._pieces:
            call = replace(call, arguments=call.arguments.plus("".join(self._pieces)))
        return call

    def _put_back(self) -> None:
        """Put the growing call with the others."""
        if call := self._grown():
            self._put(call)
            self._pieces = []
            self._set(growing=None)

    def _put(self, call: Call) -> None:
        if not self._copied:
            self._set(calls=dict(self.state.calls))
            self._copied = True
        self.state.calls[call.id] = call

    def _id_of(self, event: Mapping[str, Any]) -> str:
        """An index that comes again with another id is another call, of an agent that counts from 0 in every step."""
        index: int = event["index"]
        return event.get("id") or self.state.ids.get(index) or f"call_{index}"

    def _result(self, event: Mapping[str, Any]) -> None:
        call_id = self._name_of(event["id"])
        self._end_part()
        self._put_back()
        if call_id not in self.state.taken:
            # To the SDK a result of no call would be an error.
            call = self.state.calls.get(call_id) or self._begin_call(call_id, event.get("name"), True)
            self._close(call, executed=True)
        self._emit("tool-output-available", toolCallId=call_id, output=event.get("result"), **_executed(True))
        self._set(answered=self.state.called, begun=True)

    def _approval(self, event: Mapping[str, Any]) -> None:
        """Ask the user about a call of this stream. One that is not open has been asked about, or answered."""
        call_id = self._name_of(event["id"])
        self._end_part()
        self._put_back()
        call = self.state.calls.get(call_id)
        if call is not None and call.open and self._close(call, executed=True):
            approval_id = approval_of(self.state.stream, event["id"])
            self._emit("tool-approval-request", approvalId=approval_id, toolCallId=call_id)

    def _close(self, call: Call, *, executed: bool = False) -> bool:
        """Send a call's whole input; return whether it was open, and is JSON."""
        if not call.open:
            return False
        self._put(replace(call, arguments=Chain(), open=False))
        self._set(open_calls=self.state.open_calls - 1)
        named = {"toolCallId": call.id, "toolName": call.name, **_executed(executed or call.executed)}
        arguments = str(call.arguments)
        try:
            # Encoded here, where what nests too deeply can still be refused.
            value = orjson.Fragment(orjson.dumps(read_json(arguments) if arguments.strip() else {}))
        except (ValueError, TypeError):
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
                # The SDK sends by itself what follows on the results in the last step, so that is an empty one.
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
        # Metadata also has the page look at the message again, which a step that begins does not.
        known = {} if status is None else {"messageMetadata": {"status": status}}
        self._emit("finish", finishReason=reason, **known)
        self.ended = True

    def _say(self) -> None:
        """Make way for something that the model says: it stands in a step and in no part yet."""
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
        self._frames.append(_frame({"type": kind, **fields}))

    def _set(self, **changes: Any) -> None:
        self.state = self.state._replace(**changes)


def begin(
    stream_id: UUID, after: int = 0, earlier: Earlier | None = None, *, replay: bool = False
) -> Encoded[AiSdkState]:
    """Return the chunks before a stream's first event, in the body those that follow number `after`.

    `earlier` is the message that the stream continues, and `replay` whether the client is to get that too.
    """
    chunks = Chunks(AiSdkState({}, {}))
    chunks.begin(stream_id, earlier, replay=replay)
    return chunks.encoded(after)


def approval_of(stream: str, call_id: str) -> str:
    """Return the id under which the user is asked about a call, from which the stream that asks can be read."""
    return f"approval_{stream}_{call_id}"


def asked_by(approval_id: str) -> tuple[UUID, str] | None:
    """Return the stream that asked and the id of the call in it; None if no stream asks under such an id."""
    found = _APPROVAL.fullmatch(approval_id)
    return None if found is None else (UUID(found[1]), found[2])


def _executed(executed: bool) -> dict[str, bool]:
    return {"providerExecuted": True} if executed else {}


def _frame(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(chunk)


def _head(kind: str, last: str, **fields: Any) -> bytes:
    """Return a frame up to the value of its last field."""
    return b'data: %b,"%b":' % (orjson.dumps({"type": kind, **fields})[:-1], last.encode())


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


# Of a client that has the message which the stream continues, if it continues one, and of a client that has nothing.
AI_SDK: Final = AiSdk("aisdk")
REPLAY: Final = AiSdk("aisdk.replay")
