"""The id of a request: in its response, and in every log record that belongs to it (see `log_context`).

It is in a context variable, which the tasks that a request starts inherit. A task that serves many requests starts in a
context of its own, so that it does not keep the id of the first.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from . import traceparent

if TYPE_CHECKING:
    # Workers, which serve no requests, load this module and not Starlette.
    from starlette.types import ASGIApp, Receive, Scope, Send

HEADER: Final = "x-request-id"

_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_current: Final[ContextVar[str | None]] = ContextVar("baton_request_id", default=None)


def current() -> str | None:
    """Return the id of the current request."""
    return _current.get()


def accepted(given: str | None) -> str:
    """Return the client's id if it is valid, else a new one."""
    return given if given and _ACCEPTED.fullmatch(given) else uuid.uuid4().hex


@contextlib.contextmanager
def new() -> Iterator[None]:
    """Set a new id for responses that the server sends before there is a request."""
    token = _current.set(accepted(None))
    try:
        yield
    finally:
        _current.reset(token)


class RequestIds:
    """Gives every request of an application an id: the client's `X-Request-Id` if it is valid, else a new one.

    The request belongs to the trace of the client's `traceparent`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = _current.set(accepted(next(iter(_values(scope, HEADER)), None)))
        parent = traceparent.enter(traceparent.given(_values(scope, traceparent.HEADER)))
        await self._app(scope, receive, send)
        # After an exception both stay: the server logs it in the same task.
        traceparent.leave(parent)
        _current.reset(token)


def _values(scope: Scope, name: str) -> list[str]:
    """Return the values of a header. ASGI's names are in lower case."""
    key = name.encode()
    return [value.decode("latin-1") for found, value in scope["headers"] if found == key]
