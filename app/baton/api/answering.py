"""Answering the request that created a stream: with its events, or with the whole answer at its end.

This is for APIs whose clients cannot return to an answer. So a stream that was created here is cancelled when its
client leaves, but not when the pod leaves, and not if the client can return, by the same request with the same
`Idempotency-Key`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
from starlette.requests import Request

from ..db.streams import Stream
from ..dialects.protocol import Dialect, Encoded
from ..errors import PassingError, RequestError
from . import actions, opening
from .actions import Content
from .following import wait_for_end
from .opening import Opening
from .request import AsgiResponse

logger = logging.getLogger(__name__)

# Returns the error for a stream that continues, but cannot be followed just now.
Unfollowable: TypeAlias = Callable[[Stream], RequestError]


def can_return(request: Request) -> bool:
    """Whether a repeated request gets the same stream."""
    return "idempotency-key" in request.headers


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How an API answers: followed in a dialect, or as a `whole`, for a stream that has ended.

    `unfollowable` makes the error for a stream that cannot be followed just now. `headers` are further ones.
    """

    dialect: Dialect[Any]
    whole: Callable[[Request, Content], Awaitable[AsgiResponse]]
    unfollowable: Unfollowable
    headers: Mapping[str, str] = field(default_factory=dict)


async def follow_or_wait(
    request: Request, stream: Stream, begun: Encoded[Any] | None, form: AnswerForm
) -> AsgiResponse:
    """Follow a stream that this request created; if `begun` is None, wait for its end and answer with the whole.

    Raises:
        RequestError: it cannot be followed just now.
    """
    cancel = None if can_return(request) else cancelling(request, stream.id)
    if begun is not None:
        begin = Opening(dialect=form.dialect, begun=begun, on_gone=cancel, headers=form.headers)
        return await follow_created(request, stream, begin, form.unfollowable)
    try:
        if await wait_for_end(request, stream.id) == "client left" and cancel is not None:
            await cancel()
        content = await actions.read(request, stream.id)
        if not content.stream.ended:
            raise form.unfollowable(content.stream)
        return await form.whole(request, content)
    except PassingError as error:
        # Clients retry by status, and would create another one.
        raise form.unfollowable(stream) from error


async def follow_created(
    request: Request, stream: Stream, begin: Opening[Any], unfollowable: Unfollowable
) -> AsgiResponse:
    """Follow the stream that this request created.

    Raises:
        RequestError: it cannot be followed just now; the error is made by `unfollowable`.
    """

    def refuse(error: PassingError) -> AsgiResponse:
        raise unfollowable(stream) from error

    return await opening.follow(request, stream.id, replace(begin, on_passing=refuse))


def cancelling(request: Request, stream_id: UUID) -> Callable[[], Awaitable[None]]:
    """Return what cancels a stream when its client has left. Nobody is there to get an error: it is logged."""

    async def cancel() -> None:
        try:
            await actions.cancel(request, stream_id)
        except (RequestError, asyncpg.PostgresError) as error:
            logger.warning("The client of stream %s has left, but the stream cannot be cancelled: %r", stream_id, error)

    return cancel
