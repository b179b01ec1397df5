"""Requests that a producer holds, and that show that it lives: those for the end and for the inputs of its stream."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from ..db import external_streams
from ..db.streams import Stream
from .request import pod_of, pool_of, principal_of

# How often a held request counts as a sign of life, unless the pod's timeout is shorter than a few of these.
SIGN_OF_LIFE_SECONDS: Final = 3.0


async def note(request: Request, stream: Stream) -> None:
    """Note that the producer of a stream lives, if the caller may be it."""
    if _is_producer(request, stream):
        await external_streams.hear(pool_of(request, stream.id), stream.id)


def interval_seconds(request: Request, stream: Stream) -> float | None:
    """Return how often to note a sign of life while the caller holds a request; None if it is no producer."""
    if not _is_producer(request, stream):
        return None
    return min(SIGN_OF_LIFE_SECONDS, pod_of(request).settings.idle_timeout_seconds / 3)


def _is_producer(request: Request, stream: Stream) -> bool:
    return stream.status == "open" and "produce" in principal_of(request).scopes
