"""The rest of a response, outside of the application's middleware."""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

from baton.pod.outside_middleware import OutsideMiddleware, continue_outside


class Steps:
    """An application of one layer, whose response has a rest; it keeps the order in which they run."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await continue_outside(scope, receive, send, self.end)
        self.done.append("layer")

    async def end(self, receive: Receive, send: Send) -> None:
        self.done.append("rest")


async def receive() -> Any:
    raise AssertionError


async def send(message: object) -> None:
    raise AssertionError


async def test_the_rest_runs_when_the_middleware_has_returned() -> None:
    steps = Steps()
    await OutsideMiddleware(steps)({"type": "http"}, receive, send)
    assert steps.done == ["layer", "rest"]


async def test_without_the_wrapper_the_rest_runs_at_once() -> None:
    steps = Steps()
    await steps({"type": "http"}, receive, send)
    assert steps.done == ["rest", "layer"]


async def test_the_scope_does_not_keep_the_rest() -> None:
    scope: Scope = {"type": "http"}
    await OutsideMiddleware(Steps())(scope, receive, send)
    assert not any(kept for name, kept in scope.items() if name != "type")
