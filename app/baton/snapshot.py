"""The state that a stream's events add up to, for clients that read a stream once instead of following it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NotRequired

import orjson
from typing_extensions import TypedDict

from .events import begins_call
from .usage import added


class ToolCall(TypedDict):
    """One call of a tool. `arguments` is JSON, possibly incomplete. `run_by` is present if the generator gave it."""

    id: str | None
    name: str | None
    arguments: str
    run_by: NotRequired[str]


# `for` is a keyword of Python.
Waiting = TypedDict("Waiting", {"for": Any, "until": str | None})
Waiting.__doc__ = "What a stream waits for, and until when: the fields of its last event, `waiting`."


class SnapshotContent(TypedDict):
    """The answer up to the event with the id `last_event_id`.

    `usage` is the sum of what the generator has reported so far; absent before the first report. `tool_approvals` holds
    the ids of the calls that need an approval, and is absent without any. `waiting` is absent unless the stream waits.
    """

    last_event_id: int
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    tool_results: list[dict[str, Any]]
    tool_approvals: NotRequired[list[dict[str, Any]]]
    usage: NotRequired[dict[str, Any] | None]
    waiting: NotRequired[Waiting]


@dataclass(slots=True)
class Snapshot:
    """The answer so far. A `reset` empties it, because earlier events no longer count; their usage still does.

    A `resumed` changes nothing but the end of a wait: the answer continues.
    """

    last_event_id: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_results: list[dict[str, Any]] = field(default_factory=list)
    tool_approvals: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    waiting: Waiting | None = None

    def as_dict(self) -> SnapshotContent:
        """Return it as the API shows it. Without a usage event it has no `usage`, so that the row's usage is shown."""
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
        if self.waiting is not None:
            content["waiting"] = self.waiting
        return content

    def calls_of_the_client(self) -> list[ToolCall]:
        """Return the calls of an ended stream that the client must answer."""
        own = {event["id"] for event in (*self.tool_results, *self.tool_approvals)}
        return [call for index, call in enumerate(self.tool_calls) if _is_for_client(call, index, own)]

    @classmethod
    def of(cls, lines: Iterable[str], last_event_id: int) -> Snapshot:
        """Add up the events of a stream, from the first to the one with the id `last_event_id`."""
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
                case "waiting" | "resumed" | "done":
                    snapshot.waiting = _wait(event)
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


def _wait(event: dict[str, Any]) -> Waiting | None:
    return {"for": event["for"], "until": event["until"]} if event["type"] == "waiting" else None


def _is_for_client(call: ToolCall, index: int, own: set[Any]) -> bool:
    """Whether the client must answer a call. `run_by` decides, because a client may see the call before its result."""
    if run_by := call.get("run_by"):
        return run_by == "client"
    return (call["id"] or f"call_{index}") not in own


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
