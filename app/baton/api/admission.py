"""Who may use a route: the credential, its scope and view, and the rate of requests."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..db import fair_semaphore
from ..db.rate_buckets import Rate
from ..errors import Forbidden, PassingError, ReadRateLimited, Unauthenticated, Unavailable
from ..observability.metrics.pod_metrics import Limit
from ..pod import caller_rates
from ..pod.caller_rates import CallerRates
from ..principal import AuthScope, Principal
from .request import AsgiResponse, common_headers, pod_of, principal_of
from .request_body import release_body

Handler = Callable[[Request], Awaitable[AsgiResponse]]

LEAVING: Final = "This part of the service is shutting down. Try again."


def admitted(
    handler: Handler,
    scope: AuthScope | None,
    *,
    or_scope: AuthScope | None = None,
    narrow: bool = False,
    counted: bool | None = None,
) -> Handler:
    """Call a handler only for callers who have the scope, or the other one; without a scope, for everybody.

    A request that is `counted` uses one of the caller's reads. By default that is every request with a scope except
    creates, which have a rate of their own.

    A `narrow` handler looks at the principal's view, and shows only what that view allows. Callers with a narrow view
    cannot use any other handler.

    A request that the server cancels while the pod leaves would get 500; this answers it with 503.
    """
    scopes = [each for each in (scope, or_scope) if each is not None]

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            if scopes:
                try:
                    principal = await _principal(request)
                except HTTPException as refusal:
                    return _passed_on(request, refusal)
                principal.require(*scopes)
                principal.require_view("answer" if narrow else "full")
                request.state.principal = principal
                fair_semaphore.set_tenant(principal.tenant)
                if counted if counted is not None else scope != "create":
                    await _take_read(request)
            return await handler(request)
        except asyncio.CancelledError:
            if not pod_of(request).draining:
                raise
            raise Unavailable(LEAVING) from None
        finally:
            release_body(request)

    return endpoint


async def _principal(request: Request) -> Principal:
    """Return the caller. An application's `authenticate` gets the request without its body, which the pod bounds."""
    return await pod_of(request).gate.admit(
        request.method, request.headers, request.cookies, request.query_params, Request(request.scope)
    )


def _passed_on(request: Request, refusal: HTTPException) -> AsgiResponse:
    """Answer with what an application's `authenticate` has raised.

    Raises:
        Unauthenticated, Forbidden: it was 401 or 403, which each dialect expresses in its own form.
    """
    headers = dict(refusal.headers or {})
    known = {401: Unauthenticated, 403: Forbidden}.get(refusal.status_code)
    if known is not None:
        error = known(str(refusal.detail))
        error.headers |= headers
        raise error from None
    return Response(str(refusal.detail), refusal.status_code, common_headers(request) | headers, "text/plain")


async def take(
    request: Request, rates: CallerRates, limit: Limit, error: type[PassingError], sentence: Callable[[Rate], str]
) -> None:
    """Take a token of the caller's bucket on this pod; `limit` names it in the metric of rejected requests.

    Raises:
        PassingError: this `error`, with the sentence about the rate, since the caller is faster than that.
    """
    pod, principal = pod_of(request), principal_of(request)
    wait_seconds = rates.take(principal.tenant, principal.name)
    if wait_seconds is not None:
        pod.metrics.rejected[limit] += 1
        await asyncio.sleep(caller_rates.REFUSAL_SECONDS)
        raise error(f"{sentence(rates.rate)} Try again in {wait_seconds} s.", wait_seconds)


async def _take_read(request: Request) -> None:
    """Raise ReadRateLimited unless the caller may make another request now."""
    await take(
        request,
        pod_of(request).read_rates,
        "reads_per_second",
        ReadRateLimited,
        lambda rate: (
            f"You may make {rate.per_second:g} requests a second, and {rate.burst} at once after a pause. A "
            "list counts more if it reads more rows."
        ),
    )
