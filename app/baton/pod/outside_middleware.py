"""Runs the rest of a response, once its header is sent, after all middleware has returned.

Each layer of middleware between the server and a route holds a few frames for as long as the response lasts
(docs/decisions/0018). A layer must not fail after its route has returned: the rest of the response would be lost, and
with it the subscriber's place that it holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

Rest = Callable[[Receive, Send], Awaitable[None]]

_KEY: Final = "baton.rest"


class OutsideMiddleware:
    """Wraps an application with its middleware, and runs the rest of its responses once the middleware returns."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        left: list[Rest] = []
        scope[_KEY] = left
        await self._app(scope, receive, send)
        while left:
            # The scope outlives the response, so it must not keep the response's objects alive.
            await left.pop()(receive, send)


async def continue_outside(scope: Scope, receive: Receive, send: Send, rest: Rest) -> None:
    """Run the rest of a response when all middleware has returned, or immediately without `OutsideMiddleware`.

    It gets the `receive` and `send` of `OutsideMiddleware`: the middleware sees nothing more of the response.
    """
    left: list[Rest] | None = scope.get(_KEY)
    if left is None:
        await rest(receive, send)
    else:
        left.append(rest)
