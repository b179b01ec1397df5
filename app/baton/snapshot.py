"""What a stream's events add up to, for clients that ask once and do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NotRequired

import orjson
from typing_extensions import TypedDict

from .events import begins_call
from .usage import added


class ToolCall(TypedDict):
    """One call of a tool; its arguments are JSON, whole or so far. `run_by` is there if the generator said it."""

    id: str | None
    name: str | None
    arguments: str
    run_by: NotRequired[str]


class SnapshotContent(TypedDict):
    """The answer so far, up to the event with that id.

    `usage` is the sum of what the generator has reported, once it has; `tool_approvals` are there if it asked for any:
    the ids of the calls.
    """

    last_event_id: int
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    tool_results: list[dict[str, Any]]
    tool_approvals: NotRequired[list[dict[str, Any]]]
    usage: NotRequired[dict[str, Any] | None]


@dataclass(slots=True)
class Snapshot:
    """The answer so far. A `reset` empties it, since the events before it do not count any more; their usage does."""

    last_event_id: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_results: list[dict[str, Any]] = field(default_factory=list)
    tool_approvals: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] | None = None

    def as_dict(self) -> SnapshotContent:
        """The form in the API. Without a usage event it has no `usage`, so that it hides none in the stream's row."""
        content: SnapshotContent = {
            "last_event_id": self.last_event_id,
            "text": self.text,
            "reasoning": self.reasoning,
            "tool_calls": self.tool_calls,
            "tool_results": self.tool_results,
        }
        if self.tool_approvals:
            content["tool_approvals"] = self.tool_approvals
        if self.usage is not None:
            content["usage"] = self.usage
        return content

    def calls_of_the_client(self) -> list[ToolCall]:
        """Return the calls that the client is to answer, of a stream that has ended."""
        own = {event["id"] for event in (*self.tool_results, *self.tool_approvals)}
        return [call for index, call in enumerate(self.tool_calls) if _is_the_clients(call, index, own)]

    @classmethod
    def of(cls, lines: Iterable[str], last_event_id: int) -> Snapshot:
        """Add up the events of a stream from its first to `last_event_id`."""
        snapshot = cls()
        text: list[str] = []
        reasoning: list[str] = []
        newest: dict[int, ToolCall] = {}
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
                case "tool_approval":
                    snapshot.tool_approvals.append(_without_type(event))
                case "usage":
                    snapshot.usage = added(snapshot.usage, event)
                case "reset":
                    snapshot = cls(usage=snapshot.usage)
                    text, reasoning, newest = [], [], {}
        snapshot.last_event_id = last_event_id
        snapshot.text, snapshot.reasoning = "".join(text), "".join(reasoning)
        return snapshot


def _add_call(calls: list[ToolCall], newest: dict[int, ToolCall], event: dict[str, Any]) -> None:
    call = newest.get(event["index"])
    if call is None or begins_call(event, call["id"]):
        call = newest[event["index"]] = {"id": None, "name": None, "arguments": ""}
        calls.append(call)
    call["id"] = event.get("id") or call["id"]
    call["name"] = event.get("name") or call["name"]
    call["arguments"] += event.get("arguments_delta") or ""
    if event.get("run_by"):
        call["run_by"] = event["run_by"]


def _is_the_clients(call: ToolCall, index: int, own: set[Any]) -> bool:
    """What the generator says counts: a client that streams has seen the call by the time of a result."""
    if run_by := call.get("run_by"):
        return run_by == "client"
    return (call["id"] or f"call_{index}") not in own


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
