"""The tool calls of one generator: which call each index stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidEvent
from ..events import begins_call


class ToolCalls:
    """The id of the newest tool call of each index. It belongs to one run."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._ids

    def begins(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event begins a call: it has an id that differs from that of the index's newest call."""
        call_id = event.get("id")
        if not isinstance(call_id, str) or not call_id:
            return False
        newest = self._ids.get(event["index"])
        return newest is None or begins_call(event, newest)

    def indexes_of(self, call_id: object) -> Sequence[int]:
        """Return the indexes whose newest call has this id."""
        return [index for index, known in self._ids.items() if known == call_id]

    def note(self, event: Mapping[str, Any]) -> None:
        """Remember the call of a valid tool call's event.

        Raises:
            InvalidEvent: the event begins a call without the id or the name, and a client needs both to answer it.
        """
        index = event["index"]
        if index in self._ids and not self.begins(event):
            return
        missing = [repr(name) for name in ("id", "name") if not event.get(name)]
        if missing:
            raise InvalidEvent(f"The first tool_call event of index {index} lacks {' and '.join(missing)}.")
        self._ids[index] = event["id"]
