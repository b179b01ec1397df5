"""The dialects of AI SDK 3.4 and 4: their data stream protocol, one part a line, `code:json`.

A page takes a missing end for success. So an answer that does not end well has the error part `3`, on which it throws.
The connection ends cleanly after it: a cut one can make the page lose the part. A connection that ends without the
last part is cut. The protocol cannot take text back, and has no part for an answer that was stopped: both are errors.

A page runs each call of the part `9` at once. So a call is sent as `b` and `c`, which it only shows, and then either as
`a`, with the result of the generator, or as `9` when the answer ends. A call that the user was asked about gets
neither: these pages cannot answer. AI SDK 3.4 throws on the parts `f` (the start of a step) and `g` (reasoning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, NamedTuple

import orjson

from ..db.event_log import Batch
from ..events import read_json
from ..usage import added
from .openai import RESET, Tokens
from .protocol import Chain, Encoded, Header, Over

Version = Literal["v3", "v4"]
Event = Mapping[str, Any]

_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
_REASONS: Final = {"tool_calls": "tool-calls", "content_filter": "content-filter", "length": "length", "stop": "stop"}


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A tool call, and its arguments so far. It is `settled` if the page must not run it."""

    id: str
    name: str
    arguments: Chain = field(default_factory=Chain)
    settled: bool = False


class DataState(NamedTuple):
    """What is known after a number of events."""

    message: str  # the id of the message
    calls: Mapping[str, Call] = _NOTHING
    ids: Mapping[int, str] = _NOTHING  # of calls, by index
    answered: bool = False  # the step has the result of a call
    begun: bool = False
    usage: Event | None = None


class _Parts:
    """The parts of a batch, and the state after them."""

    def __init__(self, state: DataState, version: Version) -> None:
        self.state = state
        self.over: Over | None = None
        self.lines: list[bytes] = []
        self._is_newer = version == "v4"

    def add(self, event: Event) -> None:
        match event["type"]:
            case "text":
                self._begin()
                self.line(b"0", event["delta"])
            case "reasoning" if self._is_newer:
                self._begin()
                self.line(b"g", event["delta"])
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "tool_approval":
                self._settle(event["id"])
            case "custom":
                self.line(b"2", [{"name": event["name"], "data": event.get("data")}])
                self._set(begun=True)
            case "usage":
                self._set(usage=added(self.state.usage, event))
            case "reset" if self.state.begun:
                self.fail("reset", f"{RESET}. Send the message again.")
            case "done":
                self._done(event)

    def line(self, code: bytes, value: Any) -> None:
        self.lines.append(b"%b:%b\n" % (code, orjson.dumps(value)))

    def fail(self, code: str, message: str) -> None:
        """Add the error, which is the last part that a page reads. It gets only the text."""
        self.line(b"3", f"{message} ({code})")
        self.over = "ended"

    def _begin(self) -> None:
        """Prepare for output of the model: what follows a result is a new step."""
        if self.state.answered:
            self.line(b"e", {"finishReason": "tool-calls", "usage": _usage(None), "isContinued": False})
            if self._is_newer:
                self.line(b"f", {"messageId": self.state.message})
        self._set(answered=False, begun=True)

    def _call(self, event: Event) -> None:
        index = event["index"]
        call_id = event.get("id") or self.state.ids.get(index) or f"call_{index}"
        call = self.state.calls.get(call_id)
        if call is None:
            self._begin()
            call = Call(call_id, event.get("name") or "unknown")
            self._set(ids={**self.state.ids, index: call_id})
            self.line(b"b", {"toolCallId": call.id, "toolName": call.name})
        if (delta := event.get("arguments_delta")) and not call.settled:
            call = replace(call, arguments=call.arguments.plus(delta))
            self.line(b"c", {"toolCallId": call.id, "argsTextDelta": delta})
        self._put(replace(call, settled=call.settled or event.get("run_by") == "generator"))

    def _result(self, event: Event) -> None:
        call_id = event["id"]
        if call_id not in self.state.calls:
            # A page throws on a result without a call.
            self.line(b"b", {"toolCallId": call_id, "toolName": event.get("name") or "unknown"})
            self._put(Call(call_id, ""))
        self._settle(call_id)
        denied = event.get("denied") is True
        result = "Error: the user did not allow this call." if denied else event.get("result")
        self.line(b"a", {"toolCallId": call_id, "result": result})
        self._set(answered=True, begun=True)

    def _settle(self, call_id: str) -> None:
        if (call := self.state.calls.get(call_id)) is not None:
            self._put(replace(call, settled=True))

    def _put(self, call: Call) -> None:
        self._set(calls={**self.state.calls, call.id: call})

    def _done(self, event: Event) -> None:
        if event["status"] == "failed":
            self.fail(event["error"]["code"], event["error"]["message"])
            return
        if event["status"] == "cancelled":
            self.fail("cancelled", "The answer was cancelled.")
            return
        for call in self.state.calls.values():
            if not call.settled and not self._hand_over(call):
                return
        reason = _REASONS.get(event["finish_reason"], "other")
        known = {"finishReason": reason, "usage": _usage(event.get("usage") or self.state.usage)}
        self.line(b"e", {**known, "isContinued": False})
        self.line(b"d", known)
        self.over = "ended"

    def _hand_over(self, call: Call) -> bool:
        """Send a call for the page to run; return False if its arguments are no object, which a page throws on."""
        try:
            arguments = read_json(str(call.arguments).strip() or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            self.fail("invalid_tool_call", f"The model called {call.name} with arguments that are not JSON.")
            return False
        self.line(b"9", {"toolCallId": call.id, "toolName": call.name, "args": arguments})
        return True

    def _set(self, **changes: Any) -> None:
        self.state = self.state._replace(**changes)


class AiSdkData:
    """The dialect of one version."""

    headers: ClassVar[Sequence[Header]] = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
        (b"x-vercel-ai-data-stream", b"v1"),
    )
    comment: ClassVar[bytes] = b"\n"
    reconnects: ClassVar[bool] = False

    def __init__(self, version: Version) -> None:
        self.name = f"aisdk.{version}"
        self._version = version

    def begin(self, stream_digits: str) -> Encoded[DataState]:
        """Return the part before a stream's first event: the id of the message, where pages read it."""
        state = DataState(f"msg_{stream_digits}")
        parts = _Parts(state, self._version)
        if self._version == "v4":
            parts.line(b"f", {"messageId": state.message})
        return Encoded(b"".join(parts.lines), 1, 0, state)

    def encode(self, batch: Batch, state: DataState, after: int) -> Encoded[DataState]:
        """Encode a batch. It is always the whole batch: clients begin with the first."""
        parts = _Parts(state, self._version)
        for event in map(orjson.loads, batch.lines):
            parts.add(event)
            if parts.over:
                break
        return Encoded(b"".join(parts.lines), batch.first_seq, batch.last_seq, parts.state, parts.over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a keep-alive, which makes proxies forward the response."""
        return self.comment

    def broken(self, state: DataState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error."""
        parts = _Parts(state, self._version)
        parts.fail(code, message)
        return b"".join(parts.lines), "ended"


def _usage(counts: Event | None) -> dict[str, int]:
    tokens = Tokens.of(counts)
    return {
        "promptTokens": tokens.given if tokens else 0,
        "completionTokens": tokens.made if tokens else 0,
    }


AI_SDK_DATA: Final[Mapping[str, AiSdkData]] = {"v3": AiSdkData("v3"), "v4": AiSdkData("v4")}
