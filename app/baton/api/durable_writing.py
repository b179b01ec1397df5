"""Writing streams by the Durable Streams protocol: appending, closing, deleting. `durable_creation` creates them.

What an append does is decided where it is written (`pod.append_queue`). Here a request becomes one, and what was
decided becomes the protocol's status and headers.

A repeated `POST` with the headers of a producer is answered as written before. Without these headers, one whose answer
was lost may be stored twice.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from ..db.external_appends import Appended, AppendRequest, ProducerClaim, Refused
from ..db.external_streams import ExternalStream
from ..dialects.durable_offsets import offset_after
from ..errors import (
    AppendRateLimited,
    BodyTimeout,
    ContentTypeMismatch,
    InvalidRequest,
    MessageTooLarge,
    NotAppendable,
    ProducerFenced,
    ProducerGap,
    RequestError,
    RequestMemoryFull,
    RequestTooLarge,
    StreamClosed,
    StreamExpired,
    StreamFull,
    StreamNotFound,
    StreamSeqConflict,
    SubscriptionsNotSupported,
    TooManyProducers,
    TooManyQueries,
)
from ..outcome import Outcome
from . import actions, append_limits, content_types, durable_bodies
from .content_types import ContentType
from .durable_bodies import Messages
from .durable_headers import (
    CLOSED,
    NEXT_OFFSET,
    PRODUCER_EPOCH,
    PRODUCER_ID,
    PRODUCER_SEQ,
    SEQ,
    claim,
    closes,
    require_plain,
    stream_seq,
)
from .durable_paths import PATH, ROUTE, Addressed, addressed, stream_path
from .durable_refusals import refusal
from .refusals import GUARDED, STREAM
from .request import AsgiResponse, common_headers, header_of, pod_of, principal_of
from .request_body import read_body
from .routing import AnswerHeader, Parameter, Returns, Routes

# Larger bodies are read in a thread: other clients of the pod need not wait.
_LARGE_BYTES: Final = 65_536

STRING: Final = {"type": "string"}
NUMBER: Final = {"type": "integer", "minimum": 0}
CLOSES: Final = Parameter(CLOSED, "header", "`true` closes the stream: nothing can be appended after that.", STRING)
_PRODUCER: Final = (
    Parameter(PRODUCER_ID, "header", "Names the producer, so that it can repeat an append.", STRING),
    Parameter(PRODUCER_EPOCH, "header", "A higher one replaces a process that was this producer.", NUMBER),
    Parameter(PRODUCER_SEQ, "header", "Numbers the appends of an epoch: 0, 1, 2, ….", NUMBER),
)
STATE: Final = (
    AnswerHeader(NEXT_OFFSET, "The offset to read from next."),
    AnswerHeader(CLOSED, "`true`: the stream is closed."),
)
_WRITTEN: Final = (
    *STATE,
    AnswerHeader(PRODUCER_EPOCH, "The epoch of the producer.", {"type": "integer"}),
    AnswerHeader(PRODUCER_SEQ, "The number of its last append.", {"type": "integer"}),
)
BODY: Final = (
    f"The messages. JSON: one value, or an array of messages. The content type `{content_types.EVENTS}` makes each "
    "message an event, as a generator yields it; the last one may be `finish` or `error`, which ends the stream."
)
SENDING: Final = (InvalidRequest, BodyTimeout, RequestTooLarge, RequestMemoryFull, MessageTooLarge, StreamFull)

ROUTES: Final = Routes("Durable Streams", path=PATH)


@ROUTES.route(
    "POST",
    ROUTE,
    "produce",
    {
        200: Returns("The producer's append was written.", {}, _WRITTEN),
        204: Returns("It was written, now or before, or the stream was closed.", {}, _WRITTEN),
    },
    refusals=(
        *GUARDED,
        *SENDING,
        TooManyQueries,
        StreamNotFound,
        StreamExpired,
        NotAppendable,
        ContentTypeMismatch,
        StreamClosed,
        StreamSeqConflict,
        ProducerFenced,
        ProducerGap,
        TooManyProducers,
        SubscriptionsNotSupported,
        AppendRateLimited,
    ),
    parameters=(
        CLOSES,
        *_PRODUCER,
        Parameter(SEQ, "header", "Must be higher, byte by byte, than that of the append before.", STRING),
    ),
    content=BODY,
    narrow=True,
    counted=False,
    around=append_limits.counting,
    name="durable",
)
async def append_messages(request: Request) -> AsgiResponse:
    """Append messages to a stream, close it, or both."""
    path = stream_path(request)
    await append_limits.require_append(request)
    require_plain(header_of(request, "Content-Encoding"))
    wanted = _Wanted(
        claim(*(header_of(request, name) for name in (PRODUCER_ID, PRODUCER_EPOCH, PRODUCER_SEQ))),
        stream_seq(header_of(request, SEQ)),
        await read_body(request),
    )
    if not wanted.body and not closes(header_of(request, CLOSED)):
        raise InvalidRequest(f"The body is empty. Send messages, or {CLOSED}: true to close the stream.")
    asked, done = await _appended(request, path, wanted)
    if isinstance(done, Refused):
        raise refusal(asked, done)
    is_written = bool(wanted.body) and not done.duplicate and wanted.producer is not None
    return Response(status_code=200 if is_written else 204, headers=common_headers(request) | _written(asked, done))


@ROUTES.route(
    "DELETE",
    ROUTE,
    "produce",
    {204: Returns("It was deleted.")},
    refusals=(*STREAM, InvalidRequest, SubscriptionsNotSupported),
)
async def delete_path(request: Request) -> AsgiResponse:
    """Erase a stream and its messages. One that a generator writes is stopped, which needs the scope `admin`, too."""
    principal = principal_of(request)
    principal.require_tenant()
    there = await addressed(request)
    if there.external is None:
        principal.require("admin")
    await actions.erase(request, there.stream.id)
    return Response(status_code=204, headers=common_headers(request))


class _Wanted(NamedTuple):
    """What a request appends, to whatever stream its path names."""

    producer: ProducerClaim | None
    stream_seq: str | None
    body: bytes


async def _appended(request: Request, path: str, wanted: _Wanted) -> tuple[AppendRequest, Appended | Refused]:
    """Append to the stream that the path names; return the append, and what was decided."""
    targets, principal = pod_of(request).append_targets, principal_of(request)
    known = targets.find(principal.tenant, path)
    tried = None
    if known is not None and principal.sees(known.tenant, known.stream_id):
        tried = await _tried(request, known, wanted)
        if tried is not None and isinstance(tried[1], Appended) and not tried[1].duplicate:
            return tried
    targets.forget(principal.tenant, path)
    external = _external(await addressed(request))
    if tried is None or tried[0].stream_id != external.stream_id:
        asked = await _asked(request, external, wanted)
        tried = asked, await append_limits.append(request, asked)
    targets.remember(principal.tenant, path, external)
    return tried


async def _tried(
    request: Request, known: ExternalStream, wanted: _Wanted
) -> tuple[AppendRequest, Appended | Refused] | None:
    """Append to the stream that a path named before; return None if the request does not fit it."""
    try:
        asked = await _asked(request, known, wanted)
    except RequestError:
        return None
    return asked, await append_limits.append(request, asked)


async def _asked(request: Request, external: ExternalStream, wanted: _Wanted) -> AppendRequest:
    """Return the append of a request to a stream.

    Raises:
        ContentTypeMismatch, InvalidRequest, MessageTooLarge: the body does not fit the stream.
    """
    body = wanted.body
    found = await messages_of(request, _body_type(request, external), body) if body else Messages([])
    if body and not found.lines and found.outcome is None:
        raise InvalidRequest("The array is empty. Send at least one message.")
    outcome = outcome_of(request, found)
    return AppendRequest(external.stream_id, found.lines, found.tokens, wanted.producer, wanted.stream_seq, outcome)


def outcome_of(request: Request, found: Messages) -> Outcome | None:
    """Return how the request ends the stream: as its last message says, or because it closes the stream."""
    if found.outcome is None and closes(header_of(request, CLOSED)):
        return durable_bodies.CLOSED
    return found.outcome


async def messages_of(request: Request, content_type: ContentType, body: bytes) -> Messages:
    """Read a body.

    Raises:
        InvalidRequest: it is not of this content type.
        MessageTooLarge: a message is larger than an event may be.
    """
    if not body:
        return Messages([])
    if len(body) > _LARGE_BYTES:
        found = await asyncio.to_thread(durable_bodies.messages, content_type.kind, body)
    else:
        found = durable_bodies.messages(content_type.kind, body)
    append_limits.require_small(request, found.lines)
    return found


def _body_type(request: Request, external: ExternalStream) -> ContentType:
    """Return the stream's content type.

    Raises:
        ContentTypeMismatch: the body has another one.
        InvalidRequest: it has none.
    """
    given, stream_type = header_of(request, "Content-Type"), content_types.parse(external.content_type)
    if given is None or not given.strip():
        raise InvalidRequest("Send the Content-Type of the stream with the body.")
    if not stream_type.accepts(content_types.parse(given)):
        raise ContentTypeMismatch(
            f"The stream's content type is {external.content_type}, and the body's is {given!r:.80}."
        )
    return stream_type


def _external(there: Addressed) -> ExternalStream:
    if there.external is None:
        raise NotAppendable(f"The stream {there.stream.id} is written by the generator {there.stream.generator!r:.80}.")
    return there.external


def state(stream_id: UUID, tail: int, *, closed: bool) -> dict[str, str]:
    """Return the headers that say how far a stream has come."""
    headers = {NEXT_OFFSET: offset_after(stream_id, tail)}
    return headers | ({CLOSED: "true"} if closed else {})


def _written(asked: AppendRequest, done: Appended) -> dict[str, str]:
    headers = state(asked.stream_id, done.tail, closed=done.closed)
    if done.producer is not None:
        headers |= {PRODUCER_EPOCH: str(done.producer.epoch), PRODUCER_SEQ: str(done.producer.seq)}
    return headers
