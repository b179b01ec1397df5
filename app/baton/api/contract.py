"""What each route takes and gives, for `openapi_document`. Tests hold it to what the routes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel

from ..dialects.chat import Completion
from ..errors import (
    AnswerRunning,
    BodyTimeout,
    ConversationChanged,
    ConversationGone,
    CreateRateLimited,
    CursorBeyondTail,
    Forbidden,
    IdempotencyConflict,
    InputTooLarge,
    InternalError,
    InvalidRequest,
    LogDamaged,
    MalformedCursor,
    NotHere,
    OldProtocol,
    PodFull,
    ReadRateLimited,
    RequestError,
    RequestMemoryFull,
    RequestTooLarge,
    StillRunning,
    StreamExpired,
    StreamNotFound,
    TooManyQueries,
    TooManyStreams,
    TooManySubscribers,
    Unauthenticated,
    Unavailable,
    UnknownGenerator,
    UnknownModel,
)
from ..principal import AuthScope
from .aisdk import SendMessage, SendMessages, Stopped
from .chat import CreateCompletion
from .console import ConsolePage, OverviewContent
from .event_types import CompletionChunk, CompletionFailure, Event, ResponseEvent, UIMessageChunk
from .models import (
    CreatedStream,
    CreateStream,
    FindStreams,
    FollowEvents,
    GetStream,
    ListStreams,
    ShowSince,
    StreamAnswer,
    StreamContent,
    StreamPage,
    StreamWithAnswer,
    TokenContent,
    TokenOptions,
)
from .openai import ModelContent, ModelList
from .operations import Health, Readiness
from .responses import CreateResponse, DeletedResponse, ItemList, ListItems, ResponseContent, RetrieveResponse

EVENTS: Final = "text/event-stream"
TEXT: Final = "text/plain"
JSON: Final = "application/json"
HTML: Final = "text/html"

# The forms that errors have.
Form = Literal["problem", "openai"]
Method = Literal["GET", "POST", "DELETE"]


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: of a media type each, the type of its JSON or of each event's data, or what its text is."""

    description: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """A route by one of its methods.

    `others` are the answers of a further form, each by what the client asks for it with.
    """

    tag: str
    scope: AuthScope | None
    answers: Mapping[int, Given]
    refusals: tuple[type[RequestError], ...] = ()
    form: Form = "problem"
    body: Any = None  # a model of pydantic, or a union of some
    body_required: bool = True
    query: tuple[type[BaseModel], ...] = ()
    parameters: tuple[str, ...] = ()
    others: Mapping[str, Mapping[int, Given]] = field(default_factory=dict)


# What any route may say that needs the database, and a credential.
_GUARDED: Final = (Unauthenticated, Forbidden, InternalError, Unavailable)
_READING: Final = (*_GUARDED, ReadRateLimited, TooManyQueries)
_STREAM: Final = (*_READING, StreamNotFound, StreamExpired)
_WHOLE: Final = (*_STREAM, LogDamaged)
_CREATING: Final = (
    *_GUARDED,
    TooManyQueries,
    InvalidRequest,
    BodyTimeout,
    RequestTooLarge,
    RequestMemoryFull,
    InputTooLarge,
    IdempotencyConflict,
    CreateRateLimited,
    TooManyStreams,
)
_JOINING: Final = (
    StreamNotFound,
    StreamExpired,
    LogDamaged,
    InvalidRequest,
    CursorBeyondTail,
    OldProtocol,
    TooManySubscribers,
    PodFull,
)
_FOLLOWING: Final = (*_READING, *_JOINING)

_DATA: Final = "The `data` of each event is one `Event`, its `id` the event's number."
_PLAIN: Final = "The text of the answer as it comes. A connection that is cut says that the answer is not whole."
_RESPONSE_EVENTS: Final = "The events of OpenAI's Responses API."
_CHUNKS: Final = "The chunks of OpenAI's Chat Completions, and `[DONE]` after the last one."
_UI_CHUNKS: Final = "the chunks of the AI SDK's UI message stream, and `[DONE]` after the last one"
_RUN: Final = ("x-workflow-run-id",)
_CREATED: Final = ("location", "x-baton-token")

_ACCEPT_EVENTS: Final = "Accept: text/event-stream"
_ACCEPT_TEXT: Final = "Accept: text/plain"
_STREAMED: Final = '"stream": true'

OPERATIONS: Final[dict[tuple[Method, str], Operation]] = {
    ("POST", "/v1/streams"): Operation(
        "streams",
        "create",
        {
            200: Given("The stream that this `Idempotency-Key` created before.", {JSON: CreatedStream}, _CREATED),
            201: Given("The new stream.", {JSON: CreatedStream}, _CREATED),
        },
        (*_CREATING, *_JOINING, MalformedCursor, UnknownGenerator),
        body=CreateStream,
        query=(FollowEvents,),
        parameters=("Idempotency-Key", "Last-Event-ID", "last_event_id"),
        others={
            _ACCEPT_EVENTS: {
                200: Given(f"The stream's events. {_DATA}", {EVENTS: Event}, _CREATED),
                204: Given("The client has all events of the stream that its `Idempotency-Key` created before."),
            },
            _ACCEPT_TEXT: {200: Given("The stream's text.", {TEXT: _PLAIN}, _CREATED)},
        },
    ),
    ("GET", "/v1/streams"): Operation(
        "streams",
        "read",
        {
            200: Given(
                "The newest streams, or those before one. A page may be short, or empty, while `next` says where to "
                "continue: one request looks at 2,000 streams at most.",
                {JSON: StreamPage},
            )
        },
        (*_READING, InvalidRequest),
        query=(FindStreams,),
        parameters=("metadata",),
    ),
    ("GET", "/v1/streams/{id}"): Operation(
        "streams",
        "read",
        {200: Given("The stream, and its answer so far.", {JSON: StreamWithAnswer | StreamAnswer})},
        (*_WHOLE, InvalidRequest),
        query=(GetStream,),
    ),
    ("DELETE", "/v1/streams/{id}"): Operation("streams", "admin", {204: Given("It is no more.")}, _STREAM),
    ("GET", "/v1/streams/{id}/events"): Operation(
        "streams",
        "read",
        {
            200: Given(
                f"The events after the cursor, those in the log first, then those to come. {_DATA} A passing trouble "
                "is answered with an empty stream and a time to come back (`retry:`), but for clients that accept "
                "`application/problem+json`.",
                {EVENTS: Event},
            ),
            204: Given("The client has all events."),
        },
        (*_FOLLOWING, MalformedCursor),
        query=(FollowEvents,),
        parameters=("Last-Event-ID", "last_event_id"),
        others={_ACCEPT_TEXT: {200: Given("The stream's text from its beginning.", {TEXT: _PLAIN})}},
    ),
    ("POST", "/v1/streams/{id}/cancel"): Operation(
        "streams",
        "cancel",
        {
            200: Given("It has ended.", {JSON: StreamContent | StreamAnswer}),
            202: Given("Its generator was asked to stop.", {JSON: StreamContent | StreamAnswer}),
        },
        _STREAM,
    ),
    ("POST", "/v1/streams/{id}/token"): Operation(
        "streams",
        "read",
        {201: Given("A token that allows what the caller may do, or less.", {JSON: TokenContent})},
        (*_STREAM, InvalidRequest, RequestTooLarge, RequestMemoryFull, NotHere),
        body=TokenOptions,
        body_required=False,
    ),
    ("POST", "/v1/responses"): Operation(
        "OpenAI",
        "create",
        {200: Given("The Response.", {JSON: ResponseContent})},
        (*_CREATING, *_JOINING, UnknownModel, StillRunning),
        "openai",
        body=CreateResponse,
        parameters=("Idempotency-Key",),
        others={_STREAMED: {200: Given(_RESPONSE_EVENTS, {EVENTS: ResponseEvent})}},
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        "OpenAI",
        "read",
        {200: Given("The Response.", {JSON: ResponseContent})},
        _FOLLOWING,
        "openai",
        query=(RetrieveResponse,),
        others={"stream=true": {200: Given(_RESPONSE_EVENTS, {EVENTS: ResponseEvent})}},
    ),
    ("DELETE", "/v1/responses/{id}"): Operation(
        "OpenAI", "admin", {200: Given("It is no more.", {JSON: DeletedResponse})}, _STREAM, "openai"
    ),
    ("POST", "/v1/responses/{id}/cancel"): Operation(
        "OpenAI", "cancel", {200: Given("The Response.", {JSON: ResponseContent})}, _WHOLE, "openai"
    ),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        "OpenAI",
        "read",
        {200: Given("What it was created from.", {JSON: ItemList})},
        (*_STREAM, InvalidRequest),
        "openai",
        query=(ListItems,),
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "OpenAI",
        "create",
        {
            200: Given("The completion.", {JSON: Completion}),
            409: Given("The answer was cancelled."),
            429: Given("The model provider limits requests."),
            500: Given("The answer failed."),
        },
        (*_CREATING, *_JOINING, UnknownModel, StillRunning),
        "openai",
        body=CreateCompletion,
        parameters=("Idempotency-Key",),
        others={_STREAMED: {200: Given(_CHUNKS, {EVENTS: CompletionChunk | CompletionFailure})}},
    ),
    ("GET", "/v1/models"): Operation(
        "OpenAI", "read", {200: Given("The models.", {JSON: ModelList})}, _READING, "openai"
    ),
    ("GET", "/v1/models/{name}"): Operation(
        "OpenAI", "read", {200: Given("The model.", {JSON: ModelContent})}, (*_READING, UnknownModel), "openai"
    ),
    ("POST", "/v1/ai-sdk/chat"): Operation(
        "AI SDK",
        "create",
        {200: Given(f"The answer: {_UI_CHUNKS}.", {EVENTS: UIMessageChunk}, _RUN)},
        (*_CREATING, *_JOINING, UnknownGenerator, AnswerRunning, ConversationChanged, ConversationGone),
        body=SendMessages | SendMessage,
        parameters=("Idempotency-Key",),
    ),
    ("GET", "/v1/ai-sdk/chat/{chat}/stream"): Operation(
        "AI SDK",
        "read",
        {
            200: Given(
                f"From `startIndex` on: {_UI_CHUNKS}.",
                {EVENTS: UIMessageChunk},
                (*_RUN, "x-workflow-stream-tail-index"),
            ),
            204: Given("There is nothing under way."),
        },
        _FOLLOWING,
        parameters=("startIndex",),
    ),
    ("POST", "/v1/ai-sdk/chat/{chat}/stop"): Operation(
        "AI SDK",
        "cancel",
        {
            200: Given("It has ended.", {JSON: Stopped}),
            202: Given("Its generator was asked to stop.", {JSON: Stopped}),
            204: Given("There is nothing to stop."),
        },
        (*_STREAM, InvalidRequest),
    ),
    ("GET", "/healthz"): Operation("platform", None, {200: Given("It is alive.", {JSON: Health})}, (InternalError,)),
    ("GET", "/readyz"): Operation(
        "platform",
        None,
        {
            200: Given("Send clients here.", {JSON: Readiness}),
            503: Given("Send them elsewhere.", {JSON: Readiness}),
        },
        (InternalError, Unavailable),
    ),
    ("GET", "/metrics"): Operation(
        "platform", "admin", {200: Given("The metrics.", {TEXT: "Prometheus' text format."})}, _GUARDED
    ),
    ("GET", "/openapi.json"): Operation(
        "platform", None, {200: Given("This document.", {JSON: dict[str, Any]})}, (InternalError,)
    ),
    ("GET", "/errors"): Operation(
        "platform", None, {200: Given("What the errors mean.", {HTML: "A page."})}, (InternalError,)
    ),
    ("GET", "/console"): Operation("console", None, {200: Given("The page.", {HTML: "A page."})}, (InternalError,)),
    ("GET", "/assets/{name}"): Operation(
        "console",
        None,
        {
            200: Given(
                "The file.", {"text/css": "A style.", "text/javascript": "A module.", "image/svg+xml": "A picture."}
            )
        },
        (InternalError, NotHere),
    ),
    ("GET", "/console/overview"): Operation(
        "console",
        "admin",
        {200: Given("Pods, workers, and the last minutes.", {JSON: OverviewContent})},
        (*_READING, InvalidRequest),
        query=(ShowSince,),
    ),
    ("GET", "/console/streams"): Operation(
        "console",
        "admin",
        {200: Given("The newest streams, or those before one.", {JSON: ConsolePage})},
        (*_READING, InvalidRequest),
        query=(ListStreams,),
    ),
}
