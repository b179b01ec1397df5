"""What the native API takes and gives: pydantic models for requests, plain dicts for answers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast
from uuid import UUID

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import TypedDict

from ..auth.tokens import Wish
from ..codes import EndCode
from ..db.streams import Stream
from ..errors import InvalidRequest
from ..events import Status
from ..outcome import Timings, TimingsContent
from ..principal import View
from ..snapshot import Snapshot, ToolCall
from ..usage import AttemptUsage

MAX_WAIT_SECONDS = 60
_MAX_METADATA_FILTERS = 4
# To put 100,000 into words would keep a pod busy for a second.
_MAX_FAULTS_TOLD = 20
_FILTER = re.compile(r"metadata(?:\.(.*)|\[(.*)\])", re.DOTALL)

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
# A list of which the first wrong item is told, and the rest not looked at: a body has room for 500,000.
Items = Annotated[list[Item], Field(fail_fast=True)]


def at_most(entries: int) -> BeforeValidator:
    """Refuse an object with more entries than that before any of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"it may have {entries} entries at most")
        return value

    return BeforeValidator(check)


class TokenOptions(BaseModel):
    """What a stream's token is to allow; what is left out, as much as whoever asks for it may do."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scopes: Annotated[Items[Literal["read", "cancel"]], Field(min_length=1)] | None = None
    view: View | None = None

    def wish(self) -> Wish:
        """For who signs it."""
        return Wish(None if self.scopes is None else frozenset(self.scopes), self.view)


class CreateStream(BaseModel):
    """The body of `POST /v1/streams`. `input` is what the generator is to answer: any JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    generator: Name | None = None
    metadata: Annotated[dict[Name, Text | bool | int | Finite], at_most(32)] = Field(
        default_factory=dict, max_length=32
    )
    on_worker_lost: Literal["retry", "fail"] | None = None
    max_duration_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    queue_timeout_seconds: Seconds | None = None
    cancel_when_unwatched_seconds: Seconds | None = None
    token: TokenOptions = Field(default_factory=TokenOptions)

    @field_validator("input", "metadata")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        return storable(value)


class FindStreams(BaseModel):
    """The query of `GET /v1/streams`, but for `metadata.<name>=<value>` and `metadata[<name>]=<value>`."""

    model_config = ConfigDict(extra="forbid")

    before: UUID | None = None
    status: Status | None = None
    limit: int = Field(20, ge=1, le=100)


class GetStream(BaseModel):
    """The query of `GET /v1/streams/{id}`: how many seconds to wait for the stream's end."""

    model_config = ConfigDict(extra="forbid")

    wait: float = Field(0, ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)


class FollowEvents(BaseModel):
    """The query of `GET /v1/streams/{id}/events`, but for the cursor."""

    view: View | None = None
    batch_window_ms: int = Field(0, ge=0, le=10_000)
    snapshot: bool = False


class StreamError(TypedDict):
    """Why a stream failed. A generator may give codes of its own."""

    code: EndCode | str
    message: str | None


class StreamContent(TypedDict):
    """A stream as it is.

    `usage` is the sum of all that its generator has reported, in every attempt; `usage_by_attempt` has that of each
    attempt if several used something.
    """

    id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Status
    generator: str
    metadata: dict[str, str | bool | int | float]
    events_url: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    finish_reason: str | None
    error: StreamError | None
    usage: dict[str, Any] | None
    usage_by_attempt: list[AttemptUsage] | None
    timings: TimingsContent | None


class StreamWithAnswer(StreamContent):
    """A stream as it is, and its answer so far, up to the event with that id."""

    last_event_id: int
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    tool_results: list[dict[str, Any]]
    tool_approvals: NotRequired[list[dict[str, Any]]]


class CreatedStream(StreamContent):
    """A stream as it is, and a token for its clients where the pod has a key to sign one with."""

    token: str | None


class TokenContent(TypedDict):
    """A token of one stream, and until when it works."""

    token: str
    expires_at: datetime | None


class StreamAnswer(TypedDict):
    """What a token that sees the answer alone is told of a stream."""

    id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Status
    events_url: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    finish_reason: str | None
    error: StreamError | None
    last_event_id: NotRequired[int]
    text: NotRequired[str]


class StreamPage(TypedDict):
    """Some streams, newest first. `next` is the path of the next page, and null on the last one.

    A page may be short, or empty, while there is a next one.
    """

    data: list[StreamContent]
    next: str | None


class ListStreams(BaseModel):
    """The query of `GET /console/streams`: streams whose id begins so, older than `before`, in this state."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field("", max_length=36, pattern=r"^[0-9a-fA-F-]*$")
    before: UUID | None = None
    status: Status | Literal["live"] | None = None


class ShowSince(BaseModel):
    """The query of `GET /console/overview`: only what was sampled after this moment, in seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    since: float = Field(0, allow_inf_nan=False)


def storable(value: Any) -> Any:
    """Refuse what can be read and yet not be stored: deep nesting, and whole numbers of more than 64 bits.

    Raises:
        ValueError: it cannot be stored as JSON.
    """
    try:
        # With room for what answers put around it.
        orjson.dumps([[[[[[value]]]]]])
    except TypeError as error:
        raise ValueError(f"cannot be stored as JSON: {error}") from None
    return value


def validated(model: type[Model], content: Any) -> Model:
    """Check a body or a query.

    Raises:
        InvalidRequest: with a sentence for each thing that is wrong.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        if error.error_count() > _MAX_FAULTS_TOLD:
            raise InvalidRequest(f"{error.error_count()} things in it are not as they must be.") from None
        found = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {_sentence(item)}" for item in error.errors()]
        raise InvalidRequest("; ".join(found)[:1000] + ".") from None


def _sentence(error: Any) -> str:
    if error["type"] in {"model_type", "model_attributes_type"}:
        return "it must be a JSON object"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")


def take_filters(query: dict[str, str]) -> dict[str, str]:
    """Take the metadata filters out of a query; return the wanted values by the names of the metadata.

    `metadata[chat]=42` is how clients that are generated from the OpenAPI document write `metadata.chat=42`.

    Raises:
        InvalidRequest: one name is there in both forms.
    """
    given = [(name, found) for name in query if (found := _FILTER.fullmatch(name))]
    filters = {found[1] if found[2] is None else found[2]: query.pop(name) for name, found in given}
    if len(filters) < len(given):
        raise InvalidRequest("A metadata filter can come once only, as `metadata.chat=42` or `metadata[chat]=42`.")
    return filters


def metadata_alternatives(filters: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """Turn the filter of `metadata.chat=42` into what to look for: a query cannot tell the string from the number.

    Raises:
        InvalidRequest: there are too many filters, or one holds a NUL.
    """
    if not filters:
        return None
    if len(filters) > _MAX_METADATA_FILTERS:
        raise InvalidRequest(f"At most {_MAX_METADATA_FILTERS} metadata filters can be used at once.")
    if any("\0" in name + value for name, value in filters.items()):
        raise InvalidRequest("A metadata filter cannot hold a NUL character.")
    return [
        dict(zip(filters, values, strict=True))
        for values in itertools.product(*(_readings(value) for value in filters.values()))
    ]


def seen(described: StreamContent, view: View) -> StreamContent | StreamAnswer:
    """What of a stream's description a view shows."""
    if view == "full":
        return described
    shown = {name: value for name, value in described.items() if name in StreamAnswer.__annotations__}
    return cast("StreamAnswer", shown)


def describe(stream: Stream, events_url: str) -> StreamContent:
    """A stream's row as the API gives it, to those who may see the whole of it."""
    return {
        "id": str(stream.id),
        "status": stream.status,
        "generator": stream.generator,
        "metadata": dict(stream.metadata),
        "events_url": events_url,
        "created_at": stream.created_at,
        "started_at": stream.started_at,
        "finished_at": stream.finished_at,
        "cancel_requested_at": stream.cancel_requested_at,
        "finish_reason": stream.finish_reason,
        "error": _error(stream),
        "usage": None if stream.usage is None else dict(stream.usage),
        "usage_by_attempt": None if stream.usage_by_attempt is None else list(stream.usage_by_attempt),
        "timings": timings(stream),
    }


def describe_with_answer(described: StreamContent, snapshot: Snapshot) -> StreamWithAnswer:
    """A stream and its answer so far. The row has the usage once the stream has ended, the answer until then."""
    answer = snapshot.as_dict()
    if described["usage"] is not None:
        answer["usage"] = described["usage"]
    return {**described, **answer}


def _error(stream: Stream) -> StreamError | None:
    return None if stream.error_code is None else {"code": stream.error_code, "message": stream.error_message}


def timings(stream: Stream) -> TimingsContent | None:
    """How long a stream took; None before its end."""
    if stream.duration_seconds is None:
        return None
    return Timings(stream.duration_seconds, stream.time_to_first_token_seconds, stream.tokens or 0).as_dict()


def _readings(value: str) -> list[Any]:
    try:
        parsed = orjson.loads(value)
    except ValueError:
        return [value]
    is_number = isinstance(parsed, int | float) and math.isfinite(parsed)
    return [value, parsed] if is_number else [value]
