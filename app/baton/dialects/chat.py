"""The dialect of OpenAI's Chat Completions: a stream as chunks of one choice.

Reasoning is `reasoning_content`, which compatible servers and many clients agree on. Events without a counterpart
(`tool_result`, `custom`) are left out. There is no way to come back to a completion, and none to say that it was
cancelled or begins again: such an end is an error, without the `[DONE]` that ends a whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final
from uuid import UUID

import orjson

from ..events import escape_line_ends
from ..log import Batch
from ..snapshot import Snapshot
from ..streams import Stream
from . import sse
from .dialect import Encoded, Header, Over

_DONE: Final = b"data: [DONE]\n\n"
_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What the dialect remembers: what all chunks repeat, and whether any has told something yet."""

    chunk: Mapping[str, Any]
    with_usage: bool
    started: bool = False
    usage: Mapping[str, Any] | None = None


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
                    frames.append(_chunk(state, {"tool_calls": [_call(event)]}))
                case "usage":
                    state = replace(state, usage=event)
                    continue
                case "reset" if state.started:
                    frames.append(_error("reset", "The answer is begun again by another worker. Ask again."))
                    over = "ended"
                    break
                case "done":
                    frames.extend(_end(event, state))
                case _:
                    continue
            if not state.started:
                state = replace(state, started=True)
        return Encoded(escape_line_ends(b"".join(frames)), batch.first_seq, batch.last_seq, state, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """A comment, which opens the way through proxies."""
        return self.comment

    def broken(self, state: State, code: str, message: str) -> bytes:
        """An error."""
        return _error(code, message)


def completion_of(stream: Stream, snapshot: Snapshot) -> Fields:
    """Return the whole answer of a stream that was completed."""
    message: Fields = {"role": "assistant", "content": snapshot.text or None, "refusal": None}
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
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(stream.finish_reason)}
    return {
        **_head(stream, "chat.completion"),
        "choices": [choice],
        "usage": _usage(stream.usage or snapshot.usage),
    }


def completion_id(stream_id: UUID) -> str:
    """The id that a stream has as a completion."""
    return f"chatcmpl-{stream_id.hex}"


def _head(stream: Stream, kind: str) -> Fields:
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


def _call(event: Fields) -> Fields:
    call: Fields = {"index": event["index"], "function": {"arguments": event.get("arguments_delta") or ""}}
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
    if not counts:
        return None
    known = {name: value for name, value in counts.items() if isinstance(value, int)}
    given, made = known.get("input_tokens", 0), known.get("output_tokens", 0)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": known.get("total_tokens", given + made),
        "prompt_tokens_details": {"cached_tokens": known.get("cached_tokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": known.get("reasoning_tokens", 0)},
    }


def _error(code: str, message: str) -> bytes:
    return _frame({"error": {"message": message, "type": "server_error", "param": None, "code": code}})


def _frame(content: Fields) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)


CHAT: Final = Chat()
