"""uvicorn, with a drain before its shutdown.

uvicorn stops accepting as soon as it is signalled, and waits for open connections before it tells the application:
streams would never end, and clients that reconnect would be refused. So a signal only starts the drain here, while new
connections are still accepted (and sent on); the ordinary exit follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .connections import ABORT_EXTENSION, CLOSE_EXTENSION
from .errors import ConfigurationError
from .main import create_app
from .pod import Pod
from .settings import Settings

logger = logging.getLogger(__name__)

# What the kernel keeps for a client that does not read; by default it would take megabytes.
SEND_BUFFER_BYTES: Final = 65_536
SHUTDOWN_SECONDS: Final = 5


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 that lets a response end its connection before the response has ended, and logs no address.

    An address may hold a token, and uvicorn's setting has no effect once anything has put a handler on that log.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False

    def on_message_begin(self) -> None:
        """Offer it to the request that begins."""
        super().on_message_begin()
        self.scope["extensions"] = {
            ABORT_EXTENSION: self.transport.abort,  # type: ignore[dict-item]
            CLOSE_EXTENSION: self.transport.close,  # type: ignore[dict-item]
        }


class Server(uvicorn.Server):
    """A uvicorn server whose first signal drains the pod, and whose second ends it at once."""

    def __init__(self, config: uvicorn.Config, pod: Pod) -> None:
        super().__init__(config)
        self._pod = pod
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and only then say so: somebody may connect as soon as this is logged."""
        await super().startup(sockets)
        for listening in sockets or []:
            logger.info("Pod %s serves on http://%s:%d", self._pod.settings.pod_name, *listening.getsockname()[:2])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal. This runs in a signal handler, so it only schedules; the process then ends with code 0."""
        del sig, frame
        self._loop.call_soon_threadsafe(self._signalled)

    def _signalled(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._leave())
        else:
            self.should_exit = self.force_exit = True

    async def _leave(self) -> None:
        await self._pod.drain()
        self.should_exit = True


async def serve(settings: Settings) -> None:
    """Serve a pod until a signal ends it.

    Raises:
        ConfigurationError: a setting, the address or the database is not as it must be.
    """
    app = create_app(settings)
    # The lifespan is entered here and not by uvicorn, whose log would bury a configuration error in a traceback.
    with contextlib.closing(bind(settings.host, settings.port)) as listening:
        if settings.allow_anonymous:
            warn_if_reachable(listening)
        async with app.router.lifespan_context(app):
            await Server(uvicorn_config(app), app.state.pod).serve(sockets=[listening])


def warn_if_reachable(listening: socket.socket) -> None:
    """Say loudly that there is no access control, where others than this machine's own can connect."""
    host, port = listening.getsockname()[:2]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        logger.warning(
            "ANYBODY who can reach %s:%d may read, cancel and erase every stream, since BATON_ALLOW_ANONYMOUS is set. "
            "Make API keys with `baton keys make` and unset it, or serve on 127.0.0.1.",
            host,
            port,
        )


def uvicorn_config(app: Starlette) -> uvicorn.Config:
    """How uvicorn is run: with nothing of its own around the app."""
    return uvicorn.Config(
        app,
        http=Protocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def bind(host: str, port: int) -> socket.socket:
    """Open the listening socket. Several pods may share one port on Linux, and the kernel spreads the connections.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as on_failure:
            opened = on_failure.enter_context(socket.socket(family, kind, protocol))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            opened.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
    return opened
