"""The part of a response that needs nothing of the application around it: it goes on when all layers have returned.

Each layer between the server and a route holds a few frames for as long as the response lasts (docs/decisions/0018). A
layer must not fail after its route has returned: the epilogue would be lost, and with it the place that it holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

Epilogue = Callable[[Receive, Send], Awaitable[None]]

_KEY: Final = "baton.epilogues"


class Epilogues:
    """Stands around the layers, and does what a response left to do when they have returned."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        left: list[Epilogue] = []
        scope[_KEY] = left
        await self._app(scope, receive, send)
        while left:
            # The scope outlives the response, and is not to keep what that held.
            await left.pop()(receive, send)


async def after_layers(scope: Scope, receive: Receive, send: Send, epilogue: Epilogue) -> None:
    """Have the rest of a response, which has begun, done when all layers have returned; at once without `Epilogues`.

    It is given the `receive` and `send` that the layers were given: they see nothing more of it.
    """
    left: list[Epilogue] | None = scope.get(_KEY)
    if left is None:
        await epilogue(receive, send)
    else:
        left.append(epilogue)
