"""The dialect of Anthropic's Messages API: a stream as one message, whose content is a list of blocks.

Blocks are numbered 0, 1, 2 … and follow one another: one is open at a time, and a closed one gets nothing more. So what
begins while a call is open waits until the call's arguments are complete. Events without a counterpart (`custom`) are
left out, and so are the tools that the generator ran, as in Chat Completions. Thinking is sent if the request asks for
it, as the API does: clients without it expect the text in the first block.

A block of thinking has a signature only if the generator gave one: it is the model provider's, and cannot be made here.
An empty one says that the block cannot go back to Anthropic, and `conversation` leaves such a block out.

A client cannot resume a message, and the format cannot say that the answer was cancelled or restarts: such an end is an
`error`, and the connection is cut, for clients that ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias
from uuid import UUID

import orjson
from typing_extensions import TypedDict

from ..codes import EndCode, RefusalCode, status_of_end
from ..db.event_log import Batch
from ..db.streams import Stream
from ..events import RESET_HEAD, begins_call, escape_line_ends
from ..usage import added
from . import sse
from .openai import RESET, Tokens
from .protocol import Chain, Encoded, Header, Over

Fields: TypeAlias = dict[str, Any]
# How much of the thinking a request asks for: none of it, or the blocks without their text, or all of it.
Thinking: TypeAlias = Literal["none", "omitted", "whole"]
StopReason: TypeAlias = Literal["end_turn", "max_tokens", "tool_use", "refusal"]

_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP_REASONS: Final[Mapping[str | None, StopReason]] = {"length": "max_tokens", "content_filter": "refusal"}
# The types of errors by their status. Others have the type of 400 or of 500.
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    501: "invalid_request_error",
    503: "overloaded_error",
}


class ErrorDetails(TypedDict):
    """What both SDKs show beside an error: its code is one of Baton's."""

    error_code: RefusalCode | EndCode | str


class ErrorContent(TypedDict):
    """An error as Anthropic's clients read it."""

    type: str
    message: str
    details: ErrorDetails


class Usage(TypedDict):
    """The tokens of a message. `input_tokens` are those that came neither from the cache nor into it."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class Message(TypedDict):
    """An answer in the form of the Messages API. Each type of block has more fields."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: StopReason | None
    stop_sequence: None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Block:
    """A block that is open, or waits for an open call.

    `begin` is what its first event has. `content` is the text of a block that waits, and the arguments of a call, also
    of an open one: they say when it is complete. `call` is the place of the call in `MessagesState.calls`, and `closes`
    whether the arguments so far end with a brace.
    """

    begin: Fields
    content: Chain = field(default_factory=Chain)
    signature: str = ""
    call: int | None = None
    closes: bool = False

    @property
    def kind(self) -> str:
        """The type of the block."""
        return str(self.begin["type"])

    @property
    def unfinished(self) -> bool:
        """Whether it is a call whose arguments are not complete. Only then may more follow behind other events."""
        # To parse them after each part of them would cost the square of their length.
        return self.call is not None and not (self.closes and _is_object(str(self.content)))

    def argued(self, delta: str) -> Block:
        """Return the call with more of its arguments."""
        end = delta.rstrip()
        return replace(self, content=self.content.plus(delta), closes=end.endswith("}") if end else self.closes)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. What is not known to be for the client is held back here, with its arguments."""

    index: int
    id: str | None
    name: str
    run_by: str | None
    arguments: Chain = field(default_factory=Chain)


@dataclass(frozen=True, slots=True)
class MessagesState:
    """The state. `number` is that of the open block, or of the next one; `waiting` follow it.

    `calls` are in the order in which they began. `newest` has the place of the newest call of each index.
    """

    thinking: Thinking
    number: int = 0
    open: Block | None = None
    waiting: tuple[Block, ...] = ()
    started: bool = False
    called: bool = False
    usage: Mapping[str, Any] | None = None
    calls: tuple[Call, ...] = ()
    newest: Mapping[int, int] = field(default_factory=dict)


# The state after an event, the events that it became, and whether they are the last.
Taken: TypeAlias = tuple[MessagesState, list[Fields], Over | None]


class Messages:
    """The dialect."""

    name = "anthropic.messages"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = _PING
    reconnects: ClassVar[bool] = False

    def begin(self, stream: Stream, thinking: Thinking) -> Encoded[MessagesState]:
        """Return the event that precedes the first event of the log."""
        message = _message(stream, [])
        return Encoded(_frame({"type": "message_start", "message": message}), 1, 0, MessagesState(thinking))

    def encode(self, batch: Batch, state: MessagesState, after: int) -> Encoded[MessagesState]:
        """Encode a batch. It is always the whole batch: clients cannot resume."""
        frames: list[bytes] = []
        over: Over | None = None
        for line in batch.lines:
            state, found, over = _take(state, orjson.loads(line))
            frames += map(_frame, found)
            if over:
                break
        return Encoded(escape_line_ends(b"".join(frames)), batch.first_seq, batch.last_seq, state, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, which makes proxies forward the response."""
        return sse.COMMENT

    def broken(self, state: MessagesState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error, and cut the connection, for clients that ignore the error."""
        return _frame(_error(code, message)), "cut"


def thinking_of(given: Mapping[str, Any]) -> Thinking:
    """Return how much of the thinking a request asks for."""
    asked = given.get("thinking")
    if not isinstance(asked, Mapping) or asked.get("type") not in {"enabled", "adaptive"}:
        return "none"
    return "omitted" if asked.get("display") == "omitted" else "whole"


def message_of(stream: Stream, lines: Sequence[str], thinking: Thinking) -> Message:
    """Return the whole answer of a stream that was completed: what its events add up to."""
    state, content = MessagesState(thinking), _Content()
    reset = max((place for place, line in enumerate(lines) if line.startswith(RESET_HEAD.decode())), default=-1)
    end: Fields = {}
    for line in lines[reset + 1 :]:
        state, events, _ = _take(state, orjson.loads(line))
        for event in events:
            if event["type"] == "message_delta":
                end = {**event["delta"], "usage": event["usage"]}
            content.add(event)
    message = _message(stream, content.blocks)
    message.update(end)  # type: ignore[typeddict-item]
    return message


class _Content:
    """Joins the events of a message to its blocks, as clients do. Used once, by one function."""

    def __init__(self) -> None:
        self.blocks: list[Fields] = []
        self._texts: list[str] = []  # of the open block

    def add(self, event: Fields) -> None:
        """Add an event."""
        if event["type"] == "content_block_start":
            self.blocks.append(dict(event["content_block"]))
            self._texts = []
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], self.blocks[-1]
            if delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                self._texts.append(delta[_DELTAS[block["type"]][1]])
        elif event["type"] == "content_block_stop":
            self._complete(self.blocks[-1], "".join(self._texts))

    def _complete(self, block: Fields, text: str) -> None:
        if block["type"] == "tool_use":
            block["input"] = _input(text)
        elif text:
            block[_DELTAS[block["type"]][1]] = text


def message_id(stream_id: UUID) -> str:
    """Return the id that a stream has as a message."""
    return f"msg_{stream_id.hex}"


def error_of(status: int, code: str, message: str) -> ErrorContent:
    """Return an error as Anthropic's clients read it."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": kind, "message": message, "details": {"error_code": code}}


def _message(stream: Stream, content: list[Fields]) -> Message:
    return {
        "id": message_id(stream.id),
        "type": "message",
        "role": "assistant",
        "model": stream.generator,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def _take(state: MessagesState, event: Fields) -> Taken:
    state, found, over = _TAKES.get(event["type"], _nothing)(state, event)
    if found and not state.started:
        state = replace(state, started=True)
    return state, found, over


def _nothing(state: MessagesState, _event: Fields) -> Taken:
    return state, [], None


def _text(state: MessagesState, event: Fields) -> Taken:
    if not event["delta"]:
        # The API refuses an empty text when the message comes back.
        return state, [], None
    return *_extended(state, {"type": "text", "text": ""}, event["delta"]), None


def _reasoning(state: MessagesState, event: Fields) -> Taken:
    if state.thinking == "none":
        return state, [], None
    if isinstance(event.get("redacted"), str):
        return *_begun(state, Block({"type": "redacted_thinking", "data": event["redacted"]})), None
    begin = {"type": "thinking", "thinking": "", "signature": ""}
    found: list[Fields] = []
    if event["delta"] and state.thinking == "whole":
        state, found = _extended(state, begin, event["delta"])
    if isinstance(event.get("signature"), str):
        state, more = _signed(state, begin, event["signature"])
        found += more
    return state, found, None


def _tool_call(state: MessagesState, event: Fields) -> Taken:
    """Send a call of the client. Until it is known who runs a call, it is held back."""
    place = state.newest.get(event["index"])
    call = None if place is None else state.calls[place]
    begins = place is None or call is None or begins_call(event, call.id)
    if begins:
        place = len(state.calls)
        call = Call(event["index"], event.get("id"), event.get("name") or "", event.get("run_by"))
        newest = {**state.newest, event["index"]: place}
        state = replace(state, calls=(*state.calls, call), newest=newest)
    assert place is not None
    assert call is not None
    delta = event.get("arguments_delta") or ""
    if call.run_by is None:
        return _with_call(state, place, replace(call, arguments=call.arguments.plus(delta))), [], None
    if call.run_by != "client":
        return state, [], None
    found: list[Fields] = []
    if begins:
        state, found = _begun(state, _call_block(call, place))
    state, more = _argued(state, place, delta)
    return state, found + more, None


def _own_call(state: MessagesState, event: Fields) -> Taken:
    """Drop a call that was held back: a result, or a question to the user, shows that the generator runs it."""
    for place, call in enumerate(state.calls):
        if (call.id or f"call_{call.index}") == event["id"] and call.run_by is None:
            state = _with_call(state, place, replace(call, run_by="generator", arguments=Chain()))
    return state, [], None


def _count(state: MessagesState, event: Fields) -> Taken:
    return replace(state, usage=added(state.usage, event)), [], None


def _reset(state: MessagesState, _event: Fields) -> Taken:
    if state.started:
        return state, [_error("reset", f"{RESET}.")], "cut"
    return replace(state, calls=(), newest={}), [], None


def _done(state: MessagesState, event: Fields) -> Taken:
    if event["status"] == "failed":
        return state, [_error(event["error"]["code"], event["error"]["message"])], "cut"
    if event["status"] == "cancelled":
        return state, [_error("cancelled", "The answer was cancelled.")], "cut"
    state, found = _closed(state)
    for place, call in enumerate(state.calls):
        if call.run_by is None:
            state, more = _begun(state, replace(_call_block(call, place), content=call.arguments))
            found += more
            state, more = _closed(state)
            found += more
    reason = _STOP_REASONS.get(event["finish_reason"]) or ("tool_use" if state.called else "end_turn")
    end = {"stop_reason": reason, "stop_sequence": None}
    usage = _usage(Tokens.of(event["usage"] or state.usage))
    return state, [*found, {"type": "message_delta", "delta": end, "usage": usage}, {"type": "message_stop"}], "ended"


_TAKES: Final[Mapping[str, Callable[[MessagesState, Fields], Taken]]] = {
    "text": _text,
    "reasoning": _reasoning,
    "tool_call": _tool_call,
    "tool_result": _own_call,
    "tool_approval": _own_call,
    "usage": _count,
    "reset": _reset,
    "done": _done,
}


def _extended(state: MessagesState, begin: Fields, text: str) -> tuple[MessagesState, list[Fields]]:
    """Add text to the last block, or to a new one if that is of another type."""
    last = state.waiting[-1] if state.waiting else state.open
    found: list[Fields] = []
    if last is None or last.kind != begin["type"] or last.signature:
        state, found = _begun(state, Block(begin))
    if state.waiting:
        return _with_last(state, content=state.waiting[-1].content.plus(text)), found
    return state, [*found, _delta(state.number, begin["type"], text)]


def _signed(state: MessagesState, begin: Fields, signature: str) -> tuple[MessagesState, list[Fields]]:
    """Sign the last block of thinking. Without its text it begins here."""
    last = state.waiting[-1] if state.waiting else state.open
    found: list[Fields] = []
    if last is None or last.kind != "thinking" or last.signature:
        state, found = _begun(state, Block(begin))
    if state.waiting:
        return _with_last(state, signature=signature), found
    assert state.open is not None
    return replace(state, open=replace(state.open, signature=signature)), [*found, _signature(state.number, signature)]


def _argued(state: MessagesState, place: int, delta: str) -> tuple[MessagesState, list[Fields]]:
    """Add arguments to a call. When it is complete, the blocks that wait for it follow."""
    block = state.open
    if block is not None and block.call == place:
        state = replace(state, open=block.argued(delta))
        found = [_delta(state.number, "tool_use", delta)] if delta else []
        # Only a brace can complete them. Without this check each delta would have all of them parsed.
        state, more = _released(state) if "}" in delta else (state, [])
        return state, found + more
    for number, each in enumerate(state.waiting):
        if each.call == place:
            waiting = (*state.waiting[:number], each.argued(delta), *state.waiting[number + 1 :])
            return replace(state, waiting=waiting), []
    # It was complete and is closed, so this is no part of its JSON.
    return state, []


def _begun(state: MessagesState, block: Block) -> tuple[MessagesState, list[Fields]]:
    """Begin a block behind the others: at once, or when the call that is open is complete."""
    state = replace(state, waiting=(*state.waiting, block), called=state.called or block.call is not None)
    return _released(state)


def _released(state: MessagesState) -> tuple[MessagesState, list[Fields]]:
    """Open the blocks that wait, one after the other, until one may grow before the next."""
    found: list[Fields] = []
    while state.waiting and not (state.open is not None and state.open.unfinished):
        found += _stop(state)
        state = _opened(state)
        found += _start(state)
    return state, found


def _closed(state: MessagesState) -> tuple[MessagesState, list[Fields]]:
    """Close all blocks: nothing follows that could belong to them."""
    found: list[Fields] = []
    while state.waiting or state.open is not None:
        found += _stop(state)
        if not state.waiting:
            return replace(state, open=None, number=state.number + 1), found
        state = _opened(state)
        found += _start(state)
    return state, found


def _opened(state: MessagesState) -> MessagesState:
    number = state.number if state.open is None else state.number + 1
    return replace(state, open=state.waiting[0], waiting=state.waiting[1:], number=number)


def _start(state: MessagesState) -> Iterator[Fields]:
    """Yield the beginning of the open block, and what it has so far."""
    block = state.open
    assert block is not None
    yield {"type": "content_block_start", "index": state.number, "content_block": block.begin}
    if content := str(block.content):
        yield _delta(state.number, block.kind, content)
    if block.signature:
        yield _signature(state.number, block.signature)


def _stop(state: MessagesState) -> Iterator[Fields]:
    if state.open is not None:
        yield {"type": "content_block_stop", "index": state.number}


def _call_block(call: Call, place: int) -> Block:
    call_id = call.id or f"call_{call.index}"
    return Block({"type": "tool_use", "id": call_id, "name": call.name, "input": {}}, call=place)


def _with_call(state: MessagesState, place: int, call: Call) -> MessagesState:
    return replace(state, calls=(*state.calls[:place], call, *state.calls[place + 1 :]))


def _with_last(state: MessagesState, **changes: Any) -> MessagesState:
    return replace(state, waiting=(*state.waiting[:-1], replace(state.waiting[-1], **changes)))


def _delta(number: int, kind: str, text: str) -> Fields:
    name, content = _DELTAS[kind]
    return {"type": "content_block_delta", "index": number, "delta": {"type": name, content: text}}


_DELTAS: Final[Mapping[str, tuple[str, str]]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _signature(number: int, signature: str) -> Fields:
    delta = {"type": "signature_delta", "signature": signature}
    return {"type": "content_block_delta", "index": number, "delta": delta}


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments), dict)
    except ValueError:
        return False


def _input(arguments: str) -> Fields:
    """Return the arguments of a call as an object. For others the API's documentation has this form."""
    if not arguments:
        return {}
    found: Fields = orjson.loads(arguments) if _is_object(arguments) else {"INVALID_JSON": arguments}
    return found


def _usage(tokens: Tokens | None) -> Usage:
    if tokens is None:
        tokens = Tokens(0, 0, 0, 0, 0, 0)
    return {
        # Baton's count includes the cache, as OpenAI's does.
        "input_tokens": max(0, tokens.given - tokens.cached - tokens.cache_written),
        "output_tokens": tokens.made,
        "cache_creation_input_tokens": tokens.cache_written,
        "cache_read_input_tokens": tokens.cached,
    }


def _error(code: str, message: str) -> Fields:
    return {"type": "error", "error": error_of(status_of_end(code), code, message)}


def _frame(event: Fields) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))


MESSAGES: Final = Messages()
