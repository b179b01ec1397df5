"""The dialect of OpenAI's Chat Completions: a stream as chunks of one choice.

Reasoning is `reasoning_content`, which compatible servers and many clients agree on. Events without a counterpart
(`tool_result`, `custom`) are left out. There is no way to come back to a completion, and none to say that it was
cancelled or begins again: such an end is an error, without the `[DONE]` that ends a whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, NotRequired
from uuid import UUID

import orjson
from typing_extensions import TypedDict

from ..events import begins_call, escape_line_ends
from ..log import Batch
from ..snapshot import Snapshot
from ..streams import Stream
from . import sse
from .dialect import Encoded, Header, Over
from .openai import RESET, Tokens, error_of

_DONE: Final = b"data: [DONE]\n\n"
_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})

Fields = dict[str, Any]


class Function(TypedDict):
    """What a call is to run; its arguments are JSON."""

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
    """The one answer that a completion has."""

    index: int
    message: CompletionMessage
    logprobs: None
    finish_reason: str


class Head(TypedDict):
    """What a completion and each of its chunks begin with."""

    id: str
    object: str
    created: int
    model: str


class Completion(Head):
    """A whole answer in the form of OpenAI's Chat Completions."""

    choices: list[Choice]
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class State:
    """What the dialect remembers: what all chunks repeat, and whether any has told something yet."""

    chunk: Head
    with_usage: bool
    started: bool = False
    usage: Mapping[str, Any] | None = None
    calls: Mapping[int, tuple[int, str | None]] = field(default_factory=dict)  # number and id of the newest of an index
    calls_begun: int = 0


class Chat:
    """The dialect."""

    name = "openai.chat"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    reconnects: ClassVar[bool] = False

    def begin(self, stream: Stream, given: Any) -> Encoded[State]:
        """Return the chunk that precedes the first event; `given` is the stream's input."""
        options = given.get("stream_options") if isinstance(given, Mapping) else None
        with_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        state = State(_head(stream, "chat.completion.chunk"), with_usage)
        return Encoded(_chunk(state, {"role": "assistant", "content": ""}), 1, 0, state)

    def encode(self, batch: Batch, state: State, after: int) -> Encoded[State]:
        """Encode a batch. It is always the whole batch: nobody comes back to the middle."""
        frames: list[bytes] = []
        over: Over | None = None
        for event in map(orjson.loads, batch.lines):
            match event["type"]:
                case "text":
                    frames.append(_chunk(state, {"content": event["delta"]}))
                case "reasoning":
                    frames.append(_chunk(state, {"reasoning_content": event["delta"]}))
                case "tool_call":
                    state = _with_call(state, event)
                    number = state.calls[event["index"]][0]
                    frames.append(_chunk(state, {"tool_calls": [_call(event, number)]}))
                case "usage":
                    state = replace(state, usage=event)
                    continue
                case "reset" if state.started:
                    frames.append(_error("reset", f"{RESET}."))
                    over = "cut"
                    break
                case "done":
                    frames.extend(_end(event, state))
                    over = "ended" if event["status"] == "completed" else "cut"
                case _:
                    continue
            if not state.started:
                state = replace(state, started=True)
        return Encoded(escape_line_ends(b"".join(frames)), batch.first_seq, batch.last_seq, state, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """A comment, which opens the way through proxies."""
        return self.comment

    def broken(self, state: State, code: str, message: str) -> tuple[bytes, Over]:
        """An error, and no end, for clients that do not know the error."""
        return _error(code, message), "cut"


def completion_of(stream: Stream, snapshot: Snapshot) -> Completion:
    """Return the whole answer of a stream that was completed."""
    message: CompletionMessage = {"role": "assistant", "content": snapshot.text or None, "refusal": None}
    if snapshot.reasoning:
        message["reasoning_content"] = snapshot.reasoning
    if snapshot.tool_calls:
        message["tool_calls"] = [
            {
                "id": call["id"] or f"call_{index}",
                "type": "function",
                "function": {"name": call["name"] or "", "arguments": call["arguments"]},
            }
            for index, call in enumerate(snapshot.tool_calls)
        ]
    choice: Choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _reason(stream.finish_reason),
    }
    return {
        **_head(stream, "chat.completion"),
        "choices": [choice],
        "usage": _usage(stream.usage or snapshot.usage),
    }


def completion_id(stream_id: UUID) -> str:
    """The id that a stream has as a completion."""
    return f"chatcmpl-{stream_id.hex}"


def _head(stream: Stream, kind: str) -> Head:
    return {
        "id": completion_id(stream.id),
        "object": kind,
        "created": int(stream.created_at.timestamp()),
        # Which is the name of its generator.
        "model": stream.generator,
    }


def _chunk(state: State, delta: Fields, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _frame({**state.chunk, "choices": [choice]} | ({"usage": None} if state.with_usage else {}))


def _with_call(state: State, event: Fields) -> State:
    """Number the calls as they begin: clients join what has the same number."""
    number, current = state.calls.get(event["index"], (None, None))
    if number is not None and not begins_call(event, current):
        return state
    calls = {**state.calls, event["index"]: (state.calls_begun, event.get("id"))}
    return replace(state, calls=calls, calls_begun=state.calls_begun + 1)


def _call(event: Fields, number: int) -> Fields:
    call: Fields = {"index": number, "function": {"arguments": event.get("arguments_delta") or ""}}
    if event.get("id"):
        call |= {"id": event["id"], "type": "function"}
    if event.get("name"):
        call["function"]["name"] = event["name"]
    return call


def _end(event: Fields, state: State) -> list[bytes]:
    if event["status"] == "failed":
        return [_error(event["error"]["code"], event["error"]["message"])]
    if event["status"] == "cancelled":
        return [_error("cancelled", "The answer was cancelled.")]
    frames = [_chunk(state, {}, _reason(event["finish_reason"]))]
    if state.with_usage:
        usage = _usage(event["usage"] or state.usage)
        frames.append(_frame({**state.chunk, "choices": [], "usage": usage}))
    return [*frames, _DONE]


def _reason(reason: str | None) -> str:
    return reason if reason in _FINISH_REASONS else "stop"


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
