"""What the console shows, as typed dicts, and how it is made from rows of the database."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from typing_extensions import TypedDict

from ..codes import ENDS
from ..db import pod_rows, worker_rows
from ..db.external_details import ExternalDetails
from ..db.external_streams import Kind
from ..db.streams import Stream
from ..events import Status
from ..outcome import TimingsContent
from ..pod.cluster_sampler import Point
from ..pod.pod import Pod
from ..principal import AuthScope
from .stream_content import AnsweredBy, StreamError, WaitContent, answered_by, timings, wait

# A pod that has not updated its row for this many intervals counts as dead. Its viewers stop counting sooner: the
# viewers of a dead pod reconnect at once, and would count twice.
MISSED_NOTES: Final = 4
MISSED_NOTES_OF_VIEWERS: Final = 2

_EXPLAINED: Final = frozenset(end.code for end in ENDS)


class PodContent(TypedDict):
    """A pod's row. `alive`: the row was updated recently. `subscribers`: null if it was not updated just now."""

    id: str
    name: str
    version: str
    started_at: datetime
    silent_seconds: float
    alive: bool
    state: pod_rows.PodState
    listener: str
    subscribers: int | None
    connections: int


class WorkerContent(TypedDict):
    """A worker that has not stopped. `tokens`: how many it has generated."""

    id: str
    name: str
    generators: list[str]
    concurrency: int
    running: int
    tokens: int
    started_at: datetime
    silent_seconds: float
    alive: bool


class PointContent(TypedDict):
    """The numbers of all pods and workers together, in the `seconds` before `at` (seconds since 1970).

    Delays are from commit to socket; null if nothing was sent.
    """

    at: float
    seconds: float
    tokens: int
    p50_delay_seconds: float | None
    p95_delay_seconds: float | None


class LiveContent(TypedDict):
    """How many streams of the caller's tenant are queued, waiting for an input, and running or open.

    Counting stops at `counted_up_to`.
    """

    queued: int
    waiting: int
    running: int
    counted_up_to: int


class QueueContent(TypedDict):
    """How many streams of all tenants wait for a worker, and how long the first of them has waited."""

    streams: int
    oldest_seconds: float


class Surroundings(TypedDict):
    """The part of the overview that comes from the database.

    `needs_worker`: a worker is alive, or should be. Streams that producers write need none.
    """

    live: LiveContent
    queue: QueueContent
    pods: list[PodContent]
    workers: list[WorkerContent]
    needs_worker: bool


class OverviewContent(Surroundings):
    """Everything that the console shows except streams, what its key may do, and which pod answers."""

    pod: str
    version: str
    tenant: str
    anonymous: bool
    scopes: list[AuthScope]
    points: list[PointContent]


class ConsoleError(StreamError):
    """Why a stream failed. `entry`: the path of the page that explains the code; null if there is none."""

    doc_url: str | None


class ConsoleExternal(TypedDict):
    """How an external stream is written.

    `path`: below `/v1/stream/`; null if it is the id. `heard_at`: when a producer last appended, or held a request for
    the stream's end. `producer_ids`: the first few; an empty one stands for appends that name no producer.
    """

    kind: Kind
    content_type: str
    path: str | None
    heard_at: datetime
    size_bytes: int
    producers: int
    producer_ids: list[str]


class ConsoleStream(TypedDict):
    """State and numbers of a stream.

    `run`: how often a worker has started it. `interruption`: why the worker before gave it back or lost it, or why its
    wait ended. `waiting`: since when and until when it waits; what for is the generator's, so it is not here.
    `time_to_first_token_seconds`: null before the first token. `events`: the number of the newest event. `viewers`:
    null if the stream is too old. `silent_seconds`: how long its generator has yielded nothing; null if that is short.
    `external`: null for streams of generators.
    """

    id: str
    status: Status
    generator: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    run: int
    attempts: int
    interruption: str | None
    waiting: WaitContent | None
    finish_reason: str | None
    error: ConsoleError | None
    usage: dict[str, Any] | None
    answered_by: AnsweredBy | None
    time_to_first_token_seconds: float | None
    timings: TimingsContent | None
    events: int
    viewers: int | None
    silent_seconds: float | None
    external: ConsoleExternal | None


class ConsolePage(TypedDict):
    """A page of streams, newest first. More may follow, with ids below `next`. `at`: when they were read."""

    at: datetime
    data: list[ConsoleStream]
    next: str | None


def stream_content(
    item: Stream,
    tail: int,
    errors_page: str,
    *,
    viewers: int | None,
    silent_seconds: float | None,
    external: ExternalDetails | None,
) -> ConsoleStream:
    """Return what the console shows about a stream whose newest event has the number `tail`."""
    return {
        "id": str(item.id),
        "status": item.status,
        "generator": item.generator,
        "created_at": item.created_at,
        "started_at": item.started_at,
        "finished_at": item.finished_at,
        "cancel_requested_at": item.cancel_requested_at,
        "run": item.run,
        "attempts": item.attempts,
        "interruption": item.interruption,
        "waiting": wait(item),
        "finish_reason": item.finish_reason,
        "error": _error(item, errors_page),
        "usage": None if item.usage is None else dict(item.usage),
        "answered_by": answered_by(item),
        "time_to_first_token_seconds": _first_token_seconds(item, external),
        "timings": timings(item),
        "events": tail,
        "viewers": viewers,
        "silent_seconds": silent_seconds,
        "external": None if external is None else _external(external),
    }


def _first_token_seconds(item: Stream, external: ExternalDetails | None) -> float | None:
    """Return how long the first token took. The row of an open stream does not have it yet."""
    if external is None or external.first_token_at is None or item.ended:
        return item.time_to_first_token_seconds
    return (external.first_token_at - item.created_at).total_seconds()


def _external(item: ExternalDetails) -> ConsoleExternal:
    return {
        "kind": item.kind,
        "content_type": item.content_type,
        "path": item.path,
        "heard_at": item.heard_at,
        "size_bytes": item.size_bytes,
        "producers": item.producers,
        "producer_ids": list(item.producer_ids),
    }


def _error(item: Stream, errors_page: str) -> ConsoleError | None:
    if item.error_code is None:
        return None
    entry = f"{errors_page}#{item.error_code}" if item.error_code in _EXPLAINED else None
    return {"code": item.error_code, "message": item.error_message, "doc_url": entry}


def _alive(pod: Pod, item: pod_rows.ListedPod) -> bool:
    return _has_noted(pod, item, MISSED_NOTES)


def counts_viewers(pod: Pod, item: pod_rows.ListedPod) -> bool:
    """Whether the viewers in a pod's row still count; `pod` is the pod that asks."""
    return _has_noted(pod, item, MISSED_NOTES_OF_VIEWERS)


def _has_noted(pod: Pod, item: pod_rows.ListedPod, intervals: int) -> bool:
    return not item.replaced and item.silent_seconds < intervals * pod.settings.pod_heartbeat_seconds


def pod_content(pod: Pod, item: pod_rows.ListedPod) -> PodContent:
    """Return what the console shows about a pod; `pod` is the pod that asks."""
    return {
        "id": str(item.id),
        "name": item.name,
        "version": item.version,
        "started_at": item.started_at,
        "silent_seconds": item.silent_seconds,
        "alive": _alive(pod, item),
        "state": item.state,
        "listener": item.listener,
        "subscribers": item.subscribers if counts_viewers(pod, item) else None,
        "connections": item.connections,
    }


def worker_content(pod: Pod, item: worker_rows.ListedWorker) -> WorkerContent:
    """Return what the console shows about a worker."""
    return {
        "id": str(item.id),
        "name": item.name,
        "generators": list(item.generators),
        "concurrency": item.concurrency,
        "running": item.running,
        "tokens": item.tokens,
        "started_at": item.started_at,
        "silent_seconds": item.silent_seconds,
        "alive": item.silent_seconds < pod.settings.lease_seconds,
    }


def point_content(point: Point) -> PointContent:
    """Return one point of the console's charts."""
    return {
        "at": point.at,
        "seconds": point.seconds,
        "tokens": point.tokens,
        "p50_delay_seconds": point.p50_delay_seconds,
        "p95_delay_seconds": point.p95_delay_seconds,
    }
