"""Turns events into the frames of a Response, from one state to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import orjson

from ..events import begins_call, escape_line_ends
from ..usage import added
from .openai import RESET, Tokens, error_of
from .protocol import Encoded, Over
from .responses_items import CallItem, Fields, Frame, FunctionCall, HeldCall, Item, Message, Reasoning, ToolRun

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_RESET: Final = f"{RESET}. Retrieve the response without streaming to get the new one."

GrowingItem = TypeVar("GrowingItem", bound=Item)
GrowingCall = TypeVar("GrowingCall", bound=CallItem)


@dataclass(frozen=True, slots=True)
class ResponseState:
    """The state of the dialect.

    `frames`: their number so far. `output`: the complete items, with their places. Still growing are `prose`, which is
    text or reasoning, and `calls`, in the order in which they began; some are held back. `newest` has the newest call
    of each index.
    """

    response: Mapping[str, Any]
    frames: int = 0
    started: bool = False
    places: int = 0
    output: tuple[tuple[int, Fields], ...] = ()
    prose: Message | Reasoning | None = None
    calls: Mapping[int, CallItem | HeldCall] = field(default_factory=dict)
    newest: Mapping[int, int] = field(default_factory=dict)
    calls_begun: int = 0
    usage: Mapping[str, Any] | None = None
    over: Over | None = None


class ResponseWriter:
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
        self._own: set[int] = set()  # the places of the growing items that this writer has copied from the state
        self._usage = state.usage
        self._over = state.over

    def encoded(self, after: int) -> Encoded[ResponseState]:
        """Return the frames that follow number `after`, and the state after them."""
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

    def add(self, event: Fields) -> None:
        """Turn one event into frames."""
        handle = _HANDLERS.get(event["type"])
        if handle is None or self._over:
            return
        if not self._started and event["type"] != "reset":
            self._started = True
            self.emit("response.in_progress", response=self.response("in_progress"))
        handle(self, event)

    def emit(self, kind: str, **fields: Any) -> None:
        """Add a frame."""
        data = orjson.dumps({"type": kind, "sequence_number": self.state.frames + len(self._frames), **fields})
        self._frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def response(self, status: str, **fields: Any) -> Fields:
        """Return the Response so far."""
        output = [*self._output, *((item.place, item.as_dict("in_progress")) for item in self._growing())]
        return {
            **self.state.response,
            "status": status,
            "output": [item for _, item in sorted(output, key=lambda entry: entry[0])],
            "usage": _usage(self._usage),
            **fields,
        }

    def fail(self, code: str, message: str) -> None:
        """End with an error event. It has the error twice: clients look in different places."""
        self.emit("error", code=code, message=message, param=None, error=error_of(code, message))
        self._over = "ended"

    def text(self, event: Fields) -> None:
        """Add to the text, or begin it."""
        self._add_prose(Message, event["delta"])

    def reasoning(self, event: Fields) -> None:
        """Add to the reasoning, or begin it."""
        self._add_prose(Reasoning, event["delta"])

    def call(self, event: Fields) -> None:
        """Add to a call, or begin it."""
        order = self._newest.get(event["index"], -1)
        call = self._calls.get(order)
        if call is None and order >= 0 and not (event.get("id") or event.get("name")):
            return  # it belongs to a call that has ended
        if call is None or begins_call(event, call.call_id):
            call = self._begin_call(event)
        delta = event.get("arguments_delta")
        if isinstance(call, HeldCall):
            self._calls[call.order] = replace(call, arguments=call.arguments.plus(delta or ""))
        elif delta:
            if call.place not in self._own:
                call = self._calls[call.order] = self._owned(call)
            self._grow(call, delta)

    def result(self, event: Fields) -> None:
        """End the call of this result: the generator has run it."""
        self._end_prose()
        result = event.get("result")
        output = result if isinstance(result, str) else orjson.dumps(result).decode()
        found = [call for call in self._calls.values() if call.call_id == event["id"]]
        for call in found or [self._hold(event["id"], event.get("name") or "unknown")]:
            if isinstance(call, FunctionCall):
                self._end(call)
                continue
            run = self._release(call, ToolRun) if isinstance(call, HeldCall) else call
            if run.place not in self._own:
                run = self._owned(run)
            if isinstance(run, ToolRun):
                run.output = output
            self._end(run)

    def approval(self, event: Fields) -> None:
        """Begin the call that needs the user's approval, as one of the generator: the client must not run it.

        It grows until its result comes, which may be after a wait. This API cannot ask.
        """
        for call in [call for call in self._calls.values() if call.call_id == event["id"]]:
            if isinstance(call, HeldCall):
                self._end_prose()
                self._release(call, ToolRun)

    def count(self, event: Fields) -> None:
        """Add to the usage."""
        self._usage = added(self._usage, event)

    def reset(self, event: Fields) -> None:
        """End the stream, if frames were sent that no longer count."""
        if self._started:
            self.fail("reset", _RESET)

    def done(self, event: Fields) -> None:
        """End everything."""
        status, reason = event["status"], event["finish_reason"]
        cause = _INCOMPLETE.get(reason) if status == "completed" else None
        whole = status == "completed" and not cause
        for held in [call for call in self._calls.values() if isinstance(call, HeldCall)]:
            self._end_prose()
            self._release(held, FunctionCall)
        for item in self._growing():
            without_result = isinstance(item, ToolRun) and item.output is None
            self._end(item, "completed" if whole and not without_result else "incomplete")
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
            # The API has no event for a cancelled Response. The status says it.
            details = {"reason": cause} if cause else None
            self._finish("incomplete", "incomplete" if cause else "cancelled", incomplete_details=details)

    def _finish(self, kind: str, status: str, **fields: Any) -> None:
        self._over = "ended"
        self.ended = self.response(status, **fields)
        self.emit(f"response.{kind}", response=self.ended)

    def _growing(self) -> list[Item]:
        """Return the items that still grow, in the order of their places."""
        begun = [call for call in self._calls.values() if isinstance(call, Item)]
        found: list[Item] = [*begun, *([self._prose] if self._prose else [])]
        return sorted(found, key=lambda item: item.place)

    def _begin_call(self, event: Fields) -> CallItem | HeldCall:
        """Begin a call if it is known who runs it; otherwise hold it back."""
        held = self._hold(event.get("id") or f"call_{event['index']}", event.get("name") or "")
        self._newest[event["index"]] = held.order
        kind = _CALLS.get(event.get("run_by") or "")
        if kind is None:
            return held
        self._end_prose()
        return self._release(held, kind)

    def _hold(self, call_id: str, name: str) -> HeldCall:
        held = self._calls[self._calls_begun] = HeldCall(self._calls_begun, call_id, name)
        self._calls_begun += 1
        return held

    def _release(self, held: HeldCall, kind: type[GrowingCall]) -> GrowingCall:
        """Begin a call that was held back."""
        call = self._begin(kind(self._next_id(kind), self._places, held))
        self._calls[held.order] = call
        if arguments := str(held.arguments):
            self._grow(call, arguments)
        return call

    def _add_prose(self, kind: type[Message] | type[Reasoning], delta: str) -> None:
        if type(self._prose) is not kind:
            self._end_prose()
            self._prose = self._begin(kind(self._next_id(kind), self._places))
        elif self._prose.place not in self._own:
            self._prose = self._owned(self._prose)
        self._grow(self._prose, delta)

    def _owned(self, item: GrowingItem) -> GrowingItem:
        """Return a copy that may change."""
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
        """End the text or the reasoning, if it still grows."""
        if self._prose:
            self._end(self._prose)

    def _end(self, item: Item, status: str = "completed") -> None:
        text, content = item.text, item.as_dict(status)
        for frame in item.end(text):
            self._emit_frame(frame)
        self.emit("response.output_item.done", output_index=item.place, item=content)
        self._output.append((item.place, content))
        if isinstance(item, CallItem):
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


_CALLS: Final[Mapping[str, type[CallItem]]] = {"client": FunctionCall, "generator": ToolRun}
_HANDLERS: Final[Mapping[str, Callable[[ResponseWriter, Fields], None]]] = {
    "text": ResponseWriter.text,
    "reasoning": ResponseWriter.reasoning,
    "tool_call": ResponseWriter.call,
    "tool_result": ResponseWriter.result,
    "tool_approval": ResponseWriter.approval,
    "usage": ResponseWriter.count,
    "reset": ResponseWriter.reset,
    "done": ResponseWriter.done,
}


def _error(error: Fields) -> Fields:
    """Return an error with a code that OpenAI's clients know, and our code in the sentence."""
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
