"""What both of OpenAI's APIs share here: errors in its form, models, and how a request becomes a stream."""

from __future__ import annotations

import functools
import logging
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from ..db import worker_rows
from ..db.postgres import translated
from ..db.streams import Stream
from ..dialects.dialect import Dialect, Encoded
from ..dialects.openai import ErrorContent, error_of
from ..dialects.responses import response_id
from ..errors import (
    POD_FAULT,
    InternalError,
    NotHere,
    PassingError,
    RequestError,
    StillRunning,
    Unauthenticated,
    UnknownGenerator,
    UnknownModel,
)
from ..generators.registry import configured_names
from ..pod.pod import Pod
from ..principal import AuthScope
from . import actions, problems
from .following import follow_frames
from .models import CreateStream, Name, Text, at_most, storable
from .request import AsgiResponse, Handler, answered, json_answer, pod_of, principal_of

logger = logging.getLogger(__name__)

# Of the request itself, and nothing that a generator is to know.
_OURS: Final = frozenset({"background", "metadata", "store", "stream"})


class ErrorAnswer(TypedDict):
    """An error in OpenAI's form."""

    error: ErrorContent


class ModelContent(TypedDict):
    """A model: a generator, or a further name of one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[ModelContent]


class Creation(BaseModel):
    """What Baton reads of the body that creates something. The rest is for the generator."""

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    stream: bool | None = False
    metadata: Annotated[dict[Name, Text], at_most(16)] | None = Field(None, max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


def answered_in_form(handler: Handler, scope: AuthScope) -> Handler:
    """Answer errors in the form that OpenAI's clients read."""
    inner = answered(handler, scope)

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await inner(request)
        except RequestError as error:
            problems.note(request, error)
            return refusal(request, error)
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s %s", request.method, problems.path_of(request))
            return refusal(request, InternalError(POD_FAULT))

    return endpoint


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error. Only what may go otherwise the next time is worth another try, which clients make by status."""
    headers = problems.error_headers(error)
    if not isinstance(error, PassingError):
        headers["x-should-retry"] = "false"
    if getattr(request.app.state, "pod", None) is None:
        raise error
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        # The words by which OpenAI's own clients know a limit; the message says which it is.
        content: Any = {"error": error_of("rate_limit_exceeded", str(error), "requests")}
    else:
        code = "invalid_api_key" if isinstance(error, Unauthenticated) else error.code
        content = error_body(error.status, code, str(error))
    return json_answer(request, content, status=error.status, headers=headers)


def error_body(status: int, code: str, message: str) -> ErrorAnswer:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": error_of(code, message, kind)}


async def create(request: Request, wanted: Creation, body: bytes) -> Stream:
    """Queue a stream for a request; its `model` names the generator.

    Raises:
        UnknownModel: there is no generator of that name.
        CreateRateLimited, IdempotencyConflict, InvalidRequest, TooManyStreams, Unavailable: see `actions.create`.
    """
    given = wanted.model_dump(exclude_unset=True, exclude=set(_OURS))
    native = CreateStream(generator=wanted.model, input=given, metadata=dict(wanted.metadata or {}))
    # A client of OpenAI's cannot be told to discard what it has.
    new = actions.new_stream(request, native, on_worker_lost="fail")
    try:
        stream, _ = await actions.create(request, new, body)
    except UnknownGenerator as error:
        raise UnknownModel(
            f"There is no model called {new.generator!r:.80}.",
            operator=f"{error.operator} BATON_MODELS names models.",
        ) from None
    return stream


async def follow(
    request: Request, stream: Stream, dialect: Dialect[Any], opening: Encoded[Any], **options: Any
) -> AsgiResponse:
    """Follow what was just created; `options` are those of `follow_frames`.

    Raises:
        StillRunning: it cannot be followed just now.
    """
    try:
        return await follow_frames(request, stream.id, dialect, opening, **options)
    except PassingError as error:
        raise still_running(stream) from error


def still_running(stream: Stream) -> StillRunning:
    """Return the error that says where the answer is to be had."""
    return StillRunning(f"The answer continues, and cannot be sent just now. Retrieve it as {response_id(stream.id)}.")


async def list_models(request: Request) -> AsgiResponse:
    """List the models: the generators of this pod and of the workers."""
    principal_of(request).require_tenant()
    async with translated(pod_of(request).pool):
        names = await _models(pod_of(request))
    content: ModelList = {"object": "list", "data": [_model(name) for name in sorted(names)]}
    return json_answer(request, content)


async def get_model(request: Request) -> AsgiResponse:
    """Tell that a model exists."""
    principal_of(request).require_tenant()
    name = request.path_params["name"]
    async with translated(pod_of(request).pool):
        if name not in await _models(pod_of(request)):
            raise UnknownModel(f"There is no model called {name!r:.80}.")
    return json_answer(request, _model(name))


async def not_here(request: Request) -> AsgiResponse:
    """Answer what OpenAI's clients may ask for and this is not, in the form that they show."""
    raise NotHere(f"There is no {request.method:.20} {problems.path_of(request):.200} here.")


_ALL_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]

# The last ones take what no other route has taken.
ROUTES: Final = [
    Route("/v1/models", answered_in_form(list_models, "read"), methods=["GET"]),
    Route("/v1/models/{name:any}", answered_in_form(get_model, "read"), methods=["GET"]),
    *(
        Route(
            f"/v1/{path}{{rest:any}}",
            answered_in_form(not_here, "read"),
            methods=_ALL_METHODS,
            include_in_schema=False,
        )
        for path in ("responses", "chat/completions", "models")
    ),
]


async def _models(pod: Pod) -> frozenset[str]:
    return configured_names(pod.settings) | await worker_rows.offered_generators(pod.pool)


def _model(name: str) -> ModelContent:
    return {"id": name, "object": "model", "created": 0, "owned_by": "baton"}
