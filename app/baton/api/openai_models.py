"""The models of OpenAI's API, which are the generators; and errors in its form for paths that do not exist.

Clients of Anthropic's API ask at the same addresses, and get their own form.
"""

from __future__ import annotations

from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..errors import NotHere, RequestError, UnknownModel
from ..generators.registry import configured_names
from ..pod.pod import Pod
from . import anthropic_errors, anthropic_models, openai_errors, problems
from .anthropic_models import AnthropicModel, AnthropicModelList, PageOfModels, wants_anthropic
from .error_forms import answered_by
from .refusals import READING
from .request import AsgiResponse, in_time, json_answer, pod_of, principal_of
from .routing import JSON, ErrorForm, Returns, Routes

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


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error in the form of the API that the client speaks."""
    refuse = anthropic_errors.refusal if wants_anthropic(request) else openai_errors.refusal
    return refuse(request, error)


# Without the header of Anthropic's clients the form is OpenAI's.
MODELS_ERROR: Final = ErrorForm(JSON, openai_errors.ErrorAnswer, answered_by(refusal))
_WITH_VERSION: Final = f"{anthropic_models.VERSION}: …"

# These routes must come after those of the Responses API and Chat Completions: the last one takes all other paths.
ROUTES: Final = Routes("OpenAI", path={"name": {"type": "string", "minLength": 1}}, form=MODELS_ERROR)


@ROUTES.route(
    "GET",
    "/v1/models",
    "read",
    {200: Returns("The models.", {JSON: ModelList})},
    refusals=READING,
    query=(PageOfModels,),
    others={_WITH_VERSION: {200: Returns("One page of the models.", {JSON: AnthropicModelList})}},
)
async def list_models(request: Request) -> AsgiResponse:
    """List the models: the generators of this pod and of the workers."""
    principal_of(request).require_tenant()
    async with in_time(request):
        found = sorted(await names(pod_of(request)))
    if wants_anthropic(request):
        page = anthropic_models.page_of(request, found)
        return json_answer(request, page, headers=anthropic_errors.request_id_header())
    content: ModelList = {"object": "list", "data": [_model(name) for name in found]}
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/v1/models/{name:any}",
    "read",
    {200: Returns("The model.", {JSON: ModelContent})},
    refusals=(*READING, UnknownModel),
    others={_WITH_VERSION: {200: Returns("The model.", {JSON: AnthropicModel})}},
)
async def get_model(request: Request) -> AsgiResponse:
    """Return a model, if it exists."""
    principal_of(request).require_tenant()
    name = request.path_params["name"]
    async with in_time(request):
        if name not in await names(pod_of(request)):
            raise UnknownModel(f"There is no model called {name!r:.80}.")
    if wants_anthropic(request):
        return json_answer(request, anthropic_models.model(name), headers=anthropic_errors.request_id_header())
    return json_answer(request, _model(name))


@ROUTES.undocumented("/v1/responses{rest:any}", "read", methods=_ALL_METHODS)
@ROUTES.undocumented("/v1/chat/completions{rest:any}", "read", methods=_ALL_METHODS)
@ROUTES.undocumented("/v1/models{rest:any}", "read", methods=_ALL_METHODS)
async def not_here(request: Request) -> AsgiResponse:
    """Answer a path that does not exist in the form that OpenAI's clients show."""
    raise NotHere(f"No route for {request.method:.20} {problems.path_of(request):.200}.")


async def names(pod: Pod) -> frozenset[str]:
    """Return the names of all models: the generators of this pod and of the workers, and other names of them."""
    return configured_names(pod.settings) | await pod.offered_generators()


def _model(name: str) -> ModelContent:
    return {"id": name, "object": "model", "created": 0, "owned_by": "baton"}
