"""The console: a page for those who run Baton, and what it asks for every second or two.

The page is public, since it holds nothing. What it asks for needs the scope `admin`, which reads no conversation: of
streams it gets how they do, and only of the caller's tenant. However many consoles are open, a pod asks the database
once a second for each thing that they show, and each of these questions has a bounded cost.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from ..codes import ENDS
from ..db import event_log, pod_rows, stream_lists, streams, worker_rows
from ..db.postgres import translated
from ..db.stream_lists import StreamFilter
from ..db.streams import Stream
from ..events import Status
from ..outcome import TimingsContent
from ..pod.cluster_sampler import Point
from ..pod.pod import Pod
from ..principal import AuthScope, Principal
from ..version import __version__
from . import pages, problems
from .models import ListStreams, ShowSince, StreamError, timings, validated
from .request import AsgiResponse, answered, json_answer, pod_of, principal_of, query_of

STREAMS_PER_PAGE: Final = 50
# A pod that has noted nothing for this many intervals counts as dead. After fewer, its viewers count no more: those of
# a dead pod reconnect at once, and would count twice.
MISSED_NOTES: Final = 4
MISSED_NOTES_OF_VIEWERS: Final = 2
FILES: Final = frozenset(
    (
        *("answer.js", "baton.css", "chart.js", "console.js", "dom.js", "follow.js", "icon.svg", "markdown.js"),
        *("markdown_nodes.js", "marked.js", "marked.LICENSE.md", "process.js", "scrolling.js", "stream.js"),
    )
)

_EXPLAINED: Final = frozenset(end.code for end in ENDS)
_HEX_DIGITS: Final = 32


class PodContent(TypedDict):
    """A pod, as it last noted itself. `alive`: it has noted lately. `subscribers`: null if it has not just noted."""

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
    """A worker that has not left. `tokens`: how many it has generated."""

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
    """What happened in the seconds before a moment, which is in seconds since 1970: in all pods and workers together.

    Delays are from commit to socket; null where nothing was sent.
    """

    at: float
    seconds: float
    tokens: int
    p50_delay_seconds: float | None
    p95_delay_seconds: float | None


class LiveContent(TypedDict):
    """How many streams of the caller's tenant have not ended, up to `counted_up_to` together."""

    queued: int
    running: int
    counted_up_to: int


class QueueContent(TypedDict):
    """How many streams of all tenants wait for a worker, and for how long the first of them has."""

    streams: int
    oldest_seconds: float


class Surroundings(TypedDict):
    """What the database says of all processes, and of the caller's tenant."""

    live: LiveContent
    queue: QueueContent
    pods: list[PodContent]
    workers: list[WorkerContent]


class OverviewContent(Surroundings):
    """What the console shows but for streams, what its key may do, and which pod says so."""

    pod: str
    version: str
    tenant: str
    anonymous: bool
    scopes: list[AuthScope]
    points: list[PointContent]


class ConsoleError(StreamError):
    """Why a stream failed, and the path of what explains that code, where there is such."""

    doc_url: str | None


class ConsoleStream(TypedDict):
    """State and numbers of a stream.

    `time_to_first_token_seconds`: null until there is a token. `events`: the number of the newest event. `viewers`:
    null where the stream is too old. `silent_seconds`: for how long its generator has yielded nothing; null while that
    is not long.
    """

    id: str
    status: Status
    generator: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    attempts: int
    finish_reason: str | None
    error: ConsoleError | None
    usage: dict[str, Any] | None
    time_to_first_token_seconds: float | None
    timings: TimingsContent | None
    events: int
    viewers: int | None
    silent_seconds: float | None


class ConsolePage(TypedDict):
    """Some streams, newest first. There may be more before the id `next`. `at`: when they were looked at."""

    at: datetime
    data: list[ConsoleStream]
    next: str | None


async def console(request: Request) -> AsgiResponse:
    """Give the console's page."""
    return pages.answer(request, "console.html", {"console.html"})


async def asset(request: Request) -> AsgiResponse:
    """Give a file of the console's page."""
    return pages.answer(request, request.path_params["name"], FILES)


async def overview(request: Request) -> AsgiResponse:
    """Tell which pods and workers live, and what happened in the last minutes."""
    since = validated(ShowSince, query_of(request)).since
    pod, principal = pod_of(request), principal_of(request)
    known = await pod.recent_answers.get(("overview", principal.tenant), lambda: _look_around(pod, principal.tenant))
    content: OverviewContent = {
        "pod": pod.settings.pod_name,
        "version": __version__,
        "tenant": principal.tenant,
        "anonymous": pod.gate.anonymous,
        "scopes": sorted(principal.scopes),
        **known,
        "points": [_point(point) for point in pod.sampler.points if point.at > since],
    }
    return json_answer(request, content)


async def list_streams(request: Request) -> AsgiResponse:
    """Tell how the newest streams of the caller's tenant do."""
    wanted = validated(ListStreams, query_of(request))
    pod, principal = pod_of(request), principal_of(request)
    page = problems.address(request, problems.PAGE)
    content = await pod.recent_answers.get(
        ("streams", principal.tenant, wanted.model_dump_json(), page),
        lambda: _look_at_streams(pod, principal, wanted, page),
    )
    return json_answer(request, content)


ROUTES = [
    Route("/console", answered(console, None), methods=["GET"], name="console"),
    Route("/assets/{name}", answered(asset, None), methods=["GET"]),
    Route("/console/overview", answered(overview, "admin"), methods=["GET"]),
    Route("/console/streams", answered(list_streams, "admin"), methods=["GET"]),
]


async def _look_around(pod: Pod, tenant: str) -> Surroundings:
    async with translated(pod.pool), pod.pool.acquire() as connection:
        queued, oldest_seconds = await pod.queue_state(connection)
        waiting, running = await stream_lists.live_counts(connection, tenant)
        return {
            "live": LiveContent(queued=waiting, running=running, counted_up_to=stream_lists.MAX_SCANNED),
            "queue": QueueContent(streams=queued, oldest_seconds=oldest_seconds),
            "pods": [_pod(pod, item) for item in await pod_rows.list_all(connection)],
            "workers": [_worker(pod, item) for item in await worker_rows.list_all(connection)],
        }


async def _look_at_streams(pod: Pod, caller: Principal, wanted: ListStreams, errors_page: str) -> ConsolePage:
    first, last = _between(wanted)
    statuses = None if wanted.status is None else sorted(streams.LIVE) if wanted.status == "live" else [wanted.status]
    selection = StreamFilter(caller.tenant, first, last, statuses)
    async with translated(pod.pool), pod.pool.acquire() as connection:
        found = await stream_lists.find(connection, selection, STREAMS_PER_PAGE)
        pod.reads.charge_rows(caller.tenant, caller.name, found.scanned)
        ids = [stream.id for stream in found.streams]
        tails = await event_log.tails(connection, ids)
        counted = [item for item in await pod_rows.list_all(connection) if _counts_viewers(pod, item)]
        watching = await pod_rows.viewers(connection, ids, counted)
        silences = await worker_rows.silences(connection)
        at: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return {
        "at": at,
        "data": [
            _stream(
                item,
                tails.get(item.id, event_log.NOTHING).seq,
                watching.get(item.id),
                silences.get(item.id) if item.status == "running" else None,
                errors_page,
            )
            for item in found.streams
        ],
        "next": None if found.before is None else str(found.before),
    }


def _between(wanted: ListStreams) -> tuple[UUID, UUID]:
    """The lowest and the highest id that may be listed."""
    digits = wanted.id.replace("-", "")[:_HEX_DIGITS]
    first, last = (UUID(digits.ljust(_HEX_DIGITS, filler)) for filler in "0f")
    return first, last if wanted.before is None else min(last, stream_lists.below(wanted.before))


def _stream(
    item: Stream, tail: int, viewers: int | None, silent_seconds: float | None, errors_page: str
) -> ConsoleStream:
    return {
        "id": str(item.id),
        "status": item.status,
        "generator": item.generator,
        "created_at": item.created_at,
        "started_at": item.started_at,
        "finished_at": item.finished_at,
        "cancel_requested_at": item.cancel_requested_at,
        "attempts": item.attempts,
        "finish_reason": item.finish_reason,
        "error": _error(item, errors_page),
        "usage": None if item.usage is None else dict(item.usage),
        "time_to_first_token_seconds": item.time_to_first_token_seconds,
        "timings": timings(item),
        "events": tail,
        "viewers": viewers,
        "silent_seconds": silent_seconds,
    }


def _error(item: Stream, errors_page: str) -> ConsoleError | None:
    if item.error_code is None:
        return None
    entry = f"{errors_page}#{item.error_code}" if item.error_code in _EXPLAINED else None
    return {"code": item.error_code, "message": item.error_message, "doc_url": entry}


def _alive(pod: Pod, item: pod_rows.ListedPod) -> bool:
    return _has_noted(pod, item, MISSED_NOTES)


def _counts_viewers(pod: Pod, item: pod_rows.ListedPod) -> bool:
    return _has_noted(pod, item, MISSED_NOTES_OF_VIEWERS)


def _has_noted(pod: Pod, item: pod_rows.ListedPod, intervals: int) -> bool:
    return not item.replaced and item.silent_seconds < intervals * pod.settings.pod_heartbeat_seconds


def _pod(pod: Pod, item: pod_rows.ListedPod) -> PodContent:
    return {
        "id": str(item.id),
        "name": item.name,
        "version": item.version,
        "started_at": item.started_at,
        "silent_seconds": item.silent_seconds,
        "alive": _alive(pod, item),
        "state": item.state,
        "listener": item.listener,
        "subscribers": item.subscribers if _counts_viewers(pod, item) else None,
        "connections": item.connections,
    }


def _worker(pod: Pod, item: worker_rows.ListedWorker) -> WorkerContent:
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


def _point(point: Point) -> PointContent:
    return {
        "at": point.at,
        "seconds": point.seconds,
        "tokens": point.tokens,
        "p50_delay_seconds": point.p50_delay_seconds,
        "p95_delay_seconds": point.p95_delay_seconds,
    }
