"""Converts chat messages into messages of Pydantic AI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai import messages

from ..errors import GenerationError
from .agent_steps import Json


def history_of(given: Sequence[Json]) -> list[messages.ModelMessage]:
    """Return chat messages as messages of Pydantic AI."""
    names: dict[str, str] = {}  # of the tools, by the ids of their calls
    found: list[messages.ModelMessage] = []
    for message in given:
        match message["role"]:
            case "assistant":
                found.append(_response(message, names))
            case "tool":
                call_id = str(message.get("tool_call_id"))
                part = messages.ToolReturnPart(names.get(call_id, "unknown"), _content(message), call_id)
                found.append(messages.ModelRequest([part]))
            case "system" | "developer":
                found.append(messages.ModelRequest([messages.SystemPromptPart(str(message["content"]))]))
            case _:
                found.append(messages.ModelRequest([messages.UserPromptPart(_content(message))]))
    return found


def _response(message: Json, names: dict[str, str]) -> messages.ModelResponse:
    content = _content(message)
    texts = [content] if isinstance(content, str) else [part for part in content if isinstance(part, str)]
    parts: list[Any] = [messages.TextPart(text) for text in texts if text]
    for call in message.get("tool_calls") or ():
        names[call["id"]] = call["function"]["name"]
        parts.append(
            messages.ToolCallPart(call["function"]["name"], call["function"]["arguments"], tool_call_id=call["id"])
        )
    return messages.ModelResponse(parts)


def _content(message: Json) -> Any:
    """Return the content of a chat message: a text, or a list of texts, images and files."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Json) -> Any:
    if part.get("type") in {"text", "refusal"}:
        return part.get("text") or part.get("refusal") or ""
    url = (part.get("image_url") or {}).get("url") or (part.get("file") or {}).get("file_data")
    if not isinstance(url, str):
        raise GenerationError("invalid_input", f"The agent cannot read a part of the type {part.get('type')!r:.80}.")
    return messages.BinaryContent.from_data_uri(url) if url.startswith("data:") else messages.ImageUrl(url)
