"""The models of OpenAI's API, which are the generators; and errors in its form for paths that do not exist."""

from __future__ import annotations

from typing import Final, Literal

from starlette.requests import Request
from typing_extensions import TypedDict

from ..db import worker_rows
from ..db.postgres import translated
from ..errors import NotHere, UnknownModel
from ..generators.registry import configured_names
from ..pod.pod import Pod
from . import problems
from .openai_errors import OPENAI_ERROR
from .refusals import READING
from .request import AsgiResponse, json_answer, pod_of, principal_of
from .routing import JSON, Returns, Routes

_ALL_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class ModelContent(TypedDict):
    """A model: a generator, or another name of one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[ModelContent]


# These routes must come after those of the Responses API and Chat Completions: the last one takes all other paths.
ROUTES: Final = Routes("OpenAI", path={"name": {"type": "string", "minLength": 1}}, form=OPENAI_ERROR)


@ROUTES.route("GET", "/v1/models", "read", {200: Returns("The models.", {JSON: ModelList})}, refusals=READING)
async def list_models(request: Request) -> AsgiResponse:
    """List the models: the generators of this pod and of the workers."""
    principal_of(request).require_tenant()
    async with translated(pod_of(request).pool):
        found = await names(pod_of(request))
    content: ModelList = {"object": "list", "data": [_model(name) for name in sorted(found)]}
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/v1/models/{name:any}",
    "read",
    {200: Returns("The model.", {JSON: ModelContent})},
    refusals=(*READING, UnknownModel),
)
async def get_model(request: Request) -> AsgiResponse:
    """Return a model, if it exists."""
    principal_of(request).require_tenant()
    name = request.path_params["name"]
    async with translated(pod_of(request).pool):
        if name not in await names(pod_of(request)):
            raise UnknownModel(f"There is no model called {name!r:.80}.")
    return json_answer(request, _model(name))


@ROUTES.undocumented("/v1/responses{rest:any}", "read", methods=_ALL_METHODS)
@ROUTES.undocumented("/v1/chat/completions{rest:any}", "read", methods=_ALL_METHODS)
@ROUTES.undocumented("/v1/models{rest:any}", "read", methods=_ALL_METHODS)
async def not_here(request: Request) -> AsgiResponse:
    """Answer a path that does not exist in the form that OpenAI's clients show."""
    raise NotHere(f"No route for {request.method:.20} {problems.path_of(request):.200}.")


async def names(pod: Pod) -> frozenset[str]:
    """Return the names of all models: the generators of this pod and of the workers, and other names of them."""
    return configured_names(pod.settings) | await worker_rows.offered_generators(pod.pool)


def _model(name: str) -> ModelContent:
    return {"id": name, "object": "model", "created": 0, "owned_by": "baton"}
