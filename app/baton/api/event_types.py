"""The events of a stream as JSON, as clients of the native routes get them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from ..events import FinalStatus
from ..models import StreamError
from ..outcome import TimingsContent
from ..snapshot import ToolCall
from ..usage import AttemptUsage


class TextEvent(TypedDict):
    """A piece of the answer."""

    type: Literal["text"]
    delta: str


class ReasoningEvent(TypedDict):
    """A piece of the reasoning."""

    type: Literal["reasoning"]
    delta: str


class ToolCallEvent(TypedDict):
    """A call of a tool, or a further piece of its arguments."""

    type: Literal["tool_call"]
    index: int
    id: NotRequired[str | None]
    name: NotRequired[str | None]
    arguments_delta: NotRequired[str | None]
    run_by: NotRequired[Literal["client", "generator"] | None]


class ToolResultEvent(TypedDict):
    """What a tool gave, for the call with that id."""

    type: Literal["tool_result"]
    id: str
    result: NotRequired[Any]


class ToolApprovalEvent(TypedDict):
    """The user is to allow the call with that id."""

    type: Literal["tool_approval"]
    id: str


class UsageEvent(TypedDict):
    """What one call of a model used: `input_tokens`, `output_tokens`, and others. The events of a stream add up."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    type: Literal["usage"]


class ResetEvent(TypedDict):
    """Discard what came before: another worker begins again."""

    type: Literal["reset"]
    reason: str


class CustomEvent(TypedDict):
    """Whatever a generator and its clients agreed on."""

    type: Literal["custom"]
    name: str
    data: NotRequired[Any]


class SnapshotEvent(TypedDict):
    """The answer so far, in place of all events up to this one's number. With `view=answer` it has only the text."""

    type: Literal["snapshot"]
    text: str
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_results: NotRequired[list[dict[str, Any]]]
    tool_approvals: NotRequired[list[dict[str, Any]]]
    usage: NotRequired[dict[str, Any]]


class DoneEvent(TypedDict):
    """The end of the stream."""

    type: Literal["done"]
    status: FinalStatus
    finish_reason: str | None
    # The answer view leaves these three out.
    usage: NotRequired[dict[str, Any] | None]
    usage_by_attempt: NotRequired[list[AttemptUsage]]
    timings: NotRequired[TimingsContent]
    error: NotRequired[StreamError]


class ErrorEvent(TypedDict):
    """The stream cannot be followed to its end. This event has no number."""

    type: Literal["error"]
    error: StreamError


Event: TypeAlias = Annotated[
    TextEvent
    | ReasoningEvent
    | ToolCallEvent
    | ToolResultEvent
    | ToolApprovalEvent
    | UsageEvent
    | ResetEvent
    | CustomEvent
    | SnapshotEvent
    | DoneEvent
    | ErrorEvent,
    Field(discriminator="type"),
]
