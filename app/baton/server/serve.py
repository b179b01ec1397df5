"""Serves a pod in this process by uvicorn, until a signal ends it."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import resource
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.applications import Starlette

from ..app import create_app
from ..errors import ConfigurationError
from ..observability.garbage_collector import collect_seldom
from ..pod.pod import Pod
from ..settings import Settings
from .graceful_shutdown import DrainingServer
from .http_protocol import HttpProtocol
from .listening_socket import accepting_many, bind, is_loopback

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 5
# The open files of a pod except its clients' connections and its pool.
OTHER_FILES: Final = 64


async def serve(
    settings: Settings,
    listening: socket.socket | None = None,
    on_serving: Callable[[DrainingServer], None] | None = None,
) -> None:
    """Serve a pod until a signal ends it. With `with_worker`, a worker runs beside it.

    `listening`: a socket that is bound already, in place of the address in the settings. `on_serving` gets the server
    when it accepts connections.

    Raises:
        ConfigurationError: a setting, the address or the database is wrong.
        SystemExit: the pod has failed and is not alone, or the worker beside it has; the exit code is 1.
    """
    settings = within_open_files(settings)
    app = create_app(settings, on_signals=False)
    # uvicorn would bury a configuration error in a traceback, so the lifespan is entered here.
    listening = listening or bind(settings.host, settings.port, settings.write_timeout_seconds)
    with contextlib.closing(listening):
        if settings.demo and not is_loopback(listening):
            raise ConfigurationError(
                "BATON_DEMO serves a page that kills pods and workers: set BATON_HOST=127.0.0.1, or unset BATON_DEMO."
            )
        if settings.allow_anonymous:
            warn_if_reachable(listening)
        async with app.router.lifespan_context(app):
            collect_seldom()
            pod: Pod = app.state.pod
            with accepting_many(listening) as sockets:
                await DrainingServer(uvicorn_config(app, pod), pod, on_serving).serve(sockets=sockets)
    if pod.failed and not pod.is_alone:
        raise SystemExit(1)


def warn_if_reachable(listening: socket.socket) -> None:
    """Warn that there is no access control, if other machines can connect."""
    host, port = listening.getsockname()[:2]
    if not is_loopback(listening):
        logger.warning(
            "Anyone who can reach %s:%d can read, cancel and erase every stream, since BATON_ALLOW_ANONYMOUS is set. "
            "Create API keys with `baton keys create` and unset it, or serve on 127.0.0.1.",
            host,
            port,
        )


def within_open_files(settings: Settings) -> Settings:
    """Raise the limit of open files to what the connections need, or else return settings with fewer connections."""
    needed = settings.max_connections + OTHER_FILES + settings.database_pool_size
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return settings
    fewer = max(1, settings.max_connections - (needed - allowed))
    logger.warning(
        "The system allows this process %d open files, so it accepts %d connections instead of %d "
        "(BATON_MAX_CONNECTIONS). Raise the limit (ulimit -n).",
        allowed,
        fewer,
        settings.max_connections,
    )
    return settings.model_copy(update={"max_connections": fewer})


def uvicorn_config(app: Starlette, pod: Pod) -> uvicorn.Config:
    """Return how to run uvicorn: without middleware or logs of its own."""
    return uvicorn.Config(
        app,
        http=functools.partial(HttpProtocol, pod),  # type: ignore[arg-type]
        loop="none",
        proxy_headers=False,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(pod.settings.http_keep_alive_seconds),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
