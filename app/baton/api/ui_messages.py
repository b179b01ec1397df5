"""The messages of the Vercel AI SDK's `useChat`, turned into those of a chat in OpenAI's form.

A UI message is what a page shows: parts of text, reasoning, files, and tool calls with their results. Models take less
of it, in another order: reasoning, sources and data stay on the page, and so does a tool call without an outcome, since
no model goes on after one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from ..errors import InvalidRequest

Message = dict[str, Any]


class UIMessage(BaseModel):
    """One message of a page."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    parts: list[dict[str, Any]]


def chat_messages(messages: Iterable[UIMessage]) -> list[Message]:
    """Convert the messages of a page.

    Raises:
        InvalidRequest: a part is not what its type says, or a file is not one that can be sent on.
    """
    found: list[Message] = []
    for number, message in enumerate(messages):
        try:
            match message.role:
                case "system":
                    found.append({"role": "system", "content": _text_of(message.parts)})
                case "user":
                    found.append({"role": "user", "content": _content(message.parts)})
                case "assistant":
                    for step in _steps(message.parts):
                        found.extend(_step(step))
        except KeyError as missing:
            raise InvalidRequest(f"messages.{number}: a part lacks {missing}.") from None
    return found


def _text_of(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join([str(part["text"]) for part in parts if part.get("type") == "text"])


def _content(parts: Sequence[Mapping[str, Any]]) -> str | list[Message]:
    """A user's message: a string if it is one text, as most are."""
    content = [_content_part(part) for part in parts if part.get("type") in {"text", "file"}]
    if len(content) == 1 and content[0]["type"] == "text":
        return str(content[0]["text"])
    return content


def _content_part(part: Mapping[str, Any]) -> Message:
    if part["type"] == "text":
        return {"type": "text", "text": str(part["text"])}
    url = str(part["url"])
    if str(part["mediaType"]).startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    if not url.startswith("data:"):
        raise InvalidRequest("A file that is not an image has to be sent as a data: URL.")
    return {"type": "file", "file": {"filename": str(part.get("filename") or "file"), "file_data": url}}


def _steps(parts: Iterable[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """Split an answer where the model was asked again, with the results of the tools before."""
    step: list[Mapping[str, Any]] = []
    for part in parts:
        if part.get("type") == "step-start":
            yield step
            step = []
        else:
            step.append(part)
    yield step


def _step(parts: Sequence[Mapping[str, Any]]) -> Iterable[Message]:
    """One step of an answer: what was said and called, and the results."""
    calls: list[Message] = []
    results: list[Message] = []
    for part in parts:
        outcome = _outcome(part)
        if outcome is not None:
            call_id = str(part["toolCallId"])
            calls.append({"id": call_id, "type": "function", "function": _function(part)})
            results.append({"role": "tool", "tool_call_id": call_id, "content": outcome})
    text = _text_of(parts)
    if calls:
        yield {"role": "assistant", "content": text or None, "tool_calls": calls}
        yield from results
    elif text:
        yield {"role": "assistant", "content": text}


def _outcome(part: Mapping[str, Any]) -> str | None:
    """How a tool call ended; None for what is no tool call, or has not ended."""
    kind = str(part.get("type"))
    if kind != "dynamic-tool" and not kind.startswith("tool-"):
        return None
    match part.get("state"):
        case "output-available":
            output = part.get("output")
            return output if isinstance(output, str) else orjson.dumps(output).decode()
        case "output-error":
            return f"Error: {part['errorText']}"
        case "output-denied":
            return "Error: the user did not allow this call."
    return None


def _function(part: Mapping[str, Any]) -> Message:
    kind = str(part["type"])
    name = part["toolName"] if kind == "dynamic-tool" else kind.removeprefix("tool-")
    given, raw = part.get("input"), part.get("rawInput")
    if given is None and isinstance(raw, str):
        arguments = raw
    elif part["state"] == "output-error" and isinstance(given, str):
        arguments = given  # what was not JSON, as it came
    else:
        arguments = orjson.dumps({} if given is None else given).decode()
    return {"name": str(name), "arguments": arguments}
