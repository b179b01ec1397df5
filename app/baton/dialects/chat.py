"""The dialect of OpenAI's Chat Completions: a stream as chunks of one choice.

Reasoning is `reasoning_content`, as in compatible servers and many clients. Events without a counterpart (`custom`) are
left out, and so are the tools that the generator ran: a client runs every call that it gets. Who runs a call is known
when its result comes or the stream ends, unless its first event says so. Until then it is held back.

A client cannot resume a completion, and the format cannot say that the answer was cancelled or restarts: such an end is
an error, without the `[DONE]` that ends a whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, NotRequired
from uuid import UUID

import orjson
from typing_extensions import TypedDict

from ..db.event_log import Batch
from ..db.streams import Stream
from ..events import begins_call, escape_line_ends
from ..snapshot import Snapshot
from ..usage import added
from . import sse
from .openai import RESET, Tokens, error_of
from .protocol import Chain, Encoded, Header, Over

_DONE: Final = b"data: [DONE]\n\n"
_FINISH_REASONS: Final = frozenset({"length", "content_filter"})

Fields = dict[str, Any]
# The state after an event, the frames that it became, and whether they are the last.
Taken = tuple["ChatState", list[bytes], Over | None]


class Function(TypedDict):
    """The function that a call runs. Its arguments are JSON."""

    name: str
    arguments: str


class CompletionCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: Function


class CompletionMessage(TypedDict):
    """The answer itself."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CompletionCall]]


class Choice(TypedDict):
    """The only choice of a completion."""

    index: int
    message: CompletionMessage
    logprobs: None
    finish_reason: str


class Head(TypedDict):
    """The first fields of a completion and of each of its chunks."""

    id: str
    object: str
    created: int
    model: str


class Completion(Head):
    """A whole answer in the form of OpenAI's Chat Completions."""

    choices: list[Choice]
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A tool call. `number` is its place among the calls sent to the client; None if it was not sent."""

    index: int
    id: str | None
    name: str
    run_by: str | None
    number: int | None = None
    arguments: Chain = field(default_factory=Chain)  # while it is held back


@dataclass(frozen=True, slots=True)
class ChatState:
    """The state: the fields that all chunks repeat, and whether the client has been sent any content.

    `calls` are in the order in which they began. `newest` has the place of the newest call of each index.
    """

    chunk: Head
    with_usage: bool
    started: bool = False
    usage: Mapping[str, Any] | None = None
    calls: tuple[ChatCall, ...] = ()
    newest: Mapping[int, int] = field(default_factory=dict)
    calls_sent: int = 0


class Chat:
    """The dialect."""

    name = "openai.chat"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    reconnects: ClassVar[bool] = False

    def begin(self, stream: Stream, given: Any) -> Encoded[ChatState]:
        """Return the chunk that precedes the first event; `given` is the stream's input."""
        options = given.get("stream_options") if isinstance(given, Mapping) else None
        with_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        state = ChatState(_head(stream, "chat.completion.chunk"), with_usage)
        return Encoded(_chunk(state, {"role": "assistant", "content": ""}), 1, 0, state)

    def encode(self, batch: Batch, state: ChatState, after: int) -> Encoded[ChatState]:
        """Encode a batch. It is always the whole batch: clients cannot resume."""
        frames: list[bytes] = []
        over: Over | None = None
        for event in map(orjson.loads, batch.lines):
            state, found, over = _TAKES.get(event["type"], _nothing)(state, event)
            if found and not state.started:
                state = replace(state, started=True)
            frames += found
            if over:
                break
        return Encoded(escape_line_ends(b"".join(frames)), batch.first_seq, batch.last_seq, state, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, which makes proxies forward the response."""
        return self.comment

    def broken(self, state: ChatState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error, and cut the connection, for clients that ignore the error."""
        return _error(code, message), "cut"


def completion_of(stream: Stream, snapshot: Snapshot) -> Completion:
    """Return the whole answer of a stream that was completed."""
    message: CompletionMessage = {"role": "assistant", "content": snapshot.text or None, "refusal": None}
    if snapshot.reasoning:
        message["reasoning_content"] = snapshot.reasoning
    if calls := snapshot.calls_of_the_client():
        message["tool_calls"] = [
            {
                "id": call["id"] or f"call_{index}",
                "type": "function",
                "function": {"name": call["name"] or "", "arguments": call["arguments"]},
            }
            for index, call in enumerate(calls)
        ]
    choice: Choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _reason(stream.finish_reason, bool(calls)),
    }
    return {
        **_head(stream, "chat.completion"),
        "choices": [choice],
        "usage": _usage(stream.usage or snapshot.usage),
    }


def completion_id(stream_id: UUID) -> str:
    """Return the id that a stream has as a completion."""
    return f"chatcmpl-{stream_id.hex}"


def _head(stream: Stream, kind: str) -> Head:
    return {
        "id": completion_id(stream.id),
        "object": kind,
        "created": int(stream.created_at.timestamp()),
        "model": stream.generator,
    }


def _chunk(state: ChatState, delta: Fields, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _frame({**state.chunk, "choices": [choice]} | ({"usage": None} if state.with_usage else {}))


def _nothing(state: ChatState, _event: Fields) -> Taken:
    return state, [], None


def _text(state: ChatState, event: Fields) -> Taken:
    return state, [_chunk(state, {"content": event["delta"]})], None


def _reasoning(state: ChatState, event: Fields) -> Taken:
    return state, [_chunk(state, {"reasoning_content": event["delta"]})], None


def _tool_call(state: ChatState, event: Fields) -> Taken:
    state, call = _with_call(state, event)
    return state, [] if call.number is None else [_chunk(state, {"tool_calls": [_call(event, call.number)]})], None


def _own_call(state: ChatState, event: Fields) -> Taken:
    """Drop a call that was held back: a result, or a question to the user, shows that the generator runs it."""
    for place, call in enumerate(state.calls):
        if (call.id or f"call_{call.index}") == event["id"] and call.number is None:
            state = _with_changed(state, place, replace(call, run_by="generator", arguments=Chain()))
    return state, [], None


def _count(state: ChatState, event: Fields) -> Taken:
    return replace(state, usage=added(state.usage, event)), [], None


def _reset(state: ChatState, _event: Fields) -> Taken:
    if state.started:
        return state, [_error("reset", f"{RESET}.")], "cut"
    return replace(state, calls=(), newest={}), [], None


def _done(state: ChatState, event: Fields) -> Taken:
    return state, _end(event, state), "ended" if event["status"] == "completed" else "cut"


_TAKES: Final[Mapping[str, Callable[[ChatState, Fields], Taken]]] = {
    "text": _text,
    "reasoning": _reasoning,
    "tool_call": _tool_call,
    "tool_result": _own_call,
    "tool_approval": _own_call,
    "usage": _count,
    "reset": _reset,
    "done": _done,
}


def _with_call(state: ChatState, event: Fields) -> tuple[ChatState, ChatCall]:
    """Return the call that an event belongs to. Clients join chunks by number: a call gets one when it is sent."""
    place = state.newest.get(event["index"])
    call = None if place is None else state.calls[place]
    if place is None or call is None or begins_call(event, call.id):
        place = len(state.calls)
        state, call = _begin(state, event)
    if call.number is None and call.run_by is None:
        call = replace(call, arguments=call.arguments.plus(event.get("arguments_delta") or ""))
        state = _with_changed(state, place, call)
    return state, call


def _begin(state: ChatState, event: Fields) -> tuple[ChatState, ChatCall]:
    index, run_by = event["index"], event.get("run_by")
    number = state.calls_sent if run_by == "client" else None
    call = ChatCall(index, event.get("id"), event.get("name") or "", run_by, number)
    newest = {**state.newest, index: len(state.calls)}
    sent = state.calls_sent + (number is not None)
    return replace(state, calls=(*state.calls, call), newest=newest, calls_sent=sent), call


def _with_changed(state: ChatState, place: int, call: ChatCall) -> ChatState:
    return replace(state, calls=(*state.calls[:place], call, *state.calls[place + 1 :]))


def _held_back(state: ChatState) -> Iterator[bytes]:
    """Yield the calls without a result: the client runs them."""
    held = (call for call in state.calls if call.number is None and call.run_by is None)
    for number, call in enumerate(held, state.calls_sent):
        function = {"name": call.name, "arguments": str(call.arguments)}
        call_id = call.id or f"call_{call.index}"
        whole = {"index": number, "id": call_id, "type": "function", "function": function}
        yield _chunk(state, {"tool_calls": [whole]})


def _call(event: Fields, number: int) -> Fields:
    call: Fields = {"index": number, "function": {"arguments": event.get("arguments_delta") or ""}}
    if event.get("id"):
        call |= {"id": event["id"], "type": "function"}
    if event.get("name"):
        call["function"]["name"] = event["name"]
    return call


def _end(event: Fields, state: ChatState) -> list[bytes]:
    if event["status"] == "failed":
        return [_error(event["error"]["code"], event["error"]["message"])]
    if event["status"] == "cancelled":
        return [_error("cancelled", "The answer was cancelled.")]
    held = list(_held_back(state))
    frames = [*held, _chunk(state, {}, _reason(event["finish_reason"], bool(held or state.calls_sent)))]
    if state.with_usage:
        usage = _usage(event["usage"] or state.usage)
        frames.append(_frame({**state.chunk, "choices": [], "usage": usage}))
    return [*frames, _DONE]


def _reason(reason: str | None, calls: bool) -> str:
    """Return why the answer ended. Calls for the client decide, not the generator's reason."""
    if reason in _FINISH_REASONS:
        return reason
    return "tool_calls" if calls else "stop"


def _usage(counts: Mapping[str, Any] | None) -> Fields | None:
    tokens = Tokens.of(counts)
    if tokens is None:
        return None
    return {
        "prompt_tokens": tokens.given,
        "completion_tokens": tokens.made,
        "total_tokens": tokens.total,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _error(code: str, message: str) -> bytes:
    return _frame({"error": error_of(code, message)})


def _frame(content: Fields) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)


CHAT: Final = Chat()
