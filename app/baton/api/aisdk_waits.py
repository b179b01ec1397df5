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
from typing import Any, Final, NamedTuple

from starlette.requests import Request

from ..db import inputs
from ..db.inputs import Added
from ..db.postgres import Connection, translated
from ..db.streams import Stream
from ..errors import IdempotencyConflict, RequestError
from ..events import encode_object
from . import input_sending
from .aisdk_approvals import ANSWERED_BEFORE, Answered
from .request import pod_of

# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tapproval "


class _NotTaken(Exception):
    """Rolls back the answers of a message, since the stream does not take one of them."""

    def __init__(self, added: Added) -> None:
        super().__init__()
        self.added = added


class Place(NamedTuple):
    """A wait of a stream: the number of its event `waiting`."""

    stream: Stream
    seq: int


async def answer(request: Request, answers: Sequence[Answered], metadata: Any) -> Place | None:
    """Give answers to the stream that waits for them; return the wait that the page has seen, or None if none waits.

    `metadata` is that of the page's message.

    Raises:
        IdempotencyConflict: one of the questions has another answer.
        InboxFull: the stream takes no more inputs.
        StreamEnded, StreamExpired, StreamNotFound: the stream has ended at this moment, or is gone.
        Unavailable: the answers cannot be stored.
    """
    waiting = [answer for answer in answers if answer.asked.has_waited and not answer.asked.stream.ended]
    if not waiting:
        return None
    # Earlier streams that continued the same message have had their answers.
    asked = waiting[-1].asked
    given = sorted(
        (answer for answer in waiting if answer.asked.stream.id == asked.stream.id), key=lambda item: item.asked.seq
    )
    await _send(request, asked.stream, given)
    seen = _seen(metadata)
    return Place(asked.stream, seen if seen is not None and seen in asked.waits else asked.waits[-1])


async def _send(request: Request, stream: Stream, given: Sequence[Answered]) -> None:
    """Add the answers to a stream's inputs: all, or none."""
    counts = pod_of(request).metrics.inputs
    try:
        async with translated(pod_of(request).pool):
            added = await _add(request, stream, given)
            await input_sending.announce(request, stream.id, added)
    except RequestError as error:
        counts.add(error.code)
        raise
    for each in added:
        counts.add(each.result)


async def _add(request: Request, stream: Stream, given: Sequence[Answered]) -> list[Added]:
    try:
        async with pod_of(request).pool.acquire() as connection, connection.transaction():
            return [await _give(connection, answer) for answer in given]
    except _NotTaken as error:
        # The connection was given back: the refusal reads the stream over another one.
        raise await input_sending.refusal(request, stream, error.added) from None


async def _give(connection: Connection, answer: Answered) -> Added:
    stream_id, asked = answer.asked.stream.id, answer.asked
    decision = {"approved": answer.approved, "reason": answer.reason}
    content = encode_object({"type": "approval", "call_id": asked.call_id, **decision})
    added = await inputs.add(connection, stream_id, content, f"{_KEY_PREFIX}{asked.seq}")
    if added.result == "conflict" and added.number is not None:
        # Another reason for the same decision is no other answer.
        (before,) = await inputs.read(connection, stream_id, added.number - 1, 1)
        if before.data["approved"] != answer.approved:
            raise IdempotencyConflict(ANSWERED_BEFORE)
        return added._replace(result="repeated")
    if added.result not in input_sending.TAKEN:
        raise _NotTaken(added)
    return added


def _seen(metadata: Any) -> int | None:
    """Return the number of the wait that a message ends with."""
    waiting = metadata.get("waiting") if isinstance(metadata, dict) else None
    seq = waiting.get("seq") if isinstance(waiting, dict) else None
    return seq if isinstance(seq, int) else None
