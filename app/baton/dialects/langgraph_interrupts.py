"""What a stream waits for, as interrupts of LangGraph, and what resumes it, as inputs of the stream.

A wait for approvals has the form of LangChain's `HumanInTheLoopMiddleware`: `action_requests`, and an answer with as
many `decisions`. Any other wait is a value, and the answer is any value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import orjson

Fields = dict[str, Any]
Calls = Mapping[str, tuple[str, str]]

_DECISIONS: Final = ("approve", "reject")


class UnfitAnswer(Exception):
    """The answer does not fit the question; the message says how."""


def interrupts_of(waits_for: Any, stream_id: UUID, seq: int, calls: Calls) -> list[Fields]:
    """Return what a wait asks for; `calls` has the name and the arguments of each call, by its id."""
    name = f"{stream_id.hex}.{seq}"
    if (asked := _asked(waits_for)) is not None:
        return [{"id": name, "value": _review([calls.get(call_id, (call_id, "{}")) for call_id in asked])}]
    if isinstance(waits_for, Mapping) and waits_for.get("type") == "interrupt":
        # The graph has ids of its own.
        return [{"id": str(waits_for.get("id") or name), "value": waits_for.get("value")}]
    return [{"id": name, "value": waits_for}]


def inputs_of(waits_for: Any, interrupt_id: str, resume: Any) -> list[Any]:
    """Return the inputs that answer a wait. `resume` is the answer, or has it under the id of the interrupt.

    Raises:
        UnfitAnswer: it has no answer, or one of another form.
    """
    if isinstance(resume, Mapping) and resume.keys() == {interrupt_id}:
        resume = resume[interrupt_id]
    asked = _asked(waits_for)
    if asked is None:
        if resume is None:
            raise UnfitAnswer("command.resume: null answers no question.")
        return [resume]
    decisions = resume.get("decisions") if isinstance(resume, Mapping) else None
    if not isinstance(decisions, list) or len(decisions) != len(asked):
        raise UnfitAnswer(f"command.resume: the question needs {len(asked)} `decisions`, one for each action request.")
    return [_approval(call_id, decision) for call_id, decision in zip(asked, decisions, strict=True)]


def _asked(waits_for: Any) -> Sequence[str] | None:
    """Return the calls that a wait is about; None if it is about something else."""
    if not isinstance(waits_for, Mapping) or waits_for.get("type") != "approval":
        return None
    calls = waits_for.get("calls")
    return [str(call) for call in calls] if isinstance(calls, list) and calls else None


def _review(calls: Sequence[tuple[str, str]]) -> Fields:
    names = list(dict.fromkeys(name for name, _ in calls))
    return {
        "action_requests": [{"name": name, "args": _arguments(arguments)} for name, arguments in calls],
        "review_configs": [{"action_name": name, "allowed_decisions": list(_DECISIONS)} for name in names],
    }


def _arguments(arguments: str) -> Any:
    try:
        return orjson.loads(arguments or "{}")
    except ValueError:
        return arguments


def _approval(call_id: str, decision: Any) -> Fields:
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    if kind not in _DECISIONS:
        raise UnfitAnswer(f"command.resume: a decision is {' or '.join(_DECISIONS)}, not {kind!r:.40}.")
    reason = decision.get("message")
    return {
        "type": "approval",
        "call_id": call_id,
        "approved": kind == "approve",
        "reason": reason if isinstance(reason, str) and kind == "reject" else None,
    }
