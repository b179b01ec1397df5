"""Messages of AG-UI as chat messages, and chat messages as those of AG-UI.

AG-UI writes chat messages in camel case, each with an id. It has messages of its own for reasoning and for what a page
shows of an activity: no model gets those. The parts of a message name their bytes by a `source` with a `value`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .shapes import Json, inner, json_text, malformed_refused, objects, refusal

_MARKS = frozenset({"toolCalls", "toolCallId", "encryptedValue", "subagentRunId", "metadata", "id"})
_OWN_ROLES = frozenset({"reasoning", "activity"})
_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,(.*)", re.DOTALL)


def is_agui(element: Json) -> bool:
    """Whether a message has the form of AG-UI, and not one that another API has too."""
    if not isinstance(element.get("role"), str) or "type" in element or "parts" in element:
        return False
    content = element.get("content")
    parts = content if isinstance(content, list) else []
    return bool(_MARKS & element.keys() or element["role"] in _OWN_ROLES or any(map(_is_part, parts)))


def from_agui(element: Json) -> Iterator[Json]:
    """Yield a message of AG-UI as a chat message; none for reasoning and activities."""
    role = element["role"]
    if role in _OWN_ROLES:
        return
    content = element.get("content")
    if isinstance(content, list):
        content = [_part(part) if _is_part(part) else part for part in objects(content, "content")]
        content = [{"type": "text", "text": part["text"]} if part["type"] == "text" else part for part in content]
    if "toolCallId" in element:
        yield {"role": role, "tool_call_id": element["toolCallId"], "content": _result(content, element.get("error"))}
        return
    kept = {name: value for name, value in element.items() if name not in {*_MARKS, "content"}}
    calls = [_call(call) for call in objects(element.get("toolCalls") or [], "toolCalls")]
    if role == "assistant" and not (content or calls or element.get("tool_calls")):
        return  # an answer without a word
    yield {**kept, "content": content, **({"tool_calls": calls} if calls else {})}


def context_text(context: Any) -> str | None:
    """Return the context of a run as instructions; None if it is not AG-UI's."""
    if not isinstance(context, list):
        return None
    found = list(objects(context, "context"))
    texts = [f"{item['description']}:\n{item['value']}" for item in found if {"description", "value"} <= item.keys()]
    return "\n\n".join(texts) if len(texts) == len(found) else None


@malformed_refused
def for_agui(messages: Sequence[tuple[str, Json]]) -> list[Json]:
    """Return chat messages, each with its id, as messages of AG-UI.

    Raises:
        GenerationError: AG-UI has no part for some content.
    """
    return [_message(name, message) for name, message in messages]


def _is_part(part: Any) -> bool:
    source = part.get("source") if isinstance(part, Mapping) else None
    return isinstance(source, Mapping) and "value" in source and "type" in source


def _part(part: Json) -> Json:
    source = inner(part, "source")
    kind, mime_type = part["type"], source.get("mimeType") or ""
    if source["type"] == "file":
        return {"type": "file", "file": {"file_id": source["value"]}}
    url = source["value"] if source["type"] == "url" else f"data:{mime_type};base64,{source['value']}"
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "audio" and source["type"] == "data":
        name = mime_type.rpartition("/")[2]
        return {
            "type": "input_audio",
            "input_audio": {"data": source["value"], "format": {"mpeg": "mp3"}.get(name, name)},
        }
    if kind != "document":
        raise refusal(f"a part of the type {kind!r:.80}")
    name = "file_url" if source["type"] == "url" else "file_data"
    return {"type": "file", "file": {name: url, "filename": "document"}}


def _call(call: Json) -> Json:
    return {"id": call["id"], "type": "function", "function": inner(call, "function")}


def _result(content: Any, error: Any) -> Any:
    if not error:
        return content
    if isinstance(content, list):
        return [{"type": "text", "text": f"Error: {error}"}, *content]
    return f"Error: {error}" + (f"\n{content}" if content and content != error else "")


def _message(name: str, message: Json) -> Json:
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        parts = [_agui_part(part) for part in objects(content, "content")]
        whole = role not in {"user", "tool"}
        content = "".join(part.get("text", "") for part in parts) if whole else parts
    if role == "tool":
        return {"id": name, "role": role, "toolCallId": message["tool_call_id"], "content": content or ""}
    calls = [
        {**_call(call), "function": {"name": call["function"]["name"], "arguments": json_text(_arguments(call))}}
        for call in objects(message.get("tool_calls") or [], "tool_calls")
    ]
    said = {} if content is None and role == "assistant" else {"content": content or ""}
    return {"id": name, "role": role, **said, **({"toolCalls": calls} if calls else {})}


def _arguments(call: Json) -> Any:
    return call["function"].get("arguments") or "{}"


def _agui_part(part: Json) -> Json:
    kind = part["type"]
    if kind in {"text", "refusal"}:
        return {"type": "text", "text": part[kind]}
    if kind == "image_url":
        return {"type": "image", "source": _source(inner(part, "image_url")["url"])}
    if kind == "input_audio":
        audio = inner(part, "input_audio")
        return {
            "type": "audio",
            "source": {"type": "data", "value": audio["data"], "mimeType": f"audio/{audio['format']}"},
        }
    file = inner(part, "file")
    if file.get("file_id"):
        return {"type": "document", "source": {"type": "file", "value": file["file_id"]}}
    return {"type": "document", "source": _source(file.get("file_data") or file["file_url"])}


def _source(url: str) -> Json:
    if found := _DATA_URL.fullmatch(url):
        return {"type": "data", "value": found[2], "mimeType": found[1]}
    return {"type": "url", "value": url}
