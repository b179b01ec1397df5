"""What a generator has shown, kept with its state: a later run compares the log with it, and can show it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..generators import SoFar, Yielded

_DELTAS: Final = {"text": "delta", "reasoning": "delta", "tool_call": "arguments_delta"}
# The log has them, but they are not a part of the answer that `SoFar` describes.
_KEPT: Final = frozenset({*_DELTAS, "tool_result", "custom"})


class Shown:
    """The events of an answer in their order, with deltas joined. Usage is left out: it is billed once, where it came.

    `events` is JSON. Adding a delta takes time that does not grow with the answer.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._events = [dict(event) for event in events]
        self._rest: list[str] = []  # of the last event's delta, not yet joined

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events."""
        if self._rest:
            key = _DELTAS[self._events[-1]["type"]]
            self._events[-1][key] = "".join([self._events[-1][key], *self._rest])
            self._rest = []
        return self._events

    def add(self, item: Yielded) -> Yielded:
        """Add what the generator yields, and return it."""
        event = {"type": "text", "delta": item} if isinstance(item, str) else dict(item)
        last = self._events[-1] if self._events else {}
        if _continues(event, last):
            self._rest.append(event[_DELTAS[event["type"]]])
        elif event["type"] in _KEPT:
            self._events = self.events
            self._events.append(event)
        return item

    def is_all_of(self, so_far: SoFar) -> bool:
        """Return whether the log has these events and nothing more."""
        return (
            self._text("text") == so_far.text
            and self._text("reasoning") == so_far.reasoning
            and self.calls == {call["id"]: (call["name"], call["arguments"]) for call in so_far.tool_calls}
            and self._count("tool_result") == len(so_far.tool_results)
            and self._count("custom") == len(so_far.custom)
        )

    @property
    def calls(self) -> dict[str, tuple[str, str]]:
        """The name and the arguments of each tool call, by its id."""
        found: dict[int, list[str]] = {}
        for event in self.events:
            if event["type"] == "tool_call":
                call = found.setdefault(event["index"], [event.get("id", ""), event.get("name", ""), ""])
                call[2] += event.get("arguments_delta") or ""
        return {call_id: (name, arguments) for call_id, name, arguments in found.values()}

    @property
    def open_calls(self) -> dict[str, tuple[str, str]]:
        """The tool calls that have no result."""
        done = {event["id"] for event in self.events if event["type"] == "tool_result"}
        return {call_id: call for call_id, call in self.calls.items() if call_id not in done}

    def _text(self, kind: str) -> str:
        return "".join(event["delta"] for event in self.events if event["type"] == kind)

    def _count(self, kind: str) -> int:
        return sum(event["type"] == kind for event in self.events)


def _continues(event: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Return whether an event adds a delta to the last one."""
    kind = event["type"]
    return (
        kind in _DELTAS and last.get("type") == kind and "id" not in event and event.get("index") == last.get("index")
    )
