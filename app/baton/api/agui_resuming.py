"""The answers to the interrupts of a run: inputs for a stream that waits, or the approvals of a new stream.

Which of the two an answer is, the id of its interrupt says. A stream that waits gets the inputs, and the client follows
it after its wait. A stream that ended with a question continues as a new one, as in the AI SDK's protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from starlette.requests import Request

from ..dialects.agui_interrupts import Interrupt, parse_interrupt_id
from ..dialects.aisdk_approval_id import Question
from ..errors import IdempotencyConflict, InvalidRequest
from . import aisdk_approvals, aisdk_waits, waiting_answers
from .agui_bodies import ResumeEntry, RunAgentInput
from .aisdk_approvals import ANSWERED_BEFORE, MOST, TWICE, Answered, Decision, Log
from .request import found, in_time, principal_of
from .waiting_answers import Place, Reply

_Asked: TypeAlias = tuple[Interrupt, ResumeEntry]
_Logs: TypeAlias = dict[UUID, Log | None]


class Resumed(NamedTuple):
    """What the answers are for: the wait after which the client follows a stream, or approvals for a new one."""

    place: Place | None
    answers: Sequence[Answered]


async def resume(request: Request, sent: RunAgentInput) -> Resumed:
    """Give a request's answers to the stream that waits for them.

    Raises:
        Forbidden: the caller may create streams, and send them no inputs.
        IdempotencyConflict: one of the questions has another answer, or the stream has ended since.
        InvalidRequest: an answer is malformed, or no stream of this thread asked the question.
        InboxFull, MessageTooLarge, StreamEnded, StreamExpired, StreamNotFound, Unavailable: see `waiting_answers.send`.
    """
    asked = _interrupts(sent.resume or [])
    stream_id, wait = UUID(asked[0][0].stream), asked[0][0].wait
    if wait:
        principal_of(request).require("input")
    async with in_time(request):
        stream = await found(request, stream_id)
    if stream.metadata.get("chat") != sent.threadId:
        raise InvalidRequest(f"No answer of this thread waits for the interrupt {asked[0][1].interruptId!r:.120}.")
    if wait and stream.ended:
        raise IdempotencyConflict(ANSWERED_BEFORE)
    logs: _Logs = {}
    answers = await _approvals(request, sent, asked, logs)
    if not wait:
        return Resumed(None, answers)
    await waiting_answers.send(request, stream, await _replies(request, sent, asked, answers, logs))
    return Resumed(Place(stream, wait), [])


async def _replies(
    request: Request, sent: RunAgentInput, asked: Sequence[_Asked], answers: Sequence[Answered], logs: _Logs
) -> list[Reply]:
    """Return the inputs for answers, in the order of their questions.

    An answer that comes late, after another one or the deadline, must not wake a stream that waits again.
    """
    stream_id = UUID(asked[0][0].stream)
    if stream_id not in logs:
        logs[stream_id] = await aisdk_approvals.read_log(request, sent.threadId, stream_id)
    log = logs[stream_id]
    replies = []
    for answer in sorted(answers, key=lambda each: each.asked.seq):
        reply = aisdk_waits.reply_of(answer)
        replies.append(reply._replace(late=log is None or not log.is_open(answer.asked.call_id)))
    for interrupt, entry in asked:
        if not interrupt.question:
            replies.append(_reply(interrupt, entry)._replace(late=log is None or not log.waits_since(interrupt.wait)))
    return replies


def _interrupts(entries: Sequence[ResumeEntry]) -> list[_Asked]:
    if len(entries) > MOST:
        raise InvalidRequest(f"A request may answer at most {MOST} interrupts.")
    found: list[_Asked] = []
    for entry in entries:
        interrupt = parse_interrupt_id(entry.interruptId)
        if interrupt is None or not (interrupt.wait or interrupt.question):
            raise InvalidRequest(f"No answer of this thread waits for the interrupt {entry.interruptId!r:.120}.")
        found.append((interrupt, entry))
    if len({(interrupt.stream, interrupt.wait) for interrupt, _ in found}) > 1:
        raise InvalidRequest("All interrupts that a request answers must be of one run.")
    if len({interrupt for interrupt, _ in found}) < len(found):
        raise InvalidRequest(TWICE)
    return found


async def _approvals(request: Request, sent: RunAgentInput, asked: Sequence[_Asked], logs: _Logs) -> list[Answered]:
    answers = []
    for interrupt, entry in asked:
        if interrupt.question:
            question = Question(UUID(interrupt.stream), interrupt.question, None)
            decision = _decision(entry)._replace(may_repeat=interrupt.wait > 0)
            answers.append(await aisdk_approvals.read_answer(request, sent.threadId, question, decision, logs))
    return answers


def _decision(entry: ResumeEntry) -> Decision:
    """Read whether a call is approved. A user who gave no answer has not approved it."""
    if entry.status == "cancelled":
        return Decision(entry.interruptId, None, False, None)
    payload = entry.payload
    approved = payload.get("approved") if isinstance(payload, dict) else payload
    reason = payload.get("reason") if isinstance(payload, dict) else None
    if not isinstance(approved, bool) or not isinstance(reason, str | None):
        raise InvalidRequest(
            'The payload for a tool call must be {"approved": true} or false, with or without a reason.'
        )
    return Decision(entry.interruptId, None, approved, reason)


def _reply(interrupt: Interrupt, entry: ResumeEntry) -> Reply:
    """Return the input for the answer to any other question: the payload, or a message if it is a text."""
    data: Any = entry.payload
    if entry.status == "cancelled":
        data = {"type": "cancelled"}
    elif data is None:
        raise InvalidRequest("An answer to an interrupt needs a payload.")
    elif isinstance(data, str):
        data = {"type": "message", "message": {"role": "user", "content": data}}
    return Reply(interrupt.wait, data)
