"""LangChain's messages in Baton's events, and the messages of a request in LangChain's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.ai import UsageMetadata, add_usage
from pydantic_core import to_jsonable_python

from ..generators import Yielded
from ..generators.provider_answer import CallNumbers, usage_event

_FINISH_REASONS: Final = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length"}


def as_langchain(messages: list[dict[str, Any]], name: str) -> list[BaseMessage]:
    """Return chat messages as LangChain's, with ids that are the same in each run: a state takes each of them once."""
    found = convert_to_messages(messages)
    for number, message in enumerate(found):
        message.id = f"{name}-{number}"
    return found


def as_json(value: Any) -> Any:
    """Return any value of a graph as JSON."""
    return to_jsonable_python(value, fallback=str)


class MessageEvents:
    """Translates the messages of one graph, whole or in chunks, each once.

    `seen` has the ids of messages that need no translation any more. `calls` numbers their tool calls.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.calls = CallNumbers()
        self.finish_reason: str | None = None
        self._usage: dict[str, UsageMetadata] = {}  # of the messages that are not complete

    def of(self, message: Any) -> Iterator[Yielded]:
        """Yield the events of a message or a chunk; those of people and of the system have none."""
        if not isinstance(message, AIMessage | ToolMessage):
            return
        name = message.id or ""
        is_chunk = isinstance(message, AIMessageChunk)
        if name in self.seen and not is_chunk:
            return
        if name not in self.seen:
            self.finish_reason = None  # of the message before it
            self.seen.add(name)
        if isinstance(message, ToolMessage):
            yield {"type": "tool_result", "id": message.tool_call_id, "result": as_json(message.content)}
            return
        for number, block in enumerate(message.content_blocks):
            yield from self._block(name, number, block)
        yield from self._end(name, message, complete=getattr(message, "chunk_position", "last") == "last")

    def skip(self, messages: Iterable[BaseMessage]) -> None:
        """Note messages that are not part of the answer."""
        self.seen.update(message.id or "" for message in messages)

    def usage(self) -> Iterator[Yielded]:
        """Yield the usage of calls to models that have ended without saying so."""
        for name in list(self._usage):
            yield from self._bill(name)

    def _block(self, name: str, number: int, block: Mapping[str, Any]) -> Iterator[Yielded]:
        match block["type"]:
            case "text" if block.get("text"):
                yield block["text"]
            case "reasoning" if block.get("reasoning"):
                yield {"type": "reasoning", "delta": block["reasoning"]}
            case "tool_call":
                yield self._begin(f"{name} {number}", block, orjson.dumps(as_json(block["args"])).decode())
            case "tool_call_chunk":
                key = f"{name} {block.get('index')}"
                known = self.calls.index_of(key) is not None and block.get("index") is not None
                if block.get("id") and not known:
                    yield self._begin(key, block, block.get("args") or "")
                else:
                    yield from self.calls.extend(key, block.get("args"))

    def _begin(self, key: str, block: Mapping[str, Any], arguments: str) -> Yielded:
        """Begin a tool call. Who runs it is shown by whether a result follows."""
        event = self.calls.begin(key, block.get("id"), block.get("name"), arguments)
        assert isinstance(event, Mapping)
        return {name: value for name, value in event.items() if name != "run_by"}

    def _end(self, name: str, message: AIMessage, *, complete: bool) -> Iterator[Yielded]:
        about = message.response_metadata
        if isinstance(reason := about.get("finish_reason") or about.get("stop_reason"), str):
            self.finish_reason = _FINISH_REASONS.get(reason, reason)
        if message.usage_metadata:
            self._usage[name] = add_usage(self._usage.get(name), message.usage_metadata)
        if complete:
            yield from self._bill(name)

    def _bill(self, name: str) -> Iterator[Yielded]:
        if usage := self._usage.pop(name, None):
            yield usage_event(
                input_tokens=usage["input_tokens"],
                output_tokens=usage["output_tokens"],
                total_tokens=usage["total_tokens"],
                cached_tokens=usage.get("input_token_details", {}).get("cache_read"),
                cache_write_tokens=usage.get("input_token_details", {}).get("cache_creation"),
                reasoning_tokens=usage.get("output_token_details", {}).get("reasoning"),
            )
