"""Handlers whose errors have the form of another API."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import POD_FAULT, InternalError, PassingError, RequestError
from . import problems
from .admission import Handler
from .request import AsgiResponse

logger = logging.getLogger(__name__)

Refusal = Callable[[Request, RequestError], Response]


def answered_by(refusal: Refusal) -> Callable[[Handler], Handler]:
    """Return what lets a handler answer its errors by `refusal`.

    Before the pod has started, the errors are raised: the application answers them.
    """

    def answer(request: Request, error: RequestError) -> Response:
        if getattr(request.app.state, "pod", None) is None:
            raise error
        return refusal(request, error)

    def around(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def endpoint(request: Request) -> AsgiResponse:
            try:
                return await handler(request)
            except RequestError as error:
                problems.note(request, error)
                return answer(request, error)
            except HTTPException:
                raise
            except Exception:
                logger.exception("%s %s", request.method, problems.path_of(request))
                return answer(request, InternalError(POD_FAULT))

        return endpoint

    return around


def headers_for_sdks(error: RequestError) -> dict[str, str]:
    """Return the headers of a refusal. SDKs retry by status: a header stops them if the same error would repeat."""
    headers = problems.error_headers(error)
    if not isinstance(error, PassingError):
        headers["x-should-retry"] = "false"
    return headers
