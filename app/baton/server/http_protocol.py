"""HTTP/1.1 as a pod serves it: uvicorn's protocol, with bounds on what a client may send and how long it may take.

It offers responses the client's socket (`direct_socket`). It refuses what the application must not get: a malformed or
oversized header, a late body, a connection beyond the limit.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..api import path_prefix, problems
from ..errors import (
    BadRequest,
    BodyTimeout,
    HeaderTimeout,
    HeaderTooLarge,
    RequestError,
    TooManyConnections,
)
from ..observability import request_ids
from ..pod.pod import Pod
from ..pod.sinks import DIRECT_EXTENSION
from ..pod.tcp_limits import Phase
from .direct_socket import UvicornSocket

# A body has BATON_BODY_TIMEOUT_SECONDS for each of these.
TIMELY_BYTES: Final = 1 << 20

# A host and a port by RFC 3986. The host may be empty.
_HOST: Final = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(:[0-9]*)?")
_NO_REQUEST: Final = "This is not an HTTP/1.1 request, or it is ambiguous."


class _Malformed(ValueError):
    """A request that is refused while it is parsed. The message is the sentence that its client gets."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. `pod.tcp_limits` bounds how long it may stay in each phase of a request.

    It writes no access log, since a request's path may hold a token: uvicorn's own setting has no effect once any code
    has put a handler on that logger. The parser bounds nothing, and passes on a header only when it is complete. So the
    bytes since the last message, or since the last part of a body, are counted as well.

    It serves one request at a time. What a client sends before it has the last response is not read, and the connection
    ends after that response. uvicorn would keep all pipelined requests in memory, where a request of 18 bytes takes 2.4
    kB. None of our clients pipelines requests.
    """

    # With more than thirty attributes Python does not share the keys of instance dictionaries, which costs 1.2 kB for
    # each instance.
    __slots__ = (
        "_has_request",
        "_header_bytes",
        "_in_body",
        "_limits",
        "_max_header_bytes",
        "_offers_upgrade",
        "_pod",
        "_socket",
        "_stopped_reading",
        "_timely_bytes",
        "_unparsed_bytes",
        "phase",
    )

    def __init__(self, pod: Pod, **options: Any) -> None:
        super().__init__(**options)
        self.access_log = False
        self.phase: Phase | None = None
        self._pod = pod
        self._limits = pod.tcp_limits
        self._max_header_bytes = pod.settings.max_header_bytes
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._has_request = False  # a part of the next request has arrived
        self._in_body = False
        self._timely_bytes = 0  # of the body, since its time began
        self._offers_upgrade = False
        self._stopped_reading = False  # nothing more is read
        self._socket: UvicornSocket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if the pod has room for the connection."""
        super().connection_made(cast(asyncio.Transport, transport))
        if not self._limits.enter(self):
            self._refuse(TooManyConnections("Too many connections are open at the moment. Try again."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection, and notify the response that is being written."""
        self._limits.leave(self)
        super().connection_lost(exc)
        if self._socket is not None:
            self._socket.end()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._stopped_reading:
            return
        if self.phase == "idle":
            self._limits.move(self, "header")
        self._has_request = True
        self._unparsed_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._unparsed_bytes > self._max_header_bytes and not self.transport.is_closing():
            self._refuse_header()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed, or that was refused while it was parsed."""
        if self._header_bytes > self._max_header_bytes:
            self._refuse_header()
        else:
            self._refuse(BadRequest(msg))

    def on_message_begin(self) -> None:
        """Begin a request; refuse one that is sent before the last one has its response."""
        last: RequestResponseCycle | None = self.cycle
        if last is not None and not last.response_complete:
            last.keep_alive = False
            self._stopped_reading = True
            raise ValueError("the last request has no response yet")
        super().on_message_begin()
        self._header_bytes = 0
        if self.phase is None:
            self._limits.move(self, "header")

    def on_url(self, url: bytes) -> None:
        """Count a part of the first line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header. A trailer is only counted: it must not pass for a header that a proxy has checked."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the application on the request, and wait for its body."""
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._check_host()
        super().on_headers_complete()
        self._socket = UvicornSocket(self.cycle)
        self.scope["extensions"] = {DIRECT_EXTENSION: self._socket}  # type: ignore[dict-item]
        self._unparsed_bytes = 0
        self._in_body = True
        self._timely_bytes = 0
        self._limits.move(self, "body")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        super().on_body(body)
        self._unparsed_bytes = 0
        self._timely_bytes += len(body)
        if self._timely_bytes >= TIMELY_BYTES and self.phase == "body":
            # A phone takes long to send a conversation with images, so each part of this size gets the full time.
            self._timely_bytes = 0
            self._limits.move(self, "body")

    def on_message_complete(self) -> None:
        """Wait for nothing more, or for another request if the response is complete already."""
        if self._offers_upgrade:
            return
        super().on_message_complete()
        self._unparsed_bytes = 0
        self._has_request = self._in_body = False
        self._limits.move(self, "idle" if self.cycle.response_complete else None)

    def on_response_complete(self) -> None:
        """Wait for another request, or for the client to take the last response."""
        super().on_response_complete()
        if self._socket is not None:
            self._socket.end()
        if self.transport.is_closing():
            self._limits.move(self, "flush")
        elif self.phase is None and self.cycle.response_complete:
            self._limits.move(self, "idle")

    def expire(self, phase: Phase) -> None:
        """End a connection whose client takes too long."""
        if phase == "header":
            self._pod.metrics.rejected["header_timeout"] += 1
            # Browsers open connections before they need them. Without a request there is nothing to answer.
            late = HeaderTimeout("The request's header took too long to arrive.")
            self._refuse(late) if self._has_request else self._close()
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
            if not self._stopped_reading:
                known = isinstance(error.__context__, _Malformed)
                self.send_400_response(str(error.__context__) if known else _NO_REQUEST)
            return
        # Outside of the exception handler: otherwise this exception would become the context of the next one.
        self._parse_without_upgrade(rest)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its offer to upgrade the protocol, as curl and Java send it. It is declined.

        The parser assumes that the bytes after such a header are in the other protocol. So a body would be dropped, or
        be parsed as further requests.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        headers = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, headers, rest))

    def _check_host(self) -> None:
        """Refuse a request whose Host is missing, repeated or malformed (RFC 9112, section 3.2).

        If there are two, a proxy on the way may have used the other one. HTTP/1.0 has no Host. If the target is an
        absolute URL, its host replaces the header's.
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
        """Respond with an error, in place of the application, and close. A response that has begun is cut instead."""
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
        """Close once the client has taken what is left. The phase `flush` bounds that time."""
        self.transport.close()
        self._limits.move(self, "flush")


def _authority(target: bytes) -> bytes:
    """Return the host of a URL, with its port if it has one; empty for a target that is no URL."""
    try:
        parts = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return b""
    host: bytes = parts.host or b""
    return b"%b:%d" % (host, parts.port) if parts.port else host


def _encoded(error: RequestError, pod: Pod, page: str) -> bytes:
    """Return the whole response to a request that cannot be given to the application."""
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
