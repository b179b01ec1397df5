"""The ASGI application of a pod."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.types import ASGIApp

from . import api
from .api import problems
from .api.cross_origin import CrossOrigin
from .observability.request_ids import RequestIds
from .pod.departure import Departure
from .pod.epilogue import Epilogues
from .pod.pod import Pod
from .settings import Settings


class Application(Starlette):
    """Starlette's, with what has to stand around all else: also around what answers unexpected errors."""

    def __init__(self, settings: Settings, *, on_signals: bool) -> None:
        routes = [*api.ROUTES, *(api.DEMO_ROUTES if settings.demo else ())]
        super().__init__(routes=routes, exception_handlers=problems.HANDLERS, lifespan=_lifespan)
        self.router.redirect_slashes = False
        self.settings = settings
        self.on_signals = on_signals
        self.departure: Departure | None = None  # while the app runs

    def leave(self) -> None:
        """Begin to send all clients away to other pods, over `BATON_DRAIN_SECONDS`, and return at once.

        For an application that learns of its process's end in another way than by a signal. Any thread, and any signal
        handler, may call it. Outside of the app's lifespan, and when called again, it does nothing.
        """
        if self.departure is not None:
            self.departure.leave()

    async def drain(self) -> None:
        """As `leave`, and return when all have been sent away."""
        if self.departure is not None:
            await self.departure.drain()

    def build_middleware_stack(self) -> ASGIApp:
        """Nothing here wraps bodies. What goes on outside of the layers is still to have the request's id."""
        inner = super().build_middleware_stack()
        if origins := self.settings.allowed_origins:
            inner = CrossOrigin(inner, origins, self.settings.allowed_headers)
        # A layer that somebody has added may wrap bodies, or fail after its route.
        return RequestIds(inner if self.user_middleware else Epilogues(inner))


def create_app(settings: Settings | None = None, *, on_signals: bool = True) -> Application:
    """Make a pod's application; its lifespan opens and closes the pod.

    It can be mounted in another Starlette or FastAPI application, whose lifespan must then enter this one's:

        baton_app = create_app()

        @asynccontextmanager
        async def lifespan(app):
            async with baton_app.router.lifespan_context(baton_app):
                yield

    On SIGTERM and SIGINT it sends its clients away before the server hears of it (see `departure`), or, where
    `on_signals` is false, when `leave` or `drain` of the app is called.

    Raises:
        ConfigurationError: a setting is out of range.
    """
    return Application(settings or Settings.load(), on_signals=on_signals)


@contextlib.asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    async with Pod.open(app.settings) as pod:
        app.state.pod = pod
        app.departure = departure = Departure(pod.drain, app.settings.drain_seconds, on_signals=app.on_signals)
        pod.before_joining = departure.hear
        try:
            yield
        finally:
            app.departure = None
            await departure.close()
            app.state.pod = None
