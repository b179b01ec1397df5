"""The native route that waits for a stream's end. A producer can hold it, to learn that it is to stop."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from ..db.streams import Stream
from ..errors import InvalidRequest, PodFull, TooManySubscribers
from . import signs_of_life
from .following import wait_for_end
from .models import GetStream
from .native_events import PATH
from .refusals import WHOLE
from .request import AsgiResponse, common_headers, found, in_time, json_answer, parse_stream_id, query_of
from .routing import JSON, Returns, Routes
from .stream_content import StreamEnd, describe_end
from .validation import validated

ROUTES: Final = Routes("streams", path=PATH)


@ROUTES.route(
    "GET",
    "/v1/streams/{id}/end",
    "read",
    {
        200: Returns("It has ended.", {JSON: StreamEnd}),
        204: Returns("It has not ended yet. Ask again."),
    },
    refusals=(*WHOLE, InvalidRequest, TooManySubscribers, PodFull),
    query=(GetStream,),
    or_scope="produce",
    narrow=True,
)
async def get_end(request: Request) -> AsgiResponse:
    """Return how a stream ended. With `?wait=20`, wait up to 20 seconds for its end.

    A producer of an external stream learns here that it is to stop: the stream was cancelled, or a limit ended it.
    While a caller with the scope `produce` holds this request, the producer counts as alive. This caller is no viewer.
    """
    options = validated(GetStream, query_of(request))
    stream = await _awaited(request, parse_stream_id(request.path_params["id"]), options.wait)
    if not stream.ended:
        return Response(status_code=204, headers=common_headers(request))
    return json_answer(request, describe_end(stream))


async def _awaited(request: Request, stream_id: UUID, seconds: float) -> Stream:
    """Wait until a stream ends, but no longer than this, or its client or the pod leaves; return its row."""
    clock = asyncio.get_running_loop()
    due_at = clock.time() + seconds
    while True:
        async with in_time(request):
            stream = await found(request, stream_id)
            await signs_of_life.note(request, stream)
        left_seconds = due_at - clock.time()
        if stream.ended or left_seconds <= 0:
            return stream
        interval_seconds = signs_of_life.interval_seconds(request, stream)
        if interval_seconds is not None:
            left_seconds = min(left_seconds, interval_seconds)
        waited = await wait_for_end(request, stream_id, left_seconds, views=False)
        if waited in {"client left", "pod left"}:
            return stream
