"""The native routes of a stream's inputs: sending one, and reading them.

Generators read the inputs of their streams with `await request.receive()`. The route that reads them is for the
producers of external streams, and for callers that may read the whole stream.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from starlette.requests import Request
from typing_extensions import TypedDict

from ..db import inputs
from ..db.inputs import Input
from ..db.streams import Stream
from ..errors import (
    BodyTimeout,
    IdempotencyConflict,
    InboxFull,
    InvalidRequest,
    LogDamaged,
    MessageTooLarge,
    PodFull,
    RequestMemoryFull,
    RequestTooLarge,
    StreamEnded,
    TooManySubscribers,
)
from ..events import Status
from . import input_sending, signs_of_life
from .following import awaiting_inputs
from .models import ReadInputs, SendInput
from .native_events import PATH
from .parameters import IDEMPOTENCY_KEY
from .refusals import STREAM
from .request import (
    AsgiResponse,
    found,
    idempotency_key,
    in_time,
    json_answer,
    parse_stream_id,
    pool_of,
    query_of,
)
from .request_body import parse_json, read_body
from .routing import JSON, Returns, Routes
from .validation import JsonValue, validated

# How often a held request reads the inputs without a notification.
POLL_SECONDS: Final = 3.0

ROUTES: Final = Routes("streams", path=PATH)


class SentInput(TypedDict):
    """The number of an input: 1 for the first one of a stream."""

    number: int


class InputContent(TypedDict):
    """An input: its number, any JSON but null, and when it was sent."""

    number: int
    data: JsonValue
    created_at: datetime


class InputPage(TypedDict):
    """Inputs in their order, 100 at most, and the stream's status. The inputs of a stream are deleted at its end."""

    data: list[InputContent]
    status: Status


class _Found(NamedTuple):
    """A stream and its next inputs."""

    stream: Stream
    page: list[Input]

    @property
    def is_news(self) -> bool:
        """Whether there is nothing to wait for."""
        return bool(self.page) or self.stream.ended


@ROUTES.route(
    "POST",
    "/v1/streams/{id}/inputs",
    "input",
    {
        200: Returns("An earlier request with this `Idempotency-Key` has added it.", {JSON: SentInput}),
        201: Returns("It was added.", {JSON: SentInput}),
    },
    refusals=(
        *STREAM,
        InvalidRequest,
        BodyTimeout,
        RequestTooLarge,
        RequestMemoryFull,
        MessageTooLarge,
        IdempotencyConflict,
        StreamEnded,
        InboxFull,
    ),
    body=SendInput,
    parameters=(IDEMPOTENCY_KEY,),
    narrow=True,
)
async def send_input(request: Request) -> AsgiResponse:
    """Send an input to a stream that has not ended: to its generator, or to the producer of an external stream.

    A stream that is waiting is queued again. The inputs of a stream are numbered in the order of their commits. Repeat
    a request whose response was lost with the same `Idempotency-Key`: it adds the input once.
    """
    stream_id = parse_stream_id(request.path_params["id"])
    body = await read_body(request)
    data = validated(SendInput, parse_json(body)).data
    key = idempotency_key(request, body)
    number, added = await input_sending.send(request, stream_id, data, None if key is None else key.key)
    content: SentInput = {"number": number}
    return json_answer(request, content, status=201 if added else 200)


@ROUTES.route(
    "GET",
    "/v1/streams/{id}/inputs",
    "read",
    {200: Returns("The inputs after that number, 100 at most; none if none came in time.", {JSON: InputPage})},
    refusals=(*STREAM, LogDamaged, InvalidRequest, TooManySubscribers, PodFull),
    query=(ReadInputs,),
    or_scope="produce",
)
async def get_inputs(request: Request) -> AsgiResponse:
    """Return the inputs after a number. With `?wait=20`, wait up to 20 seconds for the next one, or the stream's end.

    A producer of an external stream is steered by these. While a caller with the scope `produce` holds this request,
    the producer counts as alive. This caller is no viewer.
    """
    options = validated(ReadInputs, query_of(request))
    stream, page = await _awaited(request, parse_stream_id(request.path_params["id"]), options)
    content: InputPage = {
        "data": [{"number": item.n, "data": item.data, "created_at": item.created_at} for item in page],
        "status": stream.status,
    }
    return json_answer(request, content)


async def _awaited(request: Request, stream_id: UUID, options: ReadInputs) -> _Found:
    """Wait for inputs or the stream's end, but no longer than this, or its client or the pod leaves."""
    clock = asyncio.get_running_loop()
    due_at = clock.time() + options.wait
    there = await _read(request, stream_id, options.after)
    if there.is_news or options.wait <= 0:
        return there
    async with awaiting_inputs(request, stream_id) as wait:
        while True:
            # An input may have come before its notification could be heard.
            there = await _read(request, stream_id, options.after)
            left_seconds = due_at - clock.time()
            if there.is_news or left_seconds <= 0:
                return there
            interval_seconds = min(POLL_SECONDS, signs_of_life.interval_seconds(request, there.stream) or POLL_SECONDS)
            if not await wait(min(left_seconds, interval_seconds)):
                return await _read(request, stream_id, options.after)


async def _read(request: Request, stream_id: UUID, after: int) -> _Found:
    async with in_time(request):
        stream = await found(request, stream_id)
        await signs_of_life.note(request, stream)
        # An input that came as the stream ended may still be there.
        page = [] if stream.ended else await inputs.read(pool_of(request, stream_id), stream_id, after)
        return _Found(stream, page)
