"""The answers of a fake Chat Completions API, in chunks as OpenAI sends them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.provider_server import Ending, Reply, data_frames

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
BILLED = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "cached_tokens": 2, "reasoning_tokens": 1}


def says(*texts: str, reasoning: str = "", ending: Ending = "end") -> Reply:
    """An answer in texts. If it does not end properly, its end is missing."""
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": reasoning}] if reasoning else []
    deltas += [{"content": text} for text in texts]
    return _reply(deltas, "stop", ending)


def calls(call_id: str, name: str, /, *more: tuple[str, str, dict[str, Any]], **arguments: Any) -> Reply:
    """An answer that calls a tool, or several, each with its arguments in two chunks."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    for index, (each_id, each_name, given) in enumerate([(call_id, name, arguments), *more]):
        text = json.dumps(given)
        first = {"id": each_id, "type": "function", "function": {"name": each_name, "arguments": text[:3]}}
        fragments = first, {"function": {"arguments": text[3:]}}
        deltas += [{"tool_calls": [{"index": index, **fragment}]} for fragment in fragments]
    return _reply(deltas, "tool_calls", "end")


def _reply(deltas: list[dict[str, Any]], reason: str, ending: Ending) -> Reply:
    chunks = [_chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    if ending == "end":
        chunks.append(_chunk([{"index": 0, "delta": {}, "finish_reason": reason}]))
        chunks.append(_chunk([], usage=USAGE))
    return Reply(data_frames(*chunks, done=ending == "end"), ending)


def _chunk(choices: list[Any], **fields: Any) -> dict[str, Any]:
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test"}
    return {**about, "choices": choices, **fields}
