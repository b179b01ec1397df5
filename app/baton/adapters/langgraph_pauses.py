"""What a graph waits for: decisions about tool calls, or any value that an `interrupt()` returns."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Pause:
    """What a graph waits for: decisions about tool calls, or any value. `batched`: the decisions make one answer."""

    id: str
    value: Any
    calls: tuple[str, ...] = ()
    batched: bool = False


def pause_of(name: str, value: Any, open_calls: Mapping[str, tuple[str, str]]) -> Pause:
    """Return the pause of an interrupt. Those of `HumanInTheLoopMiddleware` are about tool calls."""
    if isinstance(value, Mapping) and value.get("type") == "tool_approval":
        return Pause(name, value, (value["tool_call_id"],))
    if not isinstance(value, Mapping) or "action_requests" not in value:
        return Pause(name, value)
    left = dict(open_calls)
    calls = []
    for action in value["action_requests"]:
        found = next((call for call, about in left.items() if _is_for(action, *about)), None)
        if found is None:
            return Pause(name, value)  # not a call that was shown
        del left[found]
        calls.append(found)
    return Pause(name, value, tuple(calls), batched=True)


def _is_for(action: Mapping[str, Any], name: str, arguments: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(action["name"] == name and action["args"] == orjson.loads(arguments or "{}"))
    return False


def decision_of(approval: Mapping[str, Any]) -> dict[str, Any]:
    if approval.get("approved") is True:
        return {"type": "approve"}
    return {"type": "reject", **({"message": approval["reason"]} if approval.get("reason") else {})}
