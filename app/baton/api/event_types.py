"""The events that clients of the native routes get, as JSON, and those of the other dialects in outline.

The clients of these dialects publish the whole types: OpenAI's SDKs, `UIMessageChunk` of the AI SDK, `@ag-ui/core`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypeAliasType, TypedDict

from ..dialects.chat import Head
from ..dialects.openai import ErrorContent
from ..events import FinalStatus
from ..outcome import TimingsContent
from ..snapshot import ToolCall, Waiting
from ..usage import AttemptUsage
from .stream_content import StreamError
from .validation import JsonValue

_OPEN: Final = ConfigDict(extra="allow")


class TextEvent(TypedDict):
    """A chunk of the answer."""

    type: Literal["text"]
    delta: str


class ReasoningEvent(TypedDict):
    """A chunk of the reasoning. Its provider may sign the chunks before it, or send some that only it can read."""

    type: Literal["reasoning"]
    delta: str
    signature: NotRequired[str]
    redacted: NotRequired[str]


class ToolCallEvent(TypedDict):
    """A tool call, or the next chunk of its arguments."""

    type: Literal["tool_call"]
    index: int
    id: NotRequired[str | None]
    name: NotRequired[str | None]
    arguments_delta: NotRequired[str | None]
    run_by: NotRequired[Literal["client", "generator"] | None]


class ToolResultEvent(TypedDict):
    """The result of the tool call with that id."""

    type: Literal["tool_result"]
    id: str
    result: NotRequired[Any]


class ToolApprovalEvent(TypedDict):
    """The generator asks the user to approve the call with that id."""

    type: Literal["tool_approval"]
    id: str


class UsageEvent(TypedDict):
    """What one call of a model used: `input_tokens`, `output_tokens`, and others. A stream's usage is their sum."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["usage"]


_REASON: Final = (
    "`worker_lost`: its worker died. `worker_left`: its worker was deployed or stopped. After `waiting`: `input`, or "
    "`deadline`, when no input came in time. Later releases may add reasons."
)
_RESET_REASON: Final = f"{_REASON} `output_differs`: the answer could not be continued as it began."


# `for` is a keyword of Python.
WaitingEvent = TypedDict(
    "WaitingEvent",
    {
        "type": Literal["waiting"],
        "for": Annotated[Any, Field(description="What the generator gave: any JSON.")],
        "until": Annotated[str | None, Field(json_schema_extra={"format": "date-time"})],
    },
)
WaitingEvent.__doc__ = (
    "The stream waits for an input, without a worker, until this time at most. Then `resumed` follows, or `done`."
)


class ResumedEvent(TypedDict):
    """A worker continues the answer where it is. What came before still counts. `run` counts the starts."""

    type: Literal["resumed"]
    run: int
    reason: Annotated[str, Field(description=_REASON)]


class ResetEvent(TypedDict):
    """Discard what came before: the answer starts again."""

    type: Literal["reset"]
    reason: Annotated[str, Field(description=_RESET_REASON)]


class CustomEvent(TypedDict):
    """An event that a generator and its clients agreed on."""

    type: Literal["custom"]
    name: str
    data: NotRequired[Any]


class SnapshotEvent(TypedDict):
    """The answer so far. It replaces all events up to its number. With `view=answer` it has only the text."""

    type: Literal["snapshot"]
    text: str
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_results: NotRequired[list[dict[str, Any]]]
    tool_approvals: NotRequired[list[dict[str, Any]]]
    usage: NotRequired[dict[str, Any]]
    waiting: NotRequired[Waiting]


class DoneEvent(TypedDict):
    """The end of the stream."""

    type: Literal["done"]
    status: FinalStatus
    finish_reason: str | None
    # The answer view leaves out these three.
    usage: NotRequired[dict[str, Any] | None]
    usage_by_attempt: NotRequired[list[AttemptUsage]]
    timings: NotRequired[TimingsContent]
    error: NotRequired[StreamError]


class ErrorEvent(TypedDict):
    """The stream cannot be followed to its end. This event has no number."""

    type: Literal["error"]
    error: StreamError


Event = TypeAliasType(
    "Event",
    Annotated[
        TextEvent
        | ReasoningEvent
        | ToolCallEvent
        | ToolResultEvent
        | ToolApprovalEvent
        | UsageEvent
        | WaitingEvent
        | ResumedEvent
        | ResetEvent
        | CustomEvent
        | SnapshotEvent
        | DoneEvent
        | ErrorEvent,
        Field(discriminator="type"),
    ],
)


class ResponseEvent(TypedDict):
    """An event of OpenAI's Responses API. Each type has more fields."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int
    delta: NotRequired[str]
    response: NotRequired[dict[str, Any]]


class CompletionDelta(TypedDict):
    """What a chunk adds to the answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


class ChunkChoice(TypedDict):
    """The one choice of a chunk."""

    index: int
    delta: CompletionDelta
    logprobs: None
    finish_reason: str | None


class CompletionChunk(Head):
    """A chunk of OpenAI's Chat Completions. If the client asked for the usage, the last one has no choice."""

    choices: list[ChunkChoice]
    usage: NotRequired[dict[str, Any] | None]


class CompletionFailure(TypedDict):
    """The chunk of an answer that cannot be completed."""

    error: ErrorContent


class UIMessageChunk(TypedDict):
    """A chunk of the AI SDK's UI message stream. Each type has more fields."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: str
    id: NotRequired[str]
    delta: NotRequired[str]
    errorText: NotRequired[str]
    finishReason: NotRequired[str]


class MessageEvent(TypedDict):
    """An event of Anthropic's Messages API. Each type has more fields."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]
    index: NotRequired[int]
    delta: NotRequired[dict[str, Any]]


class LangGraphData(TypedDict):
    """The data of the events `metadata`, `values`, `updates`, `custom` and `error` of LangGraph's server."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    run_id: NotRequired[str]
    attempt: NotRequired[int]
    messages: NotRequired[list[dict[str, Any]]]
    error: NotRequired[str]
    message: NotRequired[str]


# The data of `messages` is a message, or a chunk of one, and an object about it. That of `end` is null. What a node of
# a graph has written may be any JSON.
LangGraphEvent = TypeAliasType("LangGraphEvent", LangGraphData | list[dict[str, Any]] | JsonValue | None)


class AgUiEvent(TypedDict):
    """An event of AG-UI 1.0. Each type has more fields."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal[
        "RUN_STARTED",
        "MESSAGES_SNAPSHOT",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "REASONING_START",
        "REASONING_MESSAGE_START",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_END",
        "REASONING_END",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TOOL_CALL_RESULT",
        "CUSTOM",
        "RUN_FINISHED",
        "RUN_ERROR",
    ]
    messageId: NotRequired[str]
    toolCallId: NotRequired[str]
    delta: NotRequired[str]
