"""Answers to a stream that waits: inputs for its generator, all of a request in one transaction.

Each is an input under the number of its question, so that the same answer from another tab or in a repeated request is
added once, and another one is refused. The generator is woken with all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
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
from .request import in_time, pod_of, pool_of

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


class Given(NamedTuple):
    """An input as JSON, and the key under which it is added once."""

    content: bytes
    key: str


class NotTaken(Exception):
    """Rolls back the inputs of a request, since the stream does not take one of them."""

    def __init__(self, added: Added) -> None:
        super().__init__()
        self.added = added


# Gets what became of the input with this place among those of a request, in their transaction. Returns it, or another
# result that counts in its place. It raises an error, or NotTaken for the usual one, to roll all of them back.
Check: TypeAlias = Callable[[Connection, int, Added], Awaitable[Added]]


async def send(request: Request, stream: Stream, replies: Sequence[Reply]) -> None:
    """Add answers to a stream's inputs: all, or none.

    Raises:
        IdempotencyConflict: one of the questions has another answer.
        InboxFull, MessageTooLarge, StreamEnded, StreamExpired, StreamNotFound, Unavailable: see `add_together`.
    """

    async def check(connection: Connection, place: int, added: Added) -> Added:
        return await _check(connection, stream.id, replies[place], added)

    given = [Given(encode_object(reply.data), f"{_KEY_PREFIX}{reply.seq}") for reply in replies]
    await add_together(request, stream, given, check)


async def add_together(request: Request, stream: Stream, given: Sequence[Given], check: Check) -> None:
    """Add inputs to a stream in one transaction, and wake its generator.

    Raises:
        InboxFull: the stream takes no more inputs.
        MessageTooLarge: one of them is larger than an event may be.
        StreamEnded, StreamExpired, StreamNotFound: the stream has ended at this moment, or is gone.
        Unavailable: the inputs cannot be stored.
    """
    counts = pod_of(request).metrics.inputs
    try:
        async with in_time(request):
            for content, key in given:
                input_sending.require_size(request, content)
                await input_sending.require_room(request, stream, content, key)
            added = await _added(request, stream, given, check)
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
    pool = pod.shards.of(stream_id).pool
    async with translated(pool):
        async for page in event_log.pages(pool, stream_id):
            for batch in page:
                reader.read([batch] if batch.last_seq <= wait else [_up_to(batch, wait)])
                if batch.last_seq >= wait:
                    if reader.pause:
                        return reader.last
                    break
    raise InvalidRequest(f"No wait of the stream {stream_id} has the number {wait}.")


async def _added(request: Request, stream: Stream, given: Sequence[Given], check: Check) -> list[Added]:
    try:
        async with pool_of(request, stream.id).acquire() as connection, connection.transaction():
            return [
                await check(connection, place, await inputs.add(connection, stream.id, content, key))
                for place, (content, key) in enumerate(given)
            ]
    except NotTaken as error:
        # The connection was given back: the refusal reads the stream over another one.
        raise await input_sending.refusal(request, stream, error.added) from None


async def _check(connection: Connection, stream_id: UUID, reply: Reply, added: Added) -> Added:
    if added.result == "conflict" and added.number is not None:
        (before,) = await inputs.read(connection, stream_id, added.number - 1, 1)
        if reply.decides is None or before.data[reply.decides] != reply.data[reply.decides]:
            raise IdempotencyConflict(ANSWERED_BEFORE)
        return added._replace(result="repeated")
    if added.result not in input_sending.TAKEN:
        raise NotTaken(added)
    if reply.late and added.result != "repeated":
        raise IdempotencyConflict(ANSWERED_BEFORE)
    return added


def _up_to(batch: Batch, seq: int) -> Batch:
    lines = batch.lines[: seq + 1 - batch.first_seq]
    return Batch(batch.first_seq, batch.first_seq + len(lines) - 1, False, "\n".join(lines))
