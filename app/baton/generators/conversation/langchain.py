"""LangChain's messages, as LangGraph's clients send them, in the form of chat messages.

A message has a `type` (`human`, `ai`, `system`, `tool`), or one of these words as its `role`. The SDK for JavaScript
may also write a message as its constructor and the arguments. `tool_calls` have a `name` and `args`. Content blocks of
Anthropic that repeat the calls are left out.
"""

from __future__ import annotations

from typing import Any

from .shapes import Json, inner, json_text, objects, refusal

_ROLES = {
    "human": "user",
    "HumanMessage": "user",
    "HumanMessageChunk": "user",
    "ai": "assistant",
    "AIMessage": "assistant",
    "AIMessageChunk": "assistant",
    "SystemMessage": "system",
    "SystemMessageChunk": "system",
    "ToolMessage": "tool",
    "ToolMessageChunk": "tool",
}
_NAMES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system", "tool": "tool"}
_TYPES = {**_ROLES, **_NAMES}
# Blocks that repeat `tool_calls`.
_CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "input_json_delta", "invalid_tool_call", "function_call"}
)
_THOUGHTS = frozenset({"reasoning", "thinking", "redacted_thinking", "non_standard"})


def plain_message(element: Json) -> Json:
    """Return a message that is written as its constructor in the usual form; any other message as it is."""
    if element.get("type") != "constructor" or not isinstance(element.get("kwargs"), dict):
        return element
    name = element["id"][-1] if isinstance(element.get("id"), list) and element["id"] else None
    return {**element["kwargs"], "type": name}


def is_langchain(element: Json) -> bool:
    """Whether a message has LangChain's form."""
    if element.get("type") in _TYPES or element.get("type") == "remove" or element.get("role") in _ROLES:
        return True
    calls = element.get("tool_calls")
    return "role" in element and isinstance(calls, list) and any("args" in call for call in calls)


def from_langchain(element: Json) -> Json:
    """Return a message as a chat message.

    Raises:
        GenerationError: it removes another message, or has content that no API accepts.
    """
    kind = element.get("type") if element.get("type") in _TYPES else element.get("role")
    role = _TYPES.get(str(kind))
    if role is None:
        raise refusal(f"a message of the type {element.get('type')!r:.80}")
    content = _content(element.get("content"), whole=role == "assistant")
    if role == "tool":
        failed = element.get("status") == "error" and not str(content).startswith("Error: ")
        content = f"Error: {content}" if failed and isinstance(content, str) else content
        return {"role": role, "tool_call_id": element.get("tool_call_id"), "content": content or ""}
    calls = [_call(call) for call in objects(element.get("tool_calls") or [], "tool_calls")]
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def _call(call: Json) -> Json:
    if isinstance(call.get("function"), dict):
        return {name: call[name] for name in ("id", "type", "function") if name in call}
    function = {"name": call.get("name"), "arguments": json_text(call.get("args") or {})}
    return {"id": call.get("id"), "type": "function", "function": function}


def _content(content: Any, *, whole: bool) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Json] = []
    for block in content:
        if isinstance(block, str):
            parts.append({"type": "text", "text": block})
        elif block.get("type") not in _CALLS | _THOUGHTS:
            parts.append(_part(block))
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts) and (whole or len(parts) <= 1):
        return "".join(texts) or None
    return parts


def _part(block: Json) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": block.get("text") or ""}
    if kind == "image_url":
        given = block.get("image_url")
        return {"type": "image_url", "image_url": {"url": given} if isinstance(given, str) else given}
    if kind == "image" and "source" in block:
        source = inner(block, "source")
        return _image(source.get("url"), source.get("data"), source.get("media_type"))
    if kind == "image":
        return _image(block.get("url"), block.get("base64") or block.get("data"), block.get("mime_type"))
    if kind == "file" and isinstance(block.get("file"), dict):
        return {"type": "file", "file": block["file"]}
    if kind == "file":
        return _file(block)
    raise refusal(f"a part of the type {kind!r:.80}")


def _image(url: Any, data: Any, media_type: Any) -> Json:
    if isinstance(url, str):
        return {"type": "image_url", "image_url": {"url": url}}
    if not isinstance(data, str):
        raise refusal("an image without an address or data")
    return {"type": "image_url", "image_url": {"url": f"data:{media_type or 'image/png'};base64,{data}"}}


def _file(block: Json) -> Json:
    known = inner(block, "metadata") or inner(block, "extras")
    name = block.get("filename") or known.get("filename") or known.get("name") or "file"
    data = block.get("base64") or block.get("data")
    if isinstance(data, str):
        content = f"data:{block.get('mime_type') or 'application/octet-stream'};base64,{data}"
        return {"type": "file", "file": {"file_data": content, "filename": name}}
    for given, written in (("url", "file_url"), ("file_id", "file_id"), ("id", "file_id")):
        if isinstance(block.get(given), str):
            return {"type": "file", "file": {written: block[given], "filename": name}}
    raise refusal("a file without an address or data")
