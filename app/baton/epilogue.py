"""The part of a response that needs nothing of the application around it: it goes on when all layers have returned.

Each layer between the server and a route holds a few frames for as long as the response lasts. Those were a third of
the memory of a client that waits (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

Rest = Callable[[Receive, Send], Awaitable[None]]

_KEY: Final = "baton.epilogue"


class Epilogues:
    """Stands around the layers, and goes on with what a response has left until they are gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        rests: list[Rest] = []
        scope[_KEY] = rests
        await self._app(scope, receive, send)
        for rest in rests:
            await rest(receive, send)


async def go_on_outside(scope: Scope, receive: Receive, send: Send, rest: Rest) -> None:
    """Do the rest of a response, which has begun: when all layers have returned, or here if nobody stands around them.

    It is given the server's own `receive` and `send` there, of which the layers know nothing more.
    """
    rests: list[Rest] | None = scope.get(_KEY)
    if rests is None:
        await rest(receive, send)
    else:
        rests.append(rest)
