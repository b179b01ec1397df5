"""CORS: which pages of other origins may use a pod from a browser, by an allow-list.

It stands around the whole application, so that refusals, faults and answers that only say when to come back can be read
by these pages, too. It touches headers only, and nothing at all of a request that no page of another origin makes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import problems

METHODS: Final = ("GET", "HEAD", "POST", "DELETE")

# What clients send: ours, those for EventSource and fetch, the AI SDK's, OpenAI's SDKs, and what traces requests.
# BATON_ALLOWED_HEADERS adds those of an application.
REQUEST_HEADERS: Final = (
    *("Authorization", "Cache-Control", "Idempotency-Key", "Last-Event-ID", "User-Agent", "X-Request-Id"),
    *("X-Requested-With", "baggage", "sentry-trace", "traceparent", "tracestate"),
    *("OpenAI-Beta", "OpenAI-Organization", "OpenAI-Project"),
    *("X-Stainless-Arch", "X-Stainless-Custom-Poll-Interval", "X-Stainless-Helper-Method", "X-Stainless-Lang"),
    *("X-Stainless-OS", "X-Stainless-Package-Version", "X-Stainless-Poll-Helper", "X-Stainless-Retry-Count"),
    *("X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Timeout"),
)

# What pages may read of an answer, besides what they always may.
ANSWER_HEADERS: Final = (
    *("Allow", "Location", "Retry-After", "WWW-Authenticate", "X-Baton-Pod", "X-Baton-Token", "X-Request-Id"),
    *("X-Should-Retry", "X-Vercel-AI-UI-Message-Stream", "X-Workflow-Run-Id", "X-Workflow-Stream-Tail-Index"),
)

PREFLIGHT_SECONDS: Final = 7200


class CrossOrigin(CORSMiddleware):
    """Starlette's, but for requests of no page, and with what all answers carry on the answers that it gives itself."""

    def __init__(self, app: ASGIApp, origins: Collection[str], headers: Collection[str] = ()) -> None:
        """Let in pages of these `origins`, which may send these `headers` besides; `*` stands for all of them.

        A `*` among the headers is answered with the names that the page asks for: browsers take a literal `*` neither
        together with cookies, nor for `Authorization`.
        """
        listed = "*" not in origins
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers={*REQUEST_HEADERS, *headers},
            # Where any origin is allowed, no cookies are, and no public page reaches into a private network.
            allow_credentials=listed,
            # Chromium asks for it in front of a request from a public page to a private address.
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

    def preflight_response(self, request_headers: Headers) -> Response:
        """Say what a page may do."""
        response = super().preflight_response(request_headers)
        for name, value in problems.answer_headers(None).items():
            response.headers.setdefault(name, value)
        return response
