"""Messages of pages with AI SDK 3 and 4, as messages of the newer AI SDKs, whose parts have all that they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .shapes import Json, inner, objects

_MARKS = frozenset({"toolInvocations", "experimental_attachments"})
_STATES = {"result": "output-available", "call": "input-available", "partial-call": "input-streaming"}


def is_older(element: Json) -> bool:
    """Whether a message comes from a page with AI SDK 3 or 4: newer ones have `parts` and no `content`."""
    return bool(_MARKS & element.keys()) or (isinstance(element.get("parts"), list) and "content" in element)


def from_older(element: Json) -> Json:
    """Return such a message as one of a newer page."""
    parts = [part for given in _given(element) for part in _part(given)]
    attached = [_attachment(item) for item in objects(element.get("experimental_attachments") or [], "attachments")]
    return {"role": element.get("role"), "parts": [*parts, *attached]}


def _given(element: Json) -> Iterator[Json]:
    """Yield the parts; those of AI SDK 3, which has none, from the fields that it has instead."""
    if isinstance(element.get("parts"), list):
        yield from objects(element["parts"], "parts")
        return
    if element.get("content"):
        yield {"type": "text", "text": element["content"]}
    for invocation in objects(element.get("toolInvocations") or [], "toolInvocations"):
        yield {"type": "tool-invocation", "toolInvocation": invocation}


def _part(part: Json) -> Iterator[Json]:
    kind = part.get("type")
    if kind == "tool-invocation":
        yield _call(inner(part, "toolInvocation"))
    elif kind == "file" and "data" in part:
        url = f"data:{part.get('mimeType')};base64,{part['data']}"
        yield {"type": "file", "mediaType": part.get("mimeType"), "url": url}
    elif kind != "source":
        yield part


def _call(invocation: Json) -> Json:
    state: Any = invocation.get("state")
    return {
        "type": "dynamic-tool",
        "toolName": invocation.get("toolName"),
        "toolCallId": invocation.get("toolCallId"),
        "state": _STATES.get(state, state),
        "input": invocation.get("args"),
        "output": invocation.get("result"),
    }


def _attachment(item: Json) -> Json:
    named = {"filename": item["name"]} if item.get("name") else {}
    return {"type": "file", "mediaType": item.get("contentType") or "", "url": item.get("url"), **named}
