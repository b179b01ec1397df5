"""What the native API returns about a stream, as typed dicts, and how it is made from the stream's row."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict

from ..codes import EndCode
from ..db.streams import Stream
from ..events import FinalStatus, Status
from ..outcome import Timings, TimingsContent
from ..principal import View
from ..snapshot import Snapshot, ToolCall
from ..usage import AttemptUsage


class StreamError(TypedDict):
    """Why a stream failed. A generator may give codes of its own."""

    code: EndCode | str
    message: str | None


class FailedModelCall(TypedDict):
    """A call of a model that failed before its first event; `waited_seconds` is the pause after it."""

    name: str
    model: NotRequired[str]
    error: EndCode | str
    status: NotRequired[int]
    request_id: NotRequired[str]
    waited_seconds: float


class AnsweredBy(TypedDict):
    """The model that answered, by the name that Baton knows it by, and the calls that failed before."""

    name: str | None
    model: str | None
    provider: str | None
    response_id: str | None
    request_id: str | None
    attempts: list[FailedModelCall]


# `for` is a keyword of Python.
WaitContent = TypedDict("WaitContent", {"for": NotRequired[Any], "until": datetime, "since": datetime})
WaitContent.__doc__ = (
    "A wait for an input. `for` is what the generator gave; lists leave it out. `until` is when the stream continues "
    "without an input, or fails with `wait_timeout`."
)


class StreamContent(TypedDict):
    """A stream and its state.

    `run` says how often a worker has started its generator: 0 while it waits for the first, and for an external stream.
    `start_after` is the time before which no worker starts it, if its creator gave one. `priority` is left out if it is
    normal.
    `interruption` is why the worker before did not finish it: `worker_lost` if it died, `worker_left` if it was
    deployed or stopped, `input` or `deadline` if it waited and that ended the wait; null if none gave it up.
    `waiting` is null unless the status is `waiting`.
    `usage` is the sum of what its generator has reported in all attempts. `usage_by_attempt` has that of each attempt
    if several used something. `answered_by` says which model of the built-in providers answered, and which calls of
    models failed before that; it is null for other generators, and before the end.
    """

    id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Status
    generator: str
    metadata: dict[str, str | bool | int | float]
    events_url: str
    created_at: datetime
    start_after: datetime | None
    priority: NotRequired[Literal["low", "high"]]
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    run: int
    interruption: str | None
    waiting: WaitContent | None
    finish_reason: str | None
    error: StreamError | None
    usage: dict[str, Any] | None
    usage_by_attempt: list[AttemptUsage] | None
    answered_by: AnsweredBy | None
    timings: TimingsContent | None


class StreamWithAnswer(StreamContent):
    """A stream, its state, and its answer so far: up to the event with the number `last_event_id`."""

    last_event_id: int
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    tool_results: list[dict[str, Any]]
    tool_approvals: NotRequired[list[dict[str, Any]]]


class CreatedStream(StreamContent):
    """A stream, its state, and a token for its clients if the pod has a key to sign one with."""

    token: str | None


class ProducerContent(TypedDict):
    """Where the producer of an external stream appends, and a token for that if the pod has a key to sign one with."""

    url: str
    token: str | None


class CreatedExternal(CreatedStream):
    """An external stream, its state, and how it is written."""

    producer: ProducerContent


class StreamEnd(TypedDict):
    """How a stream ended."""

    status: FinalStatus
    finish_reason: str | None
    error: StreamError | None


class TokenContent(TypedDict):
    """A token of one stream, and when it expires."""

    token: str
    expires_at: datetime | None


class StreamAnswer(TypedDict):
    """What a token that sees only the answer gets about a stream."""

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
    """A page of streams, newest first. `next` is the path of the next page; null on the last one.

    A page may be short, or empty, and still have a next one.
    """

    data: list[StreamContent]
    next: str | None


def seen(described: StreamContent, view: View) -> StreamContent | StreamAnswer:
    """Return the part of a stream's description that a view shows."""
    if view == "full":
        return described
    shown = {name: value for name, value in described.items() if name in StreamAnswer.__annotations__}
    return cast("StreamAnswer", shown)


def describe(stream: Stream, events_url: str) -> StreamContent:
    """Return a stream's row as the API shows it to callers with the full view."""
    content: StreamContent = {
        "id": str(stream.id),
        "status": stream.status,
        "generator": stream.generator,
        "metadata": dict(stream.metadata),
        "events_url": events_url,
        "created_at": stream.created_at,
        "start_after": stream.start_after,
        "started_at": stream.started_at,
        "finished_at": stream.finished_at,
        "cancel_requested_at": stream.cancel_requested_at,
        "run": stream.run,
        "interruption": stream.interruption,
        "waiting": wait(stream),
        "finish_reason": stream.finish_reason,
        "error": _error(stream),
        "usage": None if stream.usage is None else dict(stream.usage),
        "usage_by_attempt": None if stream.usage_by_attempt is None else list(stream.usage_by_attempt),
        "answered_by": answered_by(stream),
        "timings": timings(stream),
    }
    if stream.priority:
        content["priority"] = "high" if stream.priority > 0 else "low"
    return content


def describe_end(stream: Stream) -> StreamEnd:
    """Return how an ended stream ended."""
    status = cast("FinalStatus", stream.status)
    return {"status": status, "finish_reason": stream.finish_reason, "error": _error(stream)}


def describe_with_answer(described: StreamContent, snapshot: Snapshot) -> StreamWithAnswer:
    """Return a stream and its answer so far. The usage is in the row after the end, and in the answer before it.

    Of a wait, the row has the times, and the log has what the generator gave. If the wait began or ended between the
    two reads, the row counts.
    """
    answer = snapshot.as_dict()
    if described["usage"] is not None:
        answer["usage"] = described["usage"]
    answer.pop("waiting", None)
    waiting = described["waiting"]
    if waiting is not None and snapshot.waiting is not None:
        waiting = {"for": snapshot.waiting["for"], **waiting}
    return {**described, **answer, "waiting": waiting}


def _error(stream: Stream) -> StreamError | None:
    return None if stream.error_code is None else {"code": stream.error_code, "message": stream.error_message}


def wait(stream: Stream) -> WaitContent | None:
    """Return since when and until when a stream waits; None if it does not wait."""
    if stream.status != "waiting" or stream.waiting_since is None or stream.wait_until is None:
        return None
    return {"since": stream.waiting_since, "until": stream.wait_until}


def answered_by(stream: Stream) -> AnsweredBy | None:
    """Return which model answered; None before the end, and for generators that do not say so."""
    return cast("AnsweredBy | None", stream.answered_by)


def timings(stream: Stream) -> TimingsContent | None:
    """Return how long a stream took; None before its end."""
    if stream.duration_seconds is None:
        return None
    return Timings(stream.duration_seconds, stream.time_to_first_token_seconds, stream.tokens or 0).as_dict()
