"""The native routes of streams: create, list, read, cancel, erase, sign a token. Their events: `native_events`."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from ..auth import credentials
from ..auth.tokens import Wish, granted
from ..db import stream_lists
from ..db.external_streams import NewExternal
from ..db.stream_lists import StreamFilter
from ..db.streams import Stream
from ..errors import (
    InvalidRequest,
    MalformedCursor,
    NotHere,
    OlderCodeRunning,
    PassingError,
    RequestMemoryFull,
    RequestTooLarge,
    UnknownGenerator,
)
from ..snapshot import Snapshot
from . import across_databases, actions, content_types, external_creation, native_events, problems
from .event_types import Event
from .following import require_followable, require_staying, wait_for_end
from .models import (
    CreateExternal,
    CreateStream,
    FindStreams,
    FollowEvents,
    GetStream,
    TokenOptions,
    metadata_alternatives,
    take_filters,
)
from .native_events import LAST_EVENT_ID, PATH, QUERY_CURSOR
from .parameters import IDEMPOTENCY_KEY
from .refusals import CREATING, JOINING, READING, STREAM, WHOLE
from .request import (
    AsgiResponse,
    accepted_of,
    charge_rows,
    common_headers,
    found,
    idempotency_key,
    in_time,
    json_answer,
    parse_stream_id,
    pod_of,
    principal_of,
    query_of,
)
from .request_body import parse_json, read_body
from .routing import EVENTS, JSON, TEXT, AnswerHeader, Parameter, Returns, Routes
from .stream_content import (
    CreatedExternal,
    CreatedStream,
    ProducerContent,
    StreamAnswer,
    StreamContent,
    StreamPage,
    StreamWithAnswer,
    TokenContent,
    describe,
    describe_with_answer,
    seen,
)
from .validation import validated

_LOCATION: Final = AnswerHeader("location", "The path of the stream.")
# For a stream that is created and followed in one request.
_TOKEN: Final = AnswerHeader("x-baton-token", "A token of the stream, if the pod has a key to sign one with.")
_CREATED: Final = (_LOCATION, _TOKEN)
# The token of a producer: it appends to one stream, and cannot read it.
_PRODUCING: Final = Wish(frozenset({"produce"}))

# Most clients write any object like this, whatever `style` says.
_METADATA: Final = Parameter(
    "metadata",
    "query",
    "Only streams with these metadata: `metadata[chat]=42`, or `metadata.chat=42`. At most 4.",
    {
        "type": "object",
        "propertyNames": {"pattern": r"^[^\x00]*$"},
        "additionalProperties": {"anyOf": [{"type": "string", "pattern": r"^[^\x00]*$"}, {"type": "number"}]},
        "maxProperties": 4,
    },
    {"style": "deepObject", "explode": True},
)

ROUTES: Final = Routes("streams", path=PATH)


@ROUTES.route(
    "POST",
    "/v1/streams",
    "create",
    {
        200: Returns(
            "The stream that this `Idempotency-Key` created before.", {JSON: CreatedExternal | CreatedStream}, _CREATED
        ),
        201: Returns("The new stream.", {JSON: CreatedExternal | CreatedStream}, _CREATED),
    },
    refusals=(*CREATING, *JOINING, MalformedCursor, UnknownGenerator, OlderCodeRunning),
    body=CreateStream | CreateExternal,
    query=(FollowEvents,),
    parameters=(IDEMPOTENCY_KEY, LAST_EVENT_ID, QUERY_CURSOR),
    others={
        native_events.ACCEPT_EVENTS: {
            200: Returns(f"The stream's events. {native_events.DATA}", {EVENTS: Event}, _CREATED),
            204: Returns("The client has all events of the stream that its `Idempotency-Key` created before."),
        },
        native_events.ACCEPT_TEXT: {
            200: Returns("The stream's text.", {TEXT: native_events.PLAIN}, _CREATED),
        },
    },
)
async def create_stream(request: Request) -> AsgiResponse:
    """Queue a stream; with `Accept: text/event-stream` or `text/plain`, follow it in the same round trip.

    Some clients reconnect by repeating this request. Such a client continues after its last event id, if its
    `Idempotency-Key` shows that it is the same stream.

    With the generator `external`, open a stream that a producer writes. This needs the scope `produce` too. The answer
    has the address to append to, and a token for that stream.
    """
    body = await read_body(request)
    content = parse_json(body)
    if CreateExternal.is_meant(content):
        return await _create_external(request, validated(CreateExternal, content), body)
    creation = validated(CreateStream, content)
    events = native_events.wanted_of(request)
    plain, followed = native_events.wants_text(request), EVENTS in accepted_of(request)
    if plain:
        require_followable(request)
    elif followed:
        try:
            # Create nothing that this pod has no room to send.
            require_staying(request)
        except PassingError as error:
            return native_events.later(request, error)
    # Plain text cannot say that the answer restarts.
    new = actions.new_stream(request, creation, can_reset=not plain)
    cursor = native_events.cursor_of(request)
    # Before anything is created for a caller that asks for more than it may do.
    granted(principal_of(request), creation.token.wish())
    stream, created = await actions.create(request, new, body)
    headers = {_LOCATION.name: problems.address(request, "stream", id=stream.id)}
    token, _ = actions.token(request, stream, creation.token.wish())
    if token is not None:
        headers[_TOKEN.name] = token
    if plain:
        return await native_events.follow_text(request, stream.id, headers)
    if followed:
        return await native_events.follow(request, stream.id, events, cursor=0 if created else cursor, headers=headers)
    described: CreatedStream = {**_described(request, stream), "token": token}
    return json_answer(request, described, status=201 if created else 200, headers=headers)


@ROUTES.route(
    "GET",
    "/v1/streams",
    "read",
    {
        200: Returns(
            "The newest streams, or those before one. A page may be short or empty while `next` says where to "
            "continue: one request reads at most 2,000 streams.",
            {JSON: StreamPage},
        )
    },
    refusals=(*READING, InvalidRequest),
    query=(FindStreams,),
    parameters=(_METADATA,),
    name="streams",
)
async def find_streams(request: Request) -> AsgiResponse:
    """List streams, newest first. Follow `next` until it is null: earlier pages may be short, or empty."""
    query = query_of(request)
    metadata = take_filters(query)
    options = validated(FindStreams, query)
    principal = principal_of(request)
    principal.require_tenant()
    selection = StreamFilter(
        principal.tenant,
        last=stream_lists.LAST if options.before is None else stream_lists.below(options.before),
        statuses=None if options.status is None else [options.status],
        metadata=metadata_alternatives(metadata),
    )
    page = await across_databases.find(pod_of(request).shards.all_open(), selection, options.limit)
    charge_rows(request, page.scanned)
    following = None
    if page.before is not None:
        left_out = {"before", credentials.QUERY}
        onward = [(name, value) for name, value in request.query_params.multi_items() if name not in left_out]
        following = f"{problems.address(request, 'streams')}?{urlencode([*onward, ('before', str(page.before))])}"
    content: StreamPage = {"data": [_described(request, stream) for stream in page.streams], "next": following}
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/v1/streams/{id}",
    "read",
    {200: Returns("The stream, and its answer so far.", {JSON: StreamWithAnswer | StreamAnswer})},
    refusals=(*WHOLE, InvalidRequest),
    query=(GetStream,),
    narrow=True,
    name="stream",
)
async def get_stream(request: Request) -> AsgiResponse:
    """Return a stream's state and its answer so far. With `?wait=20`, wait up to 20 seconds for its end."""
    options = validated(GetStream, query_of(request))
    stream_id = parse_stream_id(request.path_params["id"])
    if options.wait > 0:
        await wait_for_end(request, stream_id, options.wait)
    content = await actions.read(request, stream_id, or_none=True)
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines, content.last_seq)
    described = describe_with_answer(_described(request, content.stream), snapshot)
    return json_answer(request, seen(described, principal_of(request).view))


@ROUTES.route("DELETE", "/v1/streams/{id}", "admin", {204: Returns("It was erased.")}, refusals=STREAM)
async def delete_stream(request: Request) -> AsgiResponse:
    """Erase a stream and its events; if it is running, its generator is stopped."""
    await actions.erase(request, parse_stream_id(request.path_params["id"]))
    return Response(status_code=204, headers=common_headers(request))


@ROUTES.route(
    "POST",
    "/v1/streams/{id}/cancel",
    "cancel",
    {
        200: Returns("It has ended.", {JSON: StreamContent | StreamAnswer}),
        202: Returns("Its generator was asked to stop.", {JSON: StreamContent | StreamAnswer}),
    },
    refusals=STREAM,
    narrow=True,
)
async def cancel_stream(request: Request) -> AsgiResponse:
    """Ask the generator to stop. Doing it again, or after the end, changes nothing."""
    stream, stopping = await actions.cancel(request, parse_stream_id(request.path_params["id"]))
    described = seen(_described(request, stream), principal_of(request).view)
    return json_answer(request, described, status=202 if stopping else 200)


@ROUTES.route(
    "POST",
    "/v1/streams/{id}/token",
    "read",
    {201: Returns("A token that allows what the caller may do, or less.", {JSON: TokenContent})},
    refusals=(*STREAM, InvalidRequest, RequestTooLarge, RequestMemoryFull, NotHere),
    body=TokenOptions,
    body_required=False,
    narrow=True,
)
async def make_token(request: Request) -> AsgiResponse:
    """Sign another token of a stream, which allows no more than the caller may do."""
    body = await read_body(request)
    wish = validated(TokenOptions, parse_json(body) if body else {}).wish()
    stream_id = parse_stream_id(request.path_params["id"])
    async with in_time(request):
        stream = await found(request, stream_id)
    token, expires_at = actions.token(request, stream, wish)
    if token is None:
        raise NotHere(
            "No token can be issued for this stream: tokens are not in use here, or it ended too long ago.",
            operator="access is anonymous, BATON_TOKEN_KEYS is not set, or the stream ended more than "
            "BATON_TOKEN_GRACE_SECONDS ago",
        )
    content: TokenContent = {"token": token, "expires_at": expires_at}
    return json_answer(request, content, status=201)


async def _create_external(request: Request, wanted: CreateExternal, body: bytes) -> AsgiResponse:
    """Open a stream of events for a producer."""
    principal = principal_of(request)
    principal.require("produce")
    if native_events.wants_text(request) or EVENTS in accepted_of(request):
        raise InvalidRequest("An external stream is created with `Accept: application/json`, and followed afterwards.")
    wish = wanted.token.wish()
    granted(principal, wish)
    creation = wanted.as_stream()
    actions.require_input_size(request, creation.input)
    limits = actions.limits_of(pod_of(request), creation)
    new = external_creation.new_stream(request, limits, creation.input, creation.metadata, creation.webhook)
    stream, _, created = await external_creation.create(
        request, NewExternal(new, "events", content_types.EVENTS), idempotency_key(request, body)
    )
    token, _ = actions.token(request, stream, wish)
    writing, _ = actions.token(request, stream, _PRODUCING)
    location = problems.address(request, "stream", id=stream.id)
    headers = {_LOCATION.name: location} | ({} if token is None else {_TOKEN.name: token})
    producer: ProducerContent = {"url": _producer_url(request, stream), "token": writing}
    described: CreatedExternal = {**_described(request, stream), "token": token, "producer": producer}
    return json_answer(request, described, status=201 if created else 200, headers=headers)


def _producer_url(request: Request, stream: Stream) -> str:
    """Return the path below which the Durable Streams protocol finds a stream by its id."""
    return problems.address(request, "durable", path=stream.id)


def _described(request: Request, stream: Stream) -> StreamContent:
    return describe(stream, problems.address(request, "events", id=stream.id))
