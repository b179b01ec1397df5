"""Answers to a stream that waits: inputs for its generator, all of a request in one transaction.

Each is an input under the number of its question, so that the same answer from another tab or in a repeated request is
added once, and another one is refused. The generator is woken with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from starlette.requests import Request

from ..db import event_log, inputs
from ..db.event_log import Batch
from ..db.inputs import Added
from ..db.postgres import Connection, translated
from ..db.streams import Stream
from ..dialects.protocol import Dialect, Encoded, Reader
from ..errors import IdempotencyConflict, InvalidRequest, RequestError
from ..events import MAX_SEQ, encode_object
from ..pod.pod import Pod
from . import input_sending
from .aisdk_approvals import ANSWERED_BEFORE
from .request import pod_of

# No client can send a key that begins like this.
_KEY_PREFIX: Final = "\tapproval "


class Place(NamedTuple):
    """A wait of a stream: the number of its event `waiting`."""

    stream: Stream
    seq: int


class Reply(NamedTuple):
    """The input that answers the question with the number `seq`.

    An input with the same value of the field `decides` is the same answer; without `decides`, the same input is. If
    it is `late`, it is taken only if it was given before.
    """

    seq: int
    data: Any
    decides: str | None = None
    late: bool = False


class _NotTaken(Exception):
    """Rolls back the answers of a request, since the stream does not take one of them."""

    def __init__(self, added: Added) -> None:
        super().__init__()
        self.added = added


async def send(request: Request, stream: Stream, replies: Sequence[Reply]) -> None:
    """Add answers to a stream's inputs: all, or none.

    Raises:
        IdempotencyConflict: one of the questions has another answer.
        InboxFull: the stream takes no more inputs.
        StreamEnded, StreamExpired, StreamNotFound: the stream has ended at this moment, or is gone.
        Unavailable: the answers cannot be stored.
    """
    counts = pod_of(request).metrics.inputs
    try:
        async with translated(pod_of(request).pool):
            added = await _add(request, stream, replies)
            await input_sending.announce(request, stream.id, added)
    except RequestError as error:
        counts.add(error.code)
        raise
    for each in added:
        counts.add(each.result)


async def frames_before(pod: Pod, dialect: Dialect[Any], begun: Encoded[Any], stream_id: UUID, wait: int) -> int:
    """Return how many frames precede the end of a wait, whose event has this number.

    Raises:
        InvalidRequest: the event of that number does not begin a wait.
    """
    reader = Reader(dialect, begun, MAX_SEQ)
    async with translated(pod.pool):
        async for page in event_log.pages(pod.pool, stream_id):
            for batch in page:
                reader.read([batch] if batch.last_seq <= wait else [_up_to(batch, wait)])
                if batch.last_seq >= wait:
                    if reader.pause:
                        return reader.last
                    break
    raise InvalidRequest(f"No wait of the stream {stream_id} has the number {wait}.")


async def _add(request: Request, stream: Stream, replies: Sequence[Reply]) -> list[Added]:
    try:
        async with pod_of(request).pool.acquire() as connection, connection.transaction():
            return [await _give(connection, stream.id, reply) for reply in replies]
    except _NotTaken as error:
        # The connection was given back: the refusal reads the stream over another one.
        raise await input_sending.refusal(request, stream, error.added) from None


async def _give(connection: Connection, stream_id: UUID, reply: Reply) -> Added:
    added = await inputs.add(connection, stream_id, encode_object(reply.data), f"{_KEY_PREFIX}{reply.seq}")
    if added.result == "conflict" and added.number is not None:
        (before,) = await inputs.read(connection, stream_id, added.number - 1, 1)
        if reply.decides is None or before.data[reply.decides] != reply.data[reply.decides]:
            raise IdempotencyConflict(ANSWERED_BEFORE)
        return added._replace(result="repeated")
    if added.result not in input_sending.TAKEN:
        raise _NotTaken(added)
    if reply.late and added.result != "repeated":
        raise IdempotencyConflict(ANSWERED_BEFORE)  # which rolls it back
    return added


def _up_to(batch: Batch, seq: int) -> Batch:
    lines = batch.lines[: seq + 1 - batch.first_seq]
    return Batch(batch.first_seq, batch.first_seq + len(lines) - 1, False, "\n".join(lines))
