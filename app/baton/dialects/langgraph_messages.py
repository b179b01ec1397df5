"""LangChain's messages as a LangGraph server sends them: plain objects, whole or in chunks.

A message of a thread is a chat message with an id. The messages of one answer are numbered: the first one has the id of
the answer, and the others have that id and their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from ..events import read_json
from .openai import Tokens

Fields = dict[str, Any]

_TYPES: Final = {"user": "human", "assistant": "ai", "system": "system", "developer": "system", "tool": "tool"}


def numbered(name: str, number: int) -> str:
    """Return the id of a message of an answer."""
    return name if number == 0 else f"{name}_{number}"


def from_chat(message: Mapping[str, Any], message_id: str, tools: Mapping[str, str]) -> Fields:
    """Return a chat message as LangChain's. `tools` has the names of the tools by the ids of their calls."""
    kind = _TYPES.get(message["role"], message["role"])
    content = message.get("content") or ""
    if kind == "ai":
        tools_called = [(call["id"], _tool_of(call)) for call in message.get("tool_calls") or []]
        calls = [(call, made["name"], made.get("arguments") or made.get("input") or "") for call, made in tools_called]
        return ai(message_id, content, calls=calls)
    if kind == "tool":
        call_id = message.get("tool_call_id")
        return tool(message_id, content, call_id, tools.get(str(call_id)))
    return _message(kind, message_id, content)


def called(messages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the names of the tools that chat messages call, by the ids of the calls."""
    calls = [call for message in messages for call in message.get("tool_calls") or []]
    return {call["id"]: _tool_of(call)["name"] for call in calls}


def _tool_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the name and the arguments of a function, or the name and the input of a custom tool."""
    found: Mapping[str, Any] = call.get("function") or call["custom"]
    return found


def ai(
    message_id: str,
    content: Any,
    *,
    reasoning: str = "",
    calls: Iterable[tuple[str | None, str, str]] = (),
    usage: Mapping[str, Any] | None = None,
    finish_reason: str | None = None,
) -> Fields:
    """Return a message of the assistant. A call is an id, a name and arguments, which are invalid unless an object."""
    whole: list[Fields] = []
    invalid: list[Fields] = []
    for call_id, name, arguments in calls:
        known = {"name": name, "id": call_id}
        parsed = _object(arguments)
        if parsed is None:
            invalid.append({**known, "args": arguments, "error": None, "type": "invalid_tool_call"})
        else:
            whole.append({**known, "args": parsed, "type": "tool_call"})
    return {
        **_message("ai", message_id, content),
        "additional_kwargs": {"reasoning_content": reasoning} if reasoning else {},
        "response_metadata": {"finish_reason": finish_reason} if finish_reason else {},
        "tool_calls": whole,
        "invalid_tool_calls": invalid,
        "usage_metadata": usage_of(usage),
    }


def tool(message_id: str, content: Any, call_id: str | None, name: str | None) -> Fields:
    """Return a tool's result."""
    failed = isinstance(content, str) and content.startswith("Error: ")
    return {
        **_message("tool", message_id, content),
        "name": name,
        "tool_call_id": call_id,
        "artifact": None,
        "status": "error" if failed else "success",
    }


def removed(message_id: str) -> Fields:
    """Return the message that makes clients drop another one."""
    return _message("remove", message_id, "")


def chunk(message_id: str, content: str = "", **fields: Any) -> Fields:
    """Return a chunk of a message of the assistant. Clients add it to those before it, by its id."""
    return {
        **_message("AIMessageChunk", message_id, content),
        "tool_calls": [],
        "invalid_tool_calls": [],
        "usage_metadata": None,
        "tool_call_chunks": [],
        "chunk_position": None,
        **fields,
    }


def usage_of(counts: Mapping[str, Any] | None) -> Fields | None:
    """Return what a model used, as LangChain counts it."""
    tokens = Tokens.of(counts)
    if tokens is None:
        return None
    return {"input_tokens": tokens.given, "output_tokens": tokens.made, "total_tokens": tokens.total}


def _message(kind: str, message_id: str, content: Any) -> Fields:
    return {
        "content": content,
        "additional_kwargs": {},
        "response_metadata": {},
        "type": kind,
        "name": None,
        "id": message_id,
    }


def _object(arguments: Any) -> Fields | None:
    """Return arguments as an object, or None. A native client may have given something other than a text."""
    try:
        found = read_json(arguments or "{}") if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
