"""The user's answers to tool calls that an earlier stream asked about.

A page sends only the answer. The tool and its arguments are read from the log of the stream that asked. The id of an
approval names that stream, which must belong to the same chat. An approved call runs once: the same answers, from
another tab or in a repeated request, return the stream that they created first. Different answers to the same question
are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.requests import Request

from ..db.postgres import translated
from ..db.stream_creation import IdempotencyKey
from ..dialects.aisdk_approval_id import parse_approval_id
from ..errors import InvalidRequest, LogDamaged, RawContent, StreamExpired, StreamNotFound
from ..events import read_json
from ..generators.protocol import no_approvals
from ..generators.registry import takes_approvals
from ..settings import Settings
from ..snapshot import Snapshot, ToolCall
from . import actions
from .request import found, key_lifetime_seconds, pod_of

# In one message. Each may need a log to be read.
_MOST: Final = 32
# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tapproval "
_ANSWERED_BEFORE: Final = "Another request has answered one of these approvals before. Load the chat again."


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one question. `arguments` is a JSON value; `call_id` is the call's id on the page."""

    id: str
    call_id: str
    approved: bool
    name: str
    arguments: Any
    reason: str | None

    def as_approval(self) -> dict[str, Any]:
        """Return the fields of `generators.Approval`."""
        return {
            "id": self.id,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "reason": self.reason,
        }


async def answered(request: Request, chat: str | None, parts: Sequence[dict[str, Any]]) -> list[Answered]:
    """Return the answers in a message's parts, and copy into these parts what the log says about each call.

    Raises:
        InvalidRequest: an answer is malformed, or no stream of this chat asked the question.
        Unavailable: the log cannot be read.
    """
    responded = [part for part in parts if part.get("state") == "approval-responded"]
    if len(responded) > _MOST:
        raise InvalidRequest(f"A message may hold at most {_MOST} answered approvals.")
    _require_distinct(parts, responded)
    logs: dict[UUID, Snapshot | None] = {}
    answers = []
    for part in responded:
        answer = await _answered(request, chat, part, logs)
        part["input"] = answer.arguments
        if part.get("type") == "dynamic-tool":
            part["toolName"] = answer.name
        else:
            part["type"] = f"tool-{answer.name}"
        answers.append(answer)
    return answers


def require_tool_runner(settings: Settings, generator: str | None, answers: Sequence[Answered]) -> None:
    """Refuse approved calls for a generator that runs no tools.

    Raises:
        InvalidRequest: the generator is a built-in one.
    """
    name = generator or settings.default_generator
    if any(answer.approved for answer in answers) and not takes_approvals(settings, name):
        raise InvalidRequest(no_approvals(name))


def key_of(request: Request, answers: Sequence[Answered]) -> IdempotencyKey | None:
    """Return the idempotency key of the stream for these answers, with one for each question; None without answers."""
    if not answers:
        return None
    decided = sorted((answer.id, answer.approved) for answer in answers)
    # Always in the same order, so that two requests never deadlock.
    first, *others = [_KEY_PREFIX + hashlib.sha256(asked.encode()).hexdigest() for asked, _ in decided]
    digest = hashlib.sha256(orjson.dumps(decided)).digest()
    return IdempotencyKey(first, digest, key_lifetime_seconds(request), tuple(others), _ANSWERED_BEFORE)


async def _answered(
    request: Request, chat: str | None, part: Mapping[str, Any], logs: dict[UUID, Snapshot | None]
) -> Answered:
    approval, call_id = part.get("approval"), part.get("toolCallId")
    if not isinstance(approval, dict) or not isinstance(call_id, str):
        raise InvalidRequest("A part in the state 'approval-responded' needs an approval and a toolCallId.")
    approval_id, approved, reason = approval.get("id"), approval.get("approved"), approval.get("reason")
    if not isinstance(approval_id, str) or not isinstance(approved, bool) or not isinstance(reason, str | None):
        raise InvalidRequest("An approval needs an id, and whether the call is approved.")
    asked = parse_approval_id(approval_id)
    if asked is not None and asked[0] not in logs:
        logs[asked[0]] = await _snapshot(request, chat, asked[0])
    call = None if asked is None else _waiting(logs[asked[0]], asked[1])
    if call is None:
        raise InvalidRequest(f"No answer of this chat waits for the approval {approval_id!r:.120}.")
    return Answered(approval_id, call_id, approved, call["name"] or "", _arguments(call), reason)


def _require_distinct(parts: Sequence[dict[str, Any]], responded: Sequence[dict[str, Any]]) -> None:
    """Refuse a question that is answered twice: under another id, the call would run again."""
    ids = [str(part["approval"].get("id")) for part in responded if isinstance(part.get("approval"), dict)]
    calls = [part.get("toolCallId") for part in parts]
    if len(set(ids)) < len(ids) or any(calls.count(part.get("toolCallId")) > 1 for part in responded):
        raise InvalidRequest("A message can answer each approval, and hold the call that waits for it, only once.")


def _waiting(snapshot: Snapshot | None, call_id: str) -> ToolCall | None:
    """Return a call that waits for the user's answer and has no result; None if there is no such call."""
    if snapshot is None or call_id not in {event["id"] for event in snapshot.tool_approvals}:
        return None
    if call_id in {result["id"] for result in snapshot.tool_results}:
        return None
    calls = (call for index, call in enumerate(snapshot.tool_calls) if (call["id"] or f"call_{index}") == call_id)
    call = next(calls, None)
    return call if call is not None and _is_json(call) else None


async def _snapshot(request: Request, chat: str | None, stream_id: UUID) -> Snapshot | None:
    """Read an answer of a chat; None if it no longer exists."""
    try:
        async with translated(pod_of(request).pool):
            stream = await found(request, stream_id)
            if stream.metadata.get("chat") != chat:
                return None
            content = await actions.read(request, stream_id)
    except (StreamNotFound, StreamExpired, LogDamaged, RawContent):
        return None
    return await asyncio.to_thread(Snapshot.of, content.lines, content.last_seq)


def _arguments(call: ToolCall) -> Any:
    return read_json(call["arguments"].strip() or "{}")


def _is_json(call: ToolCall) -> bool:
    try:
        orjson.dumps(_arguments(call))
    except (ValueError, TypeError):
        return False
    return True
