"""The ASGI application of a pod."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from . import api, problems
from .pod import Pod
from .settings import Settings


def create_app(settings: Settings | None = None) -> Starlette:
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
    known = settings or Settings.load()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Pod.open(known) as pod:
            app.state.pod = pod
            try:
                yield
            finally:
                app.state.pod = None

    app = Starlette(routes=api.ROUTES, exception_handlers=problems.HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app
