"""Makes the messages of an AI SDK's page from chat messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ...events import read_json
from .shapes import Json, inner, malformed_refused, objects, refusal

_DATA_URL = re.compile(r"data:([\w.+/-]+);")


@malformed_refused
def for_aisdk(messages: Sequence[Json]) -> list[Json]:
    """Return chat messages as messages of a page, `{"role", "parts"}`: all of an assistant's steps become one message.

    A result without a call before it is left out.

    Raises:
        GenerationError: a page has no part for some content.
    """
    found: list[Json] = []
    for message in messages:
        role = message["role"]
        if role == "tool":
            answer_call([part for one in found for part in one["parts"]], message)
        elif role != "assistant":
            found.append({"role": "system" if role == "developer" else role, "parts": list(_parts(message))})
        else:
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "parts": []})
            found[-1]["parts"] += [{"type": "step-start"}, *_parts(message), *_calls(message)]
    return found


def answer_call(parts: Sequence[Json], result: Json) -> None:
    """Put the result in a `tool` message into the part of its call, which has none yet."""
    for part in reversed(parts):
        if part.get("toolCallId") == result["tool_call_id"]:
            part.update(state="output-available", output=_value(result["content"]))
            return


def _parts(message: Json) -> Iterator[Json]:
    content = message.get("content")
    done = {"state": "done"} if message["role"] == "assistant" else {}
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else objects(content or [], "content"):
        if part["type"] in {"text", "refusal"}:
            yield {"type": "text", "text": part[part["type"]], **done}
        else:
            yield _file(part)


def _file(part: Json) -> Json:
    if part["type"] == "image_url":
        return _file_at(inner(part, "image_url")["url"], "image/*")
    if part["type"] == "input_audio":
        audio = inner(part, "input_audio")
        return _file_at(f"data:audio/{audio['format']};base64,{audio['data']}", "audio/*")
    file = inner(part, "file")
    if not (url := file.get("file_data") or file.get("file_url")):
        raise refusal("a file by its id")
    return _file_at(url, "application/octet-stream") | ({"filename": file["filename"]} if file.get("filename") else {})


def _file_at(url: str, otherwise: str) -> Json:
    found = _DATA_URL.match(url)
    return {"type": "file", "mediaType": found[1] if found else otherwise, "url": url}


def _calls(message: Json) -> Iterator[Json]:
    for call in objects(message.get("tool_calls") or [], "tool_calls"):
        function = inner(call, "function")
        named = {"type": f"tool-{function['name']}", "toolCallId": call["id"]}
        try:
            yield {**named, "state": "input-available", "input": read_json(function.get("arguments") or "{}")}
        except ValueError:
            yield {**named, "state": "input-available", "input": function["arguments"]}


def _value(content: Any) -> Any:
    """Return a result as the tool gave it, if its text is the JSON of an object or a list."""
    if not isinstance(content, str) or not content.startswith(("{", "[")):
        return content
    try:
        value = orjson.loads(content)
    except ValueError:
        return content
    return value if orjson.dumps(value).decode() == content else content
