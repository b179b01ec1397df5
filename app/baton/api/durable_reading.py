"""Reading streams by the Durable Streams protocol: what is in the log, then what comes, in one of two ways.

A read without `live` returns a page of the log, which is read from the database: so a client reads its own writes on
every pod. With `live=long-poll` a request that has all there is waits for more. With `live=sse` it is followed like
any event stream. Both wait on the stream's relay.

The protocol's clients repeat a request that gets 429 or 5xx without end, and stop at other errors. So a log with a gap
is answered with 410. A clean end of an event stream means nothing to them: they reconnect with the last offset. So a
pod that leaves ends event streams, and answers long polls with 204.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ..db import event_log, external_streams
from ..db.postgres import translated
from ..dialects.durable import DIALECTS, DurableReader, content_of, cursor_after, parse_cursor
from ..dialects.durable_offsets import BEGINNING, PATTERN, number_in, offset_after, prefix_of
from ..errors import (
    InvalidRequest,
    LogDamaged,
    MessagesMissing,
    OffsetGone,
    OldProtocol,
    RawContent,
    SubscriptionsNotSupported,
)
from .admission import Handler
from .durable_headers import CLOSED, EXPIRES_AT, NEXT_OFFSET, STREAM_ID, TTL
from .durable_pages import Page, end_of, page_of, read_page
from .durable_paths import PATH, ROUTE, Addressed, addressed
from .following import count_resume, event_stream, subscribe, wait_for_events
from .opening import HeadersOnly
from .refusals import FOLLOWING, STREAM
from .request import AsgiResponse, common_headers, damaged, header_of, in_time, pod_of, pool_of, query_of, shard_of
from .routing import EVENTS, JSON, AnswerHeader, Parameter, Returns, Routes
from .validation import validated

UP_TO_DATE: Final = "Stream-Up-To-Date"
CURSOR: Final = "Stream-Cursor"
ENCODING: Final = "Stream-SSE-Data-Encoding"

_OFFSET_HEADER: Final = AnswerHeader(NEXT_OFFSET, "The offset to read from next.")
_ID_HEADER: Final = AnswerHeader(STREAM_ID, "The id of the stream, by which other APIs know it.")
_STATE_HEADERS: Final = (
    _OFFSET_HEADER,
    AnswerHeader(CLOSED, "`true`: the stream is closed, and the answer reaches its end."),
)
_PAGE_HEADERS: Final = (
    *_STATE_HEADERS,
    AnswerHeader(UP_TO_DATE, "`true`: the answer reaches the end of the stream so far."),
)
_LIVE_HEADERS: Final = (*_PAGE_HEADERS, AnswerHeader(CURSOR, "To be sent as `cursor` in the next request."))
_ETAG: Final = AnswerHeader("etag", "Names the page, for `If-None-Match`.")
_LIFETIME_HEADERS: Final = (
    AnswerHeader(TTL, "How many seconds the stream is kept after it was last read or written.", {"type": "integer"}),
    AnswerHeader(EXPIRES_AT, "Until when the stream is kept."),
)
_BYTES: Final = "The messages, one after the other."
_SSE: Final = (
    "`data` events with messages (JSON: an array; bytes: base64), each followed by a `control` event: "
    "`streamNextOffset`, `streamCursor`, `upToDate`, and at the end `streamClosed`."
)
_REFUSALS: Final = (
    *(error for error in FOLLOWING if error not in {LogDamaged, OldProtocol, RawContent}),
    *(OffsetGone, MessagesMissing, SubscriptionsNotSupported),
)


def _stopping_at_gaps(handler: Handler) -> Handler:
    """Answer with a status at which clients stop if messages are missing."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except LogDamaged as error:
            raise MessagesMissing(str(error), operator=error.operator) from error

    return endpoint


class ReadStream(BaseModel):
    """The query of a read. Other parameters are ignored."""

    offset: str | None = Field(
        None,
        pattern=f"^({PATTERN})$",
        description=f"A `{NEXT_OFFSET}`; `-1`, the beginning; or `now`, the end so far. `live` needs one.",
    )
    live: Literal["long-poll", "sse"] | None = Field(
        None, description="How to wait for what comes: `long-poll` answers once, `sse` with an event stream."
    )
    cursor: str | None = Field(None, description=f"The last `{CURSOR}`, or `streamCursor`.")


ROUTES: Final = Routes("Durable Streams", path=PATH)


@ROUTES.route(
    "HEAD",
    ROUTE,
    "read",
    {200: Returns("The stream exists.", {}, (*_STATE_HEADERS, *_LIFETIME_HEADERS, _ID_HEADER))},
    refusals=(*STREAM, InvalidRequest, SubscriptionsNotSupported),
)
async def describe_stream(request: Request) -> AsgiResponse:
    """Return the content type of a stream, its end so far, and how long it is kept."""
    there = await addressed(request)
    async with in_time(request):
        tail = await event_log.read_tail(pool_of(request, there.stream.id), there.stream.id)
    page = end_of(there, tail)
    headers = common_headers(request) | _headers(there, page) | there.lifetime_headers
    headers |= {"content-type": there.content_type, STREAM_ID: str(there.stream.id)}
    return HeadersOnly([(name.lower().encode(), value.encode()) for name, value in headers.items()])


@ROUTES.route(
    "GET",
    ROUTE,
    "read",
    {
        200: Returns("A page of the stream.", {JSON: list[Any]}, (*_LIVE_HEADERS, _ETAG)),
        204: Returns("With `live=long-poll`: nothing came in time, or the stream is closed.", {}, _LIVE_HEADERS),
        304: Returns("The client has this page.", {}, (*_PAGE_HEADERS, _ETAG)),
    },
    refusals=_REFUSALS,
    query=(ReadStream,),
    parameters=(Parameter("If-None-Match", "header", "The `ETag` of a page that the client has.", {"type": "string"}),),
    others={
        "live=sse": {200: Returns("The stream as it comes.", {EVENTS: _SSE}, (AnswerHeader(ENCODING, "`base64`"),))},
        "a stream of text or bytes": {200: Returns("A page of the stream.", {"*/*": _BYTES})},
    },
)
@_stopping_at_gaps
async def read_stream(request: Request) -> AsgiResponse:
    """Read a stream after an offset: what is there, and with `live` what comes."""
    wanted = _wanted(request)
    there = await addressed(request)
    after = number_in(wanted.offset or BEGINNING, there.stream.id)
    pool = pool_of(request, there.stream.id)
    async with translated(pool):
        if there.external is not None:
            await external_streams.touch(pool, there.external)
        end = end_of(there, await event_log.read_tail(pool, there.stream.id)) if after is None else None
    if wanted.live is not None:
        begin = after if end is None else end.number
        assert begin is not None
        serve = _follow if wanted.live == "sse" else _long_poll
        return await serve(request, there, begin, parse_cursor(wanted.cursor))
    if after is None:
        assert end is not None
        return _answer(request, there, end)
    page = await read_page(request, there, after)
    etag = f'"{offset_after(there.stream.id, after)}-{page.number}{"-closed" * page.closed}"'
    if etag in _known_tags(request):
        headers = common_headers(request) | _headers(there, page) | {"etag": etag}
        return Response(status_code=304, headers=headers)
    return _answer(request, there, page, {"etag": etag})


def _wanted(request: Request) -> ReadStream:
    known = ReadStream.model_fields
    wanted = validated(ReadStream, {name: value for name, value in query_of(request, known).items() if name in known})
    if wanted.live is not None and wanted.offset is None:
        raise InvalidRequest(
            f"live={wanted.live} needs an offset. offset=-1 is the beginning, offset=now the end so far."
        )
    return wanted


async def _follow(request: Request, there: Addressed, after: int, cursor: int | None) -> AsgiResponse:
    stream_id = there.stream.id
    subscriber = await subscribe(request, stream_id, after)
    with contextlib.ExitStack() as unless_followed:
        unless_followed.callback(shard_of(request, there.stream.id).relays.unsubscribe, subscriber)
        relay = subscriber.relay
        reader = DurableReader(DIALECTS[there.kind], prefix_of(stream_id), after, cursor, lambda: relay.tail)
        # A client that has all there is learns that at once.
        opening = b"" if relay.tail > after else reader.control(after, closed=relay.ended)
        unless_followed.pop_all()
    if after:
        count_resume(request, subscriber)
    headers = {ENCODING.lower(): "base64"} if there.kind == "bytes" else {}
    return event_stream(request, subscriber, reader, opening=opening, headers=headers)


async def _long_poll(request: Request, there: Addressed, after: int, cursor: int | None) -> AsgiResponse:
    pod = pod_of(request)
    subscriber = await subscribe(request, there.stream.id, after)
    try:
        await wait_for_events(request, subscriber, pod.settings.long_poll_seconds)
        batches = await subscriber.take()
        relay = subscriber.relay
        if relay.damaged:
            raise damaged(there.stream.id)
        up_to_date, closed = subscriber.cursor >= relay.tail, subscriber.finished
    finally:
        shard_of(request, there.stream.id).relays.unsubscribe(subscriber)
    page = page_of(there, batches, after, up_to_date=up_to_date, closed=closed)
    more = {CURSOR: str(cursor_after(cursor))}
    if page.content:
        return _answer(request, there, page, more)
    return Response(status_code=204, headers=common_headers(request) | _headers(there, page) | more)


def _answer(request: Request, there: Addressed, page: Page, more: dict[str, str] | None = None) -> AsgiResponse:
    headers = common_headers(request) | _headers(there, page) | (more or {})
    # Starlette would add a charset to a text's media type.
    headers["content-type"] = there.content_type
    return Response(content_of(there.kind, page.content), 200, headers)


def _headers(there: Addressed, page: Page) -> dict[str, str]:
    headers = {NEXT_OFFSET: offset_after(there.stream.id, page.number)}
    if page.up_to_date:
        headers[UP_TO_DATE] = "true"
    if page.closed:
        headers[CLOSED] = "true"
    return headers


def _known_tags(request: Request) -> set[str]:
    given = header_of(request, "If-None-Match") or ""
    return {tag.strip().removeprefix("W/") for tag in given.split(",")}
