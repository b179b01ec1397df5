"""The user's answers to a stream that waits for them: inputs for its generator, and no new stream.

A page sees a stream that waits as a complete message with a question. It sends the message back with the answers. Each
is an input under the number of its question, so that the same answer from another tab or in a repeated request is added
once, and another decision is refused. All answers of a message are added in one transaction: the generator is woken
with all of them.

The page's message says up to which wait the page has the answer. What follows that wait is a *run* with a name of its
own, since a page that has the message counts its chunks from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from . import waiting_answers
from .aisdk_approvals import Answered
from .request import principal_of
from .waiting_answers import Place, Reply


async def answer(request: Request, answers: Sequence[Answered], metadata: Any) -> Place | None:
    """Give answers to the stream that waits for them; return the wait that the page has seen, or None if none waits.

    `metadata` is that of the page's message.

    Raises:
        Forbidden: the caller may create streams, and send them no inputs.
        IdempotencyConflict: one of the questions has another answer.
        InboxFull, MessageTooLarge, StreamEnded, StreamExpired, StreamNotFound, Unavailable: see `waiting_answers`.
    """
    waiting = [answer for answer in answers if answer.asked.has_waited and not answer.asked.stream.ended]
    if not waiting:
        return None
    principal_of(request).require("input")
    # Earlier streams that continued the same message have had their answers.
    asked = waiting[-1].asked
    given = sorted(
        (answer for answer in waiting if answer.asked.stream.id == asked.stream.id), key=lambda item: item.asked.seq
    )
    await waiting_answers.send(request, asked.stream, [reply_of(answer) for answer in given])
    seen = _seen(metadata)
    return Place(asked.stream, seen if seen is not None and seen in asked.waits else asked.waits[-1])


def reply_of(answer: Answered) -> Reply:
    """Return the input for an answer. Another reason for the same decision is no other answer."""
    decision = {"approved": answer.approved, "reason": answer.reason}
    data = {"type": "approval", "call_id": answer.asked.call_id, **decision}
    return Reply(answer.asked.seq, data, "approved")


def _seen(metadata: Any) -> int | None:
    """Return the number of the wait that a message ends with."""
    waiting = metadata.get("waiting") if isinstance(metadata, dict) else None
    seq = waiting.get("seq") if isinstance(waiting, dict) else None
    return seq if isinstance(seq, int) else None
