"""The models in the form of Anthropic's API, at the same addresses as OpenAI's (`openai_models`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from typing_extensions import TypedDict

from .request import query_of
from .validation import validated

# Every client of Anthropic's API sends it, and no client of OpenAI's.
VERSION: Final = "anthropic-version"


class PageOfModels(BaseModel):
    """The query of a list of models in Anthropic's form."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    after_id: str | None = None
    before_id: str | None = None


class AnthropicModel(TypedDict):
    """A model: a generator, or another name of one."""

    id: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]


class AnthropicModelList(TypedDict):
    """One page of the models."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def wants_anthropic(request: Request) -> bool:
    """Whether a request comes from a client of Anthropic's API."""
    return VERSION in request.headers


def page_of(request: Request, names: Sequence[str]) -> AnthropicModelList:
    """Return a page of the models with these names, which are sorted.

    Raises:
        InvalidRequest: the query is wrong.
    """
    wanted = validated(PageOfModels, query_of(request, PageOfModels.model_fields))
    if wanted.before_id is not None:
        rest = [name for name in names if name < wanted.before_id]
        shown = rest[-wanted.limit :]
    else:
        rest = [name for name in names if wanted.after_id is None or name > wanted.after_id]
        shown = rest[: wanted.limit]
    return {
        "data": [model(name) for name in shown],
        "has_more": len(shown) < len(rest),
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def model(name: str) -> AnthropicModel:
    """Return a model. When it was released is unknown here, which the API shows as 1970."""
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }
