"""uvicorn, with a drain before its shutdown.

uvicorn stops accepting as soon as it is signalled, and waits for open connections before it tells the application:
streams would never end, and clients that reconnect would be refused. So a signal only starts the drain here, while new
connections are still accepted (and sent on); the ordinary exit follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import math
import re
import resource
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import FrameType
from typing import Any, Final, cast

import httptools
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..api import path_prefix, problems
from ..app import create_app
from ..errors import (
    BadRequest,
    BodyTimeout,
    ConfigurationError,
    HeaderTimeout,
    HeaderTooLarge,
    RequestError,
    TooManyConnections,
)
from ..observability import request_ids
from ..observability.garbage_collector import collect_seldom
from ..pod.event_stream import ABORT_EXTENSION, CLOSE_EXTENSION, DIRECT_EXTENSION
from ..pod.pod import Pod
from ..pod.tcp_limits import Phase
from ..settings import Settings

logger = logging.getLogger(__name__)

# What the kernel keeps for a client that does not read; by default it would take megabytes.
SEND_BUFFER_BYTES: Final = 65_536
SHUTDOWN_SECONDS: Final = 5
# How long requests that are cancelled then have for their last words.
GIVE_UP_SECONDS: Final = 1
ACCEPTS_PER_TURN: Final = 32
# A body has BATON_BODY_TIMEOUT_SECONDS for each of these.
TIMELY_BYTES: Final = 1 << 20
# What a pod has open besides its clients' connections and its pool.
OTHER_FILES: Final = 64
# Seconds of silence until the first probe, seconds between two, and how many are left unanswered.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

# RFC 3986's host and port, of which a host may be empty.
_HOST: Final = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(:[0-9]*)?")
_NO_REQUEST: Final = "This is no request of HTTP/1.1, or one that can be read in two ways."


class _Malformed(ValueError):
    """A request that is refused while it is parsed, with the sentence that its client gets."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with bounds on what a client may send and how long it may take (see `intake`).

    It lets a response end its connection before the response has ended, and logs no address, which may hold a token:
    uvicorn's setting has no effect once anything has put a handler on that log. The parser bounds nothing, and gives a
    header only when it is whole: so the bytes are counted, too, that have come since the last message or part of a
    body.

    One request at a time: what is sent before the last one has its answer is not read, and the connection ends behind
    that answer. uvicorn would keep all that is sent ahead, 18 bytes of it as 2.4 kB; no client of ours does this.
    """

    # Beyond thirty attributes Python does not share the keys of their dictionaries: 1.2 kB more for each.
    __slots__ = (
        "_asked",
        "_deaf",
        "_direct",
        "_header_bytes",
        "_in_body",
        "_intake",
        "_max_header_bytes",
        "_offers_upgrade",
        "_pod",
        "_timely_bytes",
        "_unparsed_bytes",
        "phase",
    )

    def __init__(self, pod: Pod, **given: Any) -> None:
        super().__init__(**given)
        self.access_log = False
        self.phase: Phase | None = None
        self._pod = pod
        self._intake = pod.intake
        self._max_header_bytes = pod.settings.max_header_bytes
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._asked = False  # something has come of the request that is awaited
        self._in_body = False
        self._timely_bytes = 0  # of the body, since its time began
        self._offers_upgrade = False
        self._deaf = False  # nothing more is read
        self._direct: DirectWay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        super().connection_made(cast(asyncio.Transport, transport))
        if not self._intake.enter(self):
            self._refuse(TooManyConnections("Too many connections are open just now. Try again."))

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._intake.leave(self)
        super().connection_lost(exc)
        if self._direct is not None:
            self._direct.end()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._deaf:
            return
        if self.phase == "idle":
            self._intake.move(self, "header")
        self._asked = True
        self._unparsed_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._unparsed_bytes > self._max_header_bytes and not self.transport.is_closing():
            self._refuse_header()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or what was refused while it was."""
        if self._header_bytes > self._max_header_bytes:
            self._refuse_header()
        else:
            self._refuse(BadRequest(msg))

    def on_message_begin(self) -> None:
        """Offer to the request that begins how to end its connection."""
        last: RequestResponseCycle | None = self.cycle
        if last is not None and not last.response_complete:
            last.keep_alive = False
            self._deaf = True
            raise ValueError("the last request has no answer yet")
        super().on_message_begin()
        self._header_bytes = 0
        if self.phase is None:
            self._intake.move(self, "header")
        self.scope["extensions"] = {
            ABORT_EXTENSION: self.transport.abort,  # type: ignore[dict-item]
            CLOSE_EXTENSION: self.transport.close,  # type: ignore[dict-item]
        }

    def on_url(self, url: bytes) -> None:
        """Count a part of the first line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer, which nobody asks for: it is not to pass for a header that a proxy has seen."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request answered, and wait for its body."""
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._check_host()
        super().on_headers_complete()
        self._direct = DirectWay(self.cycle)
        self.scope["extensions"][DIRECT_EXTENSION] = self._direct  # type: ignore[assignment]
        self._unparsed_bytes = 0
        self._in_body = True
        self._timely_bytes = 0
        self._intake.move(self, "body")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        super().on_body(body)
        self._unparsed_bytes = 0
        self._timely_bytes += len(body)
        if self._timely_bytes >= TIMELY_BYTES and self.phase == "body":
            # A conversation with images takes a phone longer than a request without: each of these has its time.
            self._timely_bytes = 0
            self._intake.move(self, "body")

    def on_message_complete(self) -> None:
        """Wait for nothing more; if the answer has been given before that, for another request."""
        if self._offers_upgrade:
            return
        super().on_message_complete()
        self._unparsed_bytes = 0
        self._asked = self._in_body = False
        self._intake.move(self, "idle" if self.cycle.response_complete else None)

    def on_response_complete(self) -> None:
        """Wait for another request, or for the client to take the last answer."""
        super().on_response_complete()
        if self._direct is not None:
            self._direct.end()
        if self.transport.is_closing():
            self._intake.move(self, "flush")
        elif self.phase is None and self.cycle.response_complete:
            self._intake.move(self, "idle")

    def expire(self, phase: Phase) -> None:
        """End a connection whose client takes too long."""
        if phase == "header":
            self._pod.metrics.rejected["header_timeout"] += 1
            # Browsers open connections that they may need: those are no requests to be answered.
            late = HeaderTimeout("The request's header took too long to arrive.")
            self._refuse(late) if self._asked else self._close()
        elif phase == "body":
            self._pod.metrics.rejected["body_timeout"] += 1
            self._refuse(BodyTimeout("The request's body took too long to arrive."))
        elif phase == "idle":
            self._close()
        else:
            self.transport.abort()

    def give_way(self) -> None:
        """End at once."""
        self.transport.abort()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if not self._deaf:
                known = isinstance(error.__context__, _Malformed)
                self.send_400_response(str(error.__context__) if known else _NO_REQUEST)
            return
        # Not while an exception is handled: it would become the context of the next one.
        self._parse_without_upgrade(rest)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its offer of another protocol, as curl and Java make it, which is not taken.

        The parser takes what follows such a header for the other protocol. So a body would be left out, or be taken
        for further requests.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        headers = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, headers, rest))

    def _check_host(self) -> None:
        """Refuse a request whose Host is missing, double or malformed (RFC 9112, section 3.2).

        Of two values a proxy on the way may have chosen the other one. HTTP/1.0 has no Host. Where the target is a
        whole address, its host counts in place of the header's.
        """
        hosts = [value.strip(b" \t") for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            raise _Malformed("A request of HTTP/1.1 must have the header Host, once.")
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise _Malformed("The header Host must be a host, with or without a port: `example.com:8000`.")
        if not self.url.startswith((b"/", b"*")) and hosts:
            named = _authority(self.url)
            self.headers[:] = [(name, named if name == b"host" else value) for name, value in self.headers]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._max_header_bytes:
            raise ValueError("the header is too large")

    def _refuse_header(self) -> None:
        self._pod.metrics.rejected["header_bytes"] += 1
        most = self._max_header_bytes
        self._refuse(HeaderTooLarge(f"A request's header may have {most} bytes at most."))

    def _refuse(self, error: RequestError) -> None:
        """Answer, in the place of the application if it is at work, and close. What has an answer gets no other."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif self._in_body:
            self._close()
            return
        page = path_prefix.before(self.scope or {}, self._pod.settings) + problems.PAGE_PATH
        self.transport.write(_encoded(error, self._pod, page))
        self._close()

    def _close(self) -> None:
        """Close when the client has taken what is left, for which it has a time of its own."""
        self.transport.close()
        self._intake.move(self, "flush")


class DirectWay:
    """Baton's `Direct`: writes pieces of a chunked response, and tells when the connection is lost."""

    __slots__ = ("_cycle", "_on_lost")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._on_lost: Callable[[], None] | None = None

    def watch(self, on_lost: Callable[[], None]) -> bool:
        """Call back when the connection is lost; return False if the request's body is still to come."""
        cycle = self._cycle
        if cycle.more_body:
            return False
        # As `receive` would: of a connection that is not read nothing is heard.
        cycle.flow.resume_reading()
        cycle.body = bytearray()
        if cycle.disconnected:
            on_lost()
        else:
            self._on_lost = on_lost
        return True

    def end(self) -> None:
        """Watch no more, as the response is complete or the connection lost; tell of the latter."""
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None and self._cycle.disconnected:
            on_lost()

    def write(self, body: bytes) -> bool:
        """Write a piece, and return True, if one can be written now."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        if cycle.transport.is_closing():
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def _authority(target: bytes) -> bytes:
    """Return the host of an address, and its port if it names one; empty for a target that is none."""
    try:
        parts = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return b""
    host: bytes = parts.host or b""
    return b"%b:%d" % (host, parts.port) if parts.port else host


def _encoded(error: RequestError, pod: Pod, page: str) -> bytes:
    """The whole answer to what is no request yet, and cannot be given to the application."""
    with request_ids.new():
        body = problems.encoded(error, page)
        common = problems.answer_headers(pod)
    headers = {
        **common,
        **problems.error_headers(error),
        "content-type": problems.MEDIA_TYPE,
        "content-length": str(len(body)),
        "connection": "close",
    }
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"
    lines = [head, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


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
        for listening in (sockets or [])[:1]:
            logger.info("Pod %s serves on http://%s:%d", self._pod.settings.pod_name, *listening.getsockname()[:2])

    async def on_tick(self, counter: int) -> bool:
        """End the connections whose clients take too long: ten times a second."""
        self._pod.intake.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and return when nothing asks the pod for anything any more: it is closed next.

        uvicorn cancels the requests that outlast its patience and does not wait for them, and a second signal leaves
        them running. They would find no pod.
        """
        await super().shutdown(sockets)
        given_up = set(self.server_state.tasks)
        for task in given_up:
            if not task.cancelling():
                task.cancel()
        if given_up:
            await asyncio.wait(given_up, timeout=GIVE_UP_SECONDS)
        # Also those that were accepted while the server closed.
        for connection in list(self.server_state.connections):
            connection.transport.close()

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
    settings = within_open_files(settings)
    app = create_app(settings, on_signals=False)
    # The lifespan is entered here and not by uvicorn, whose log would bury a configuration error in a traceback.
    with contextlib.closing(bind(settings.host, settings.port, settings.write_timeout_seconds)) as listening:
        if settings.demo and not _is_loopback(listening):
            raise ConfigurationError("BATON_DEMO serves a page that kills pods: set BATON_HOST=127.0.0.1, or unset it.")
        if settings.allow_anonymous:
            warn_if_reachable(listening)
        async with app.router.lifespan_context(app):
            collect_seldom()
            with _accepting_many(listening) as sockets:
                await Server(uvicorn_config(app, app.state.pod), app.state.pod).serve(sockets=sockets)


@contextlib.contextmanager
def _accepting_many(listening: socket.socket) -> Iterator[list[socket.socket]]:
    """Give the loop the listening socket many times over.

    uvloop accepts one connection for each socket and turn. When the clients of another pod come all at once, each turn
    has much to do, and they would wait in the kernel's queue for as many turns as they are.
    """
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(contextlib.closing(listening.dup())) for _ in range(ACCEPTS_PER_TURN - 1)]
        yield [listening, *copies]


def warn_if_reachable(listening: socket.socket) -> None:
    """Say loudly that there is no access control, where others than this machine's own can connect."""
    host, port = listening.getsockname()[:2]
    if not _is_loopback(listening):
        logger.warning(
            "ANYBODY who can reach %s:%d may read, cancel and erase every stream, since BATON_ALLOW_ANONYMOUS is set. "
            "Make API keys with `baton keys create` and unset it, or serve on 127.0.0.1.",
            host,
            port,
        )


def _is_loopback(listening: socket.socket) -> bool:
    host: str = listening.getsockname()[0]
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def within_open_files(settings: Settings) -> Settings:
    """Have the system allow as many open files as there may be connections, or else take fewer connections."""
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
        "The system allows this process %d open files, so it takes %d connections and not %d (BATON_MAX_CONNECTIONS). "
        "Raise the limit (ulimit -n).",
        allowed,
        fewer,
        settings.max_connections,
    )
    return settings.model_copy(update={"max_connections": fewer})


def uvicorn_config(app: Starlette, pod: Pod) -> uvicorn.Config:
    """How uvicorn is run: with nothing of its own around the app."""
    return uvicorn.Config(
        app,
        http=functools.partial(Protocol, pod),  # type: ignore[arg-type]
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


def bind(host: str, port: int, give_up_seconds: float = 0) -> socket.socket:
    """Open the listening socket. Several pods may share one port on Linux, and the kernel spreads the connections.

    The kernel gives up clients that have vanished without a word: those that acknowledge nothing for
    `give_up_seconds`, or no probe in a minute of silence.

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
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in {**KEEPALIVE, "TCP_USER_TIMEOUT": int(give_up_seconds * 1000)}.items():
                if hasattr(socket, name):
                    opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            opened.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
    return opened
