"""The ASGI application of a pod."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.types import ASGIApp

from . import api, problems
from .cross_origin import CrossOrigin
from .epilogue import Epilogues
from .pod import Pod
from .request_ids import RequestIds
from .settings import Settings


class Application(Starlette):
    """Starlette's, with what has to stand around all else: also around what answers unexpected errors."""

    def __init__(self, settings: Settings) -> None:
        routes = [*api.ROUTES, *(api.DEMO_ROUTES if settings.demo else ())]
        super().__init__(routes=routes, exception_handlers=problems.HANDLERS, lifespan=_lifespan)
        self.router.redirect_slashes = False
        self.settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        """Nothing here wraps bodies. What goes on outside of the layers is still to have the request's id."""
        inner = super().build_middleware_stack()
        if origins := self.settings.allowed_origins:
            inner = CrossOrigin(inner, origins, self.settings.allowed_headers)
        # A layer that somebody has added may wrap bodies, or fail after its route.
        return RequestIds(inner if self.user_middleware else Epilogues(inner))


def create_app(settings: Settings | None = None) -> Application:
    """Make a pod's application; its lifespan opens and closes the pod.

    It can be mounted in another Starlette or FastAPI application, whose lifespan must then enter this one's:

        baton_app = create_app()

        @asynccontextmanager
        async def lifespan(app):
            async with baton_app.router.lifespan_context(baton_app):
                yield

    Raises:
        ConfigurationError: a setting is out of range.
    """
    return Application(settings or Settings.load())


@contextlib.asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    async with Pod.open(app.settings) as pod:
        app.state.pod = pod
        try:
            yield
        finally:
            app.state.pod = None
