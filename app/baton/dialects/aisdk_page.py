"""The parts of an answer as a page of the AI SDK has them, made from the chunks that it gets.

`useChat` reads chunks into the parts of a message, and sends them back with the next message. For a page that sends
only its last message, the parts are made here, so that the model gets the same. An answer that failed, was stopped or
lost its end has the parts before that. A call with incomplete arguments has what can be parsed of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

import orjson
from pydantic_core import from_json

from ..db.event_log import Batch
from ..events import MAX_SEQ
from . import aisdk
from .aisdk_message import Earlier, Fields, is_tool
from .protocol import Reader


def parts_of(stream_id: UUID, batches: Iterable[Batch], earlier: Earlier | None) -> list[Fields]:
    """Return the parts of a stream's message: the parts of the message that it continues, and then its own."""
    parts: list[Fields] = message_of(stream_id, batches, earlier)["parts"]
    return parts


def message_of(stream_id: UUID, batches: Iterable[Batch], earlier: Earlier | None) -> Fields:
    """Return the message that a page has after a stream: its id, role, metadata and parts."""
    page = _Page(earlier)
    opening = aisdk.begin(stream_id, 0, earlier)
    reader = Reader(aisdk.AI_SDK, opening, MAX_SEQ)
    page.read(opening.body)
    for batch in batches:
        if reader.over:
            break
        encoded = aisdk.AI_SDK.encode(batch, reader.state, 0)
        reader.advance(encoded)
        page.read(encoded.body)
    return {"id": page.id, "role": "assistant", "metadata": page.metadata, "parts": page.finished()}


class _Page:
    """The parts so far. Texts and arguments grow as lists: a long answer has many deltas."""

    def __init__(self, earlier: Earlier | None) -> None:
        self.id = ""
        self.metadata: Fields = {} if earlier is None else dict(earlier.metadata)
        self.parts = [] if earlier is None else [dict(part) for part in earlier.parts]
        self._calls = {part["toolCallId"]: part for part in self.parts if is_tool(part)}
        self._open: dict[str, Fields] = {}  # parts of text and reasoning, by the ids of their chunks
        self._grown: dict[int, tuple[Fields, list[str]]] = {}
        self._arguments: dict[str, list[str]] = {}

    def read(self, body: bytes) -> None:
        for chunk in _chunks(body):
            self._add(chunk)

    def finished(self) -> list[Fields]:
        """Return the parts with their whole text and arguments."""
        for part, deltas in self._grown.values():
            part["text"] = "".join(deltas)
        for call_id, deltas in self._arguments.items():
            call = self._calls[call_id]
            if call["state"] == "input-streaming":
                call["input"] = _partial("".join(deltas))
        return self.parts

    def _add(self, chunk: Fields) -> None:
        kind: str = chunk["type"]
        self.metadata |= chunk.get("messageMetadata") or {}
        if kind == "start":
            self.id = chunk["messageId"]
        elif kind == "start-step":
            self.parts.append({"type": "step-start"})
        elif kind in {"text-delta", "reasoning-delta"}:
            self._grown[id(self._open[chunk["id"]])][1].append(chunk["delta"])
        elif kind in {"text-start", "reasoning-start"}:
            part = self._open[chunk["id"]] = {"type": kind.removesuffix("-start"), "text": "", "state": "streaming"}
            self._grown[id(part)] = (part, [])
            self.parts.append(part)
        elif kind in {"text-end", "reasoning-end"}:
            self._open[chunk["id"]]["state"] = "done"
        elif kind.startswith("tool-"):
            self._tool(kind, chunk)
        elif kind.startswith("source-"):
            self.parts.append(chunk)
        elif kind.startswith("data-"):
            self._data(chunk)

    def _tool(self, kind: str, chunk: Fields) -> None:
        call_id = chunk["toolCallId"]
        if kind == "tool-input-start":
            self._begin_call(chunk)
        elif kind == "tool-input-delta":
            self._arguments[call_id].append(chunk["inputTextDelta"])
        elif kind == "tool-input-available":
            self._calls[call_id].update(state="input-available", input=chunk["input"])
        elif kind == "tool-input-error":
            self._calls[call_id].update(state="output-error", rawInput=chunk["input"], errorText=chunk["errorText"])
        elif kind == "tool-approval-request":
            self._calls[call_id].update(state="approval-requested", approval={"id": chunk["approvalId"]})
        elif kind == "tool-output-denied":
            self._calls[call_id]["state"] = "output-denied"
        elif kind == "tool-output-available":
            self._calls[call_id].update(state="output-available", output=chunk["output"])
        if chunk.get("providerExecuted"):
            self._calls[call_id]["providerExecuted"] = True

    def _begin_call(self, chunk: Fields) -> None:
        call_id = chunk["toolCallId"]
        part = {"type": f"tool-{chunk['toolName']}", "toolCallId": call_id, "state": "input-streaming"}
        self._calls[call_id] = part
        self._arguments[call_id] = []
        self.parts.append(part)

    def _data(self, chunk: Fields) -> None:
        """Add data; it replaces a part with the same type and id."""
        for part in self.parts:
            if "id" in chunk and (part["type"], part.get("id")) == (chunk["type"], chunk["id"]):
                part["data"] = chunk["data"]
                return
        self.parts.append(chunk)


def _chunks(body: bytes) -> Iterator[Fields]:
    for frame in body.split(b"\n\n"):
        if frame.startswith(b"data: {"):
            yield orjson.loads(frame.removeprefix(b"data: "))


def _partial(arguments: str) -> Any:
    try:
        return from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return None
