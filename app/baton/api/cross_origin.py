"""CORS: an allow-list of the other origins whose pages may use a pod.

It wraps the whole application, so that these pages can also read errors, and answers that only ask them to come back
later. It changes only headers, and leaves requests without an `Origin` alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")

# What clients send: Baton's own, those for EventSource and fetch, the AI SDK, AG-UI, OpenAI's, Anthropic's and
# LangGraph's SDKs, the Durable Streams protocol (also what Baton refuses by name), and tracing.
# BATON_ALLOWED_HEADERS adds those of an application.
REQUEST_HEADERS: Final = (
    *("Authorization", "Cache-Control", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "User-Agent"),
    *("X-Api-Key", "X-Auth-Scheme"),
    *("X-Request-Id", "X-Requested-With", "baggage", "sentry-trace", "traceparent", "tracestate"),
    *("OpenAI-Beta", "OpenAI-Organization", "OpenAI-Project"),
    *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("anthropic-organization-id", "anthropic-workspace-id", "anthropic-user-profile-id"),
    *("X-Stainless-Arch", "X-Stainless-Custom-Poll-Interval", "X-Stainless-Helper", "X-Stainless-Helper-Method"),
    *("X-Stainless-Lang", "X-Stainless-OS", "X-Stainless-Package-Version", "X-Stainless-Poll-Helper"),
    *("X-Stainless-Retry-Count", "X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Timeout"),
    *("Stream-Seq", "Stream-TTL", "Stream-Expires-At", "Stream-Closed"),
    *("Producer-Id", "Producer-Epoch", "Producer-Seq"),
    *("Stream-Forked-From", "Stream-Fork-Offset", "Stream-Fork-Sub-Offset"),
)

# The headers of an answer that pages may read, in addition to the ones that browsers always allow.
ANSWER_HEADERS: Final = (
    *("Allow", "Content-Location", "Location", "Retry-After", "WWW-Authenticate", "X-Baton-Pod", "X-Baton-Stream-Id"),
    *("X-Baton-Token", "X-Request-Id", "request-id"),
    *("ETag", "Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed", "Stream-Cursor", "Stream-SSE-Data-Encoding"),
    *("Stream-TTL", "Stream-Expires-At", "Producer-Epoch", "Producer-Seq"),
    *("Producer-Expected-Seq", "Producer-Received-Seq"),
    *("X-Should-Retry", "X-Vercel-AI-UI-Message-Stream", "X-Workflow-Run-Id", "X-Workflow-Stream-Tail-Index"),
)

PREFLIGHT_SECONDS: Final = 7200
ALLOWED: Final = "access-control-allow-origin"


class CrossOrigin(CORSMiddleware):
    """Starlette's middleware, for requests with an `Origin` only. Its own answers have the common headers, too."""

    def __init__(self, app: ASGIApp, origins: Collection[str], headers: Collection[str] = ()) -> None:
        """Allow pages of these `origins`, which may also send these `headers`; `*` means all.

        A `*` among the headers is answered with the names that the page asks for: browsers do not accept a literal `*`
        with cookies, or for `Authorization`.
        """
        listed = "*" not in origins
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers={*REQUEST_HEADERS, *headers},
            # With `*`, cookies are not allowed, and no public page may reach into a private network.
            allow_credentials=listed,
            # Chromium asks for it before a request from a public page to a private address.
            allow_private_network=listed,
            expose_headers=ANSWER_HEADERS,
            max_age=PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and "origin" in Headers(scope=scope):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Add the headers to a response, unless all origins may read it: then it stays public, and without cookies."""
        if message["type"] == "http.response.start" and Headers(raw=message["headers"]).get(ALLOWED) == "*":
            await send(message)
        else:
            await super().send(message, send, request_headers)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request: say what the page may send."""
        response = super().preflight_response(request_headers)
        for name, value in problems.answer_headers(None).items():
            response.headers.setdefault(name, value)
        return response
