"""What a stream's events add up to, for clients that ask once and do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from .events import begins_call


@dataclass(slots=True)
class Snapshot:
    """The answer so far. A `reset` empties it, since the events before it do not count any more."""

    last_event_id: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    tool_results: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The form in the API. Without a usage event it has no `usage`, so that it hides none in the stream's row."""
        content = asdict(self)
        return content if self.usage is not None else {k: v for k, v in content.items() if k != "usage"}

    @classmethod
    def of(cls, lines: Iterable[str], last_event_id: int) -> Snapshot:
        """Add up the events of a stream from its first to `last_event_id`."""
        snapshot = cls()
        text: list[str] = []
        reasoning: list[str] = []
        newest: dict[int, dict[str, Any]] = {}
        for event in map(orjson.loads, lines):
            match event["type"]:
                case "text":
                    text.append(event["delta"])
                case "reasoning":
                    reasoning.append(event["delta"])
                case "tool_call":
                    _add_call(snapshot.tool_calls, newest, event)
                case "tool_result":
                    snapshot.tool_results.append(_without_type(event))
                case "usage":
                    snapshot.usage = _without_type(event)
                case "reset":
                    snapshot = cls()
                    text, reasoning, newest = [], [], {}
        snapshot.last_event_id = last_event_id
        snapshot.text, snapshot.reasoning = "".join(text), "".join(reasoning)
        return snapshot


def _add_call(calls: list[dict[str, Any]], newest: dict[int, dict[str, Any]], event: dict[str, Any]) -> None:
    call = newest.get(event["index"])
    if call is None or begins_call(event, call["id"]):
        call = newest[event["index"]] = {"id": None, "name": None, "arguments": ""}
        calls.append(call)
    call["id"] = event.get("id") or call["id"]
    call["name"] = event.get("name") or call["name"]
    call["arguments"] += event.get("arguments_delta") or ""


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
