"""The id of a request: in its answer, and in every log record that belongs to it (see `log_context`).

It travels in a context variable, which the tasks that a request starts inherit. A task that serves many requests is
started in a context of its own, so that it does not bear the id of the first.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from . import traceparent

HEADER: Final = "x-request-id"

_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_current: Final[ContextVar[str | None]] = ContextVar("baton_request_id", default=None)


def current() -> str | None:
    """Return the id of the request that is being answered."""
    return _current.get()


def accepted(given: str | None) -> str:
    """Return the id that a client gave, or a new one where it gave none or something else."""
    return given if given and _ACCEPTED.fullmatch(given) else uuid.uuid4().hex


@contextlib.contextmanager
def new() -> Iterator[None]:
    """Give an id to what is answered before it is a request."""
    token = _current.set(accepted(None))
    try:
        yield
    finally:
        _current.reset(token)


class RequestIds:
    """Gives every request of an application an id: the client's `X-Request-Id`, if it is a decent one.

    What is done for the request belongs to the trace that the client says it does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        token = _current.set(accepted(headers.get(HEADER)))
        parent = traceparent.enter(traceparent.given(headers.getlist(traceparent.HEADER)))
        await self._app(scope, receive, send)
        # After an exception they stay, since the server is about to log that in the same task.
        traceparent.leave(parent)
        _current.reset(token)
