"""The ASGI application of a pod."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp

from . import api
from .api import problems
from .api.cross_origin import CrossOrigin
from .errors import ConfigurationError
from .observability.request_ids import RequestIds
from .pod.mounted_shutdown import MountedShutdown
from .pod.outside_middleware import OutsideMiddleware
from .pod.pod import Pod
from .principal import Caller
from .settings import Settings


class Application(Starlette):
    """A Starlette application, with layers outside of Starlette's own middleware and its handler of errors."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_signals: bool,
        authenticate: Callable[[Request], Awaitable[Caller | None]] | None = None,
        with_worker: bool = False,
    ) -> None:
        routes = [*api.ROUTES, *(api.DEMO_ROUTES if settings.demo else ())]
        super().__init__(routes=routes, exception_handlers=problems.HANDLERS, lifespan=_lifespan)
        self.router.redirect_slashes = False
        self.settings = settings
        self.on_signals = on_signals
        self.authenticate = authenticate
        self.with_worker = with_worker
        self.shutdown: MountedShutdown | None = None  # while the application runs

    def leave(self) -> None:
        """Begin to send all clients away to other pods, over `BATON_DRAIN_SECONDS`, and return at once.

        Call it if your process shuts down for a reason other than a signal. Any thread and any signal handler may call
        it. Outside of the application's lifespan, and when called again, it does nothing.
        """
        if self.shutdown is not None:
            self.shutdown.leave()

    async def drain(self) -> None:
        """Send all clients away as `leave` does, and return when that is done."""
        if self.shutdown is not None:
            await self.shutdown.drain()

    def build_middleware_stack(self) -> ASGIApp:
        """Add the outer layers. None wraps bodies. What runs outside of the middleware has the request's id, too."""
        inner = super().build_middleware_stack()
        if origins := self.settings.allowed_origins:
            inner = CrossOrigin(inner, origins, self.settings.allowed_headers)
        # Middleware that a user has added may wrap bodies, or fail after its route has returned.
        return RequestIds(inner if self.user_middleware else OutsideMiddleware(inner))


def create_app(
    settings: Settings | None = None,
    *,
    on_signals: bool = True,
    authenticate: Callable[[Request], Awaitable[Caller | None]] | None = None,
    with_worker: bool | None = None,
) -> Application:
    """Return a pod's ASGI application. Its lifespan opens and closes the pod.

    You can mount it in another Starlette or FastAPI application. Then that application's lifespan must enter this one:

        baton_app = create_app()

        @asynccontextmanager
        async def lifespan(app):
            async with baton_app.router.lifespan_context(baton_app):
                yield

    On SIGTERM and SIGINT it sends its clients away before the server gets the signal (see `pod.mounted_shutdown`). With
    `on_signals` false it does so only when `leave` or `drain` of the application is called.

    `authenticate` returns the caller of a request that carries no credential of Baton's, by your application's own
    session, or None. It is awaited for each such request, and may raise `starlette.exceptions.HTTPException`. It gets
    the headers, the cookies, and what your middleware has put into the request, and no body.

    With `with_worker` a worker runs in the same process, on the same event loop, with the generators of the settings:
    then your application is the whole deployment. The default is the setting `BATON_WITH_WORKER`.

    Raises:
        ConfigurationError: a setting is out of range, or everybody would be let in in spite of `authenticate`.
    """
    settings = settings or Settings.load()
    if authenticate is not None and settings.allow_anonymous:
        raise ConfigurationError(
            "create_app(authenticate=…) and BATON_ALLOW_ANONYMOUS=true exclude each other: anonymous access lets every "
            "caller in. Unset the variable."
        )
    with_worker = settings.with_worker if with_worker is None else with_worker
    return Application(settings, on_signals=on_signals, authenticate=authenticate, with_worker=with_worker)


@contextlib.asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    async with Pod.open(app.settings, authenticate=app.authenticate) as pod, _worker_beside(app, pod):
        app.state.pod = pod
        app.shutdown = shutdown = MountedShutdown(pod.drain, app.settings.drain_seconds, on_signals=app.on_signals)
        pod.before_joining = shutdown.install
        try:
            yield
        finally:
            app.shutdown = None
            await shutdown.close()
            app.state.pod = None


@contextlib.asynccontextmanager
async def _worker_beside(app: Application, pod: Pod) -> AsyncIterator[None]:
    """Run a worker in the pod's process, if the application wants one. It leaves before the pod is closed."""
    if not app.with_worker:
        yield
        return
    # Other pods need neither the worker nor the generators.
    from .embedded_worker import EmbeddedWorker

    async with EmbeddedWorker.open(app.settings) as pod.companion:
        yield
