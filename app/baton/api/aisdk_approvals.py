"""The user's answers to tool calls that an earlier stream asked about.

A page sends only the answer. The tool and its arguments are read from the log of the stream that asked. The id of an
approval names that stream, which must belong to the same chat. If that stream waits, its generator gets the answers
(`aisdk_waits`). If it has ended, they create a stream, and an approved call runs once: the same answers, from another
tab or in a repeated request, return the stream that they created first. Different answers to the same question are
refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import orjson
from starlette.requests import Request

from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..dialects.aisdk_approval_id import Question, parse_approval_id
from ..errors import IdempotencyConflict, InvalidRequest, LogDamaged, RawContent, StreamExpired, StreamNotFound
from ..events import read_json
from ..generators.protocol import no_approvals
from ..generators.registry import takes_approvals
from ..settings import Settings
from ..snapshot import Snapshot, ToolCall
from . import actions
from .actions import Content
from .request import found, in_time, key_lifetime_seconds

# In one message. Each may need a log to be read.
MOST: Final = 32
# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tapproval "
TWICE: Final = "A message can answer each approval, and hold the call that waits for it, only once."
# How the events begin that a question's state follows from.
_QUESTION, _WAITING, _RESUMED, _RESET = (
    f'{{"type":"{kind}"' for kind in ("tool_approval", "waiting", "resumed", "reset")
)
ANSWERED_BEFORE: Final = "Another request has answered one of these approvals before. Load the chat again."


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in the log of the stream that asked: the number of its event, and the id of its call there.

    `waits` has the numbers of all events `waiting` of the log. `resumed` is that of the last event after which a run
    of the generator could know the answer; 0 if there is none.
    """

    stream: Stream
    seq: int
    call_id: str
    waits: Sequence[int]
    resumed: int

    @property
    def has_waited(self) -> bool:
        """Whether the stream has waited since it asked."""
        return any(wait > self.seq for wait in self.waits)

    @property
    def is_over(self) -> bool:
        """Whether the stream has waited, continued, and ended: no run can get the answer."""
        return self.stream.ended and any(self.seq < wait < self.resumed for wait in self.waits)

    @property
    def name(self) -> str:
        """The call, in a form that is the same for all questions about it."""
        return f"approval_{self.stream.id.hex}_{self.call_id}"


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one question. `arguments` is a JSON value; `call_id` is the call's id on the page."""

    id: str
    call_id: str
    approved: bool
    name: str
    arguments: Any
    reason: str | None
    asked: Asked

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
        IdempotencyConflict: the stream that asked has continued after it waited, and has ended.
        InvalidRequest: an answer is malformed, or no stream of this chat asked the question.
        Unavailable: the log cannot be read.
    """
    responded = [part for part in parts if part.get("state") == "approval-responded"]
    if len(responded) > MOST:
        raise InvalidRequest(f"A message may hold at most {MOST} answered approvals.")
    _require_distinct(parts, responded)
    logs: dict[UUID, Log | None] = {}
    answers = []
    for part in responded:
        answer = await _answered(request, chat, part, logs)
        part["input"] = answer.arguments
        if part.get("type") == "dynamic-tool":
            part["toolName"] = answer.name
        else:
            part["type"] = f"tool-{answer.name}"
        answers.append(answer)
    if len({answer.asked.name for answer in answers}) < len(answers):
        raise InvalidRequest(TWICE)
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
    decided = sorted((answer.asked.name, answer.approved) for answer in answers)
    # Always in the same order, so that two requests never deadlock.
    first, *others = [_KEY_PREFIX + hashlib.sha256(asked.encode()).hexdigest() for asked, _ in decided]
    digest = hashlib.sha256(orjson.dumps(decided)).digest()
    return IdempotencyKey(first, digest, key_lifetime_seconds(request), tuple(others), ANSWERED_BEFORE)


async def _answered(
    request: Request, chat: str | None, part: Mapping[str, Any], logs: dict[UUID, Log | None]
) -> Answered:
    approval, call_id = part.get("approval"), part.get("toolCallId")
    if not isinstance(approval, dict) or not isinstance(call_id, str):
        raise InvalidRequest("A part in the state 'approval-responded' needs an approval and a toolCallId.")
    approval_id, approved, reason = approval.get("id"), approval.get("approved"), approval.get("reason")
    if not isinstance(approval_id, str) or not isinstance(approved, bool) or not isinstance(reason, str | None):
        raise InvalidRequest("An approval needs an id, and whether the call is approved.")
    question = parse_approval_id(approval_id)
    return await read_answer(request, chat, question, Decision(approval_id, call_id, approved, reason), logs)


class Decision(NamedTuple):
    """What the user decided about a call, under the id that the client gives the question.

    `call_id` is the call's id on the page; None if it is the same as in the log.
    """

    id: str
    call_id: str | None
    approved: bool
    reason: str | None
    may_repeat: bool = False  # the call may have its result already


async def read_answer(
    request: Request,
    chat: str | None,
    question: Question | None,
    decision: Decision,
    logs: dict[UUID, Log | None],
) -> Answered:
    """Return an answer with what the log of the stream that asked says about the call. `logs` are those read so far.

    Raises:
        IdempotencyConflict: the stream that asked has continued after it waited, and has ended.
        InvalidRequest: no stream of this chat asked the question.
        Unavailable: the log cannot be read.
    """
    if question is not None and question.stream_id not in logs:
        logs[question.stream_id] = await read_log(request, chat, question.stream_id)
    log = None if question is None else logs[question.stream_id]
    asked = None if log is None or question is None else log.find(question)
    if asked is not None and asked.is_over:
        raise IdempotencyConflict(ANSWERED_BEFORE)
    call = None if log is None or asked is None else log.call(asked.call_id, answered=decision.may_repeat)
    if call is None or asked is None:
        raise InvalidRequest(f"No answer of this chat waits for the approval {decision.id!r:.120}.")
    call_id = asked.call_id if decision.call_id is None else decision.call_id
    return Answered(
        decision.id, call_id, decision.approved, call["name"] or "", _arguments(call), decision.reason, asked
    )


def _require_distinct(parts: Sequence[dict[str, Any]], responded: Sequence[dict[str, Any]]) -> None:
    """Refuse a question that is answered twice: under another id, the call would run again."""
    ids = [str(part["approval"].get("id")) for part in responded if isinstance(part.get("approval"), dict)]
    calls = [part.get("toolCallId") for part in parts]
    if len(set(ids)) < len(ids) or any(calls.count(part.get("toolCallId")) > 1 for part in responded):
        raise InvalidRequest(TWICE)


@dataclass(frozen=True, slots=True)
class Log:
    """What a stream has asked. `questions` has the number of the newest question about each call."""

    stream: Stream
    snapshot: Snapshot
    questions: Mapping[str, int]
    waits: Sequence[int]
    resumed: int

    @classmethod
    def of(cls, content: Content) -> Self:
        questions: dict[str, int] = {}
        waits = []
        resumed = 0
        for seq, line in enumerate(content.lines, 1):
            if line.startswith(_QUESTION):
                questions[orjson.loads(line)["id"]] = seq
            elif line.startswith(_WAITING):
                waits.append(seq)
            elif line.startswith(_RESUMED):
                resumed = seq
            elif line.startswith(_RESET):
                questions, resumed = {}, seq
        return cls(content.stream, Snapshot.of(content.lines, content.last_seq), questions, waits, resumed)

    def find(self, question: Question) -> Asked | None:
        """Return a question; None if it was not asked, or the same was asked again later."""
        found = [(seq, call) for call, seq in self.questions.items() if seq == question.seq or call == question.call_id]
        return Asked(self.stream, *found[0], self.waits, self.resumed) if found else None

    def waits_since(self, seq: int) -> bool:
        """Whether the stream still waits since the event `waiting` with this number."""
        return bool(self.waits) and self.waits[-1] == seq and self.resumed < seq

    def is_open(self, call_id: str) -> bool:
        """Whether a call has no result."""
        return call_id not in {result["id"] for result in self.snapshot.tool_results}

    def call(self, call_id: str, *, answered: bool = False) -> ToolCall | None:
        """Return a call that has no result, or, with `answered`, any call; None if there is no such call."""
        if not (answered or self.is_open(call_id)):
            return None
        named = enumerate(self.snapshot.tool_calls)
        call = next((call for index, call in named if (call["id"] or f"call_{index}") == call_id), None)
        return call if call is not None and _is_json(call) else None


async def read_log(request: Request, chat: str | None, stream_id: UUID) -> Log | None:
    """Read the log of a stream of a chat; None if it no longer exists."""
    try:
        async with in_time(request):
            stream = await found(request, stream_id)
            if stream.metadata.get("chat") != chat:
                return None
            content = await actions.read(request, stream_id)
    except (StreamNotFound, StreamExpired, LogDamaged, RawContent):
        return None
    return await asyncio.to_thread(Log.of, content)


def _arguments(call: ToolCall) -> Any:
    return read_json(call["arguments"].strip() or "{}")


def _is_json(call: ToolCall) -> bool:
    try:
        orjson.dumps(_arguments(call))
    except (ValueError, TypeError):
        return False
    return True
