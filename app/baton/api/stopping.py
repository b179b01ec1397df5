"""Stopping an answer, for pages that know chats and runs, and no streams."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..db.streams import Stream
from ..events import Status
from . import actions
from .request import AsgiResponse, common_headers, json_answer
from .routing import JSON, Returns


class Stopped(TypedDict):
    """A stream that was asked to stop."""

    id: str
    status: Status


ANSWERS: Final = {
    200: Returns("It has ended.", {JSON: Stopped}),
    202: Returns("Its generator was asked to stop.", {JSON: Stopped}),
    204: Returns("There is nothing to stop."),
}


async def stop(request: Request, stream: Stream | None) -> AsgiResponse:
    """Ask the generator of a stream to stop, unless there is none or it has ended; answer one of `ANSWERS`."""
    if stream is None or stream.ended:
        return Response(status_code=204, headers=common_headers(request))
    stream, stopping = await actions.cancel(request, stream.id)
    content: Stopped = {"id": str(stream.id), "status": stream.status}
    return json_answer(request, content, status=202 if stopping else 200)
