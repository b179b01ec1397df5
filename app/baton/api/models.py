"""The bodies and queries of the native routes and of the console, as pydantic models; and filters by metadata."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from .. import webhook_addresses
from ..auth.tokens import Wish
from ..db.external_streams import GENERATOR as EXTERNAL
from ..errors import InvalidRequest
from ..events import MAX_SEQ, Status
from ..principal import View
from .validation import Finite, Items, JsonValue, Moment, Name, Seconds, Text, at_most, storable

MAX_WAIT_SECONDS = 60
MAX_START_DAYS = 7
Priority: TypeAlias = Literal["low", "normal", "high"]
_MAX_METADATA_FILTERS = 4
_ON_WORKER_LOST = (
    "What happens if the stream's worker dies or is stopped. `continue`: another worker continues the answer if the "
    "generator can, and starts it again otherwise; or it fails, if it was created in a dialect that cannot say that an "
    "answer starts again. `retry`: another worker starts it again. `fail`: it fails."
)
_WEBHOOK = (
    "The URL that is called once the stream has ended, by Standard Webhooks. The service calls only hosts that its "
    "operator has listed."
)
_FILTER = re.compile(r"metadata(?:\.(.*)|\[(.*)\])", re.DOTALL)


class TokenOptions(BaseModel):
    """What a stream's token allows.

    Without a field, it allows as much as the caller may do, but never `produce` and `input`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    scopes: Annotated[Items[Literal["read", "cancel", "produce", "input"]], Field(min_length=1)] | None = None
    view: View | None = None

    def wish(self) -> Wish:
        """Return these options in the form that signing a token takes."""
        return Wish(None if self.scopes is None else frozenset(self.scopes), self.view)


def _callable(value: str | None) -> str | None:
    if value is not None:
        webhook_addresses.origin_of(value)
    return value


Webhook = Annotated[
    str,
    Field(max_length=webhook_addresses.MAX_CHARACTERS, description=_WEBHOOK),
    AfterValidator(_callable),
]


class CreateStream(BaseModel):
    """The body of `POST /v1/streams`. `input` is what the generator answers: any JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    generator: Name | None = None
    metadata: Annotated[dict[Name, Text | bool | int | Finite], at_most(32)] = Field(
        default_factory=dict, max_length=32
    )
    on_worker_lost: Literal["continue", "retry", "fail"] | None = Field(None, description=_ON_WORKER_LOST)
    max_duration_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    queue_timeout_seconds: Seconds | None = None
    cancel_when_unwatched_seconds: Seconds | None = None
    priority: Priority = Field(
        "normal",
        description="How soon its turn comes while streams wait for a worker: a `high` stream of a tenant counts an "
        "eighth of a `normal` one, and a `low` one eight times as much.",
    )
    start_after: Moment | None = Field(
        None, description=f"No worker starts it before this time: at most {MAX_START_DAYS} days ahead."
    )
    webhook: Webhook | None = None
    token: TokenOptions = Field(default_factory=TokenOptions)

    @field_validator("input", "metadata")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        return storable(value)


class CreateExternal(BaseModel):
    """The body of `POST /v1/streams` for a stream that a producer writes over HTTP.

    No generator gets `input`. It is kept beside the answer, where the APIs that show an answer's question read it.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    generator: Literal["external"]
    input: Any = None
    metadata: Annotated[dict[Name, Text | bool | int | Finite], at_most(32)] = Field(
        default_factory=dict, max_length=32
    )
    max_duration_seconds: Seconds | None = None
    idle_timeout_seconds: Annotated[Seconds, Field(ge=10)] | None = None
    cancel_when_unwatched_seconds: Seconds | None = None
    webhook: Webhook | None = None
    token: TokenOptions = Field(default_factory=TokenOptions)

    @field_validator("input", "metadata")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        return storable(value)

    @staticmethod
    def is_meant(content: Any) -> bool:
        """Whether a body is for such a stream."""
        return isinstance(content, dict) and content.get("generator") == EXTERNAL

    def as_stream(self) -> CreateStream:
        """Return what it has in common with the streams of generators."""
        return CreateStream(**self.model_dump(exclude={"token"}), token=self.token)


class FindStreams(BaseModel):
    """The query of `GET /v1/streams`, without `metadata.<name>=<value>` and `metadata[<name>]=<value>`."""

    model_config = ConfigDict(extra="forbid")

    before: UUID | None = None
    status: Status | None = None
    limit: int = Field(20, ge=1, le=100)


class GetStream(BaseModel):
    """The query of `GET /v1/streams/{id}`: how many seconds to wait for the stream's end."""

    model_config = ConfigDict(extra="forbid")

    wait: float = Field(0, ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)


class SendInput(BaseModel):
    """The body of `POST /v1/streams/{id}/inputs`. `data` is any JSON but null: what the generator receives."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: JsonValue

    @field_validator("data")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("it is null, which stands for no input")
        return storable(value)


class ReadInputs(BaseModel):
    """The query of `GET /v1/streams/{id}/inputs`: after which number, and how many seconds to wait for the next one."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, le=MAX_SEQ)
    wait: float = Field(0, ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)


class FollowEvents(BaseModel):
    """The query of `GET /v1/streams/{id}/events`, without the cursor."""

    view: View | None = None
    batch_window_ms: int = Field(0, ge=0, le=10_000)
    snapshot: bool = False


class ListStreams(BaseModel):
    """The query of `GET /console/streams`: streams whose id begins with `id`, older than `before`, with a status."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field("", max_length=36, pattern=r"^[0-9a-fA-F-]*$")
    before: UUID | None = None
    status: Status | Literal["live"] | None = None


class ShowSince(BaseModel):
    """The query of `GET /console/overview`: only samples after this time, in seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    since: float = Field(0, allow_inf_nan=False)


def take_filters(query: dict[str, str]) -> dict[str, str]:
    """Remove the metadata filters from a query; return the wanted values by the names of the metadata.

    Clients that are generated from the OpenAPI document write `metadata.chat=42` as `metadata[chat]=42`.

    Raises:
        InvalidRequest: a name appears in both forms.
    """
    given = [(name, found) for name in query if (found := _FILTER.fullmatch(name))]
    filters = {found[1] if found[2] is None else found[2]: query.pop(name) for name, found in given}
    if len(filters) < len(given):
        raise InvalidRequest("Send each metadata filter only once, as `metadata.chat=42` or `metadata[chat]=42`.")
    return filters


def metadata_alternatives(filters: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """Return the alternatives that filters match: in `metadata.chat=42` the value may be a string or a number.

    Raises:
        InvalidRequest: there are too many filters, or one holds a NUL.
    """
    if not filters:
        return None
    if len(filters) > _MAX_METADATA_FILTERS:
        raise InvalidRequest(f"A request can have at most {_MAX_METADATA_FILTERS} metadata filters.")
    if any("\0" in name + value for name, value in filters.items()):
        raise InvalidRequest("A metadata filter cannot hold a NUL character.")
    return [
        dict(zip(filters, values, strict=True))
        for values in itertools.product(*(_readings(value) for value in filters.values()))
    ]


def _readings(value: str) -> list[Any]:
    try:
        parsed = orjson.loads(value)
    except ValueError:
        return [value]
    is_number = isinstance(parsed, int | float) and math.isfinite(parsed)
    return [value, parsed] if is_number else [value]
