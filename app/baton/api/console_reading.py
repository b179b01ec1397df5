"""What the console reads from the databases. One that does not answer is left out, since the console must work then.

Each read of a database has a bounded cost (see `console`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from ..db import event_log, external_details, external_streams, pod_rows, stream_lists, worker_rows
from ..db.postgres import translated
from ..db.stream_lists import Page, StreamFilter
from ..errors import Unavailable
from ..pod.cluster_sampler import Point
from ..pod.pod import Pod
from ..pod.shard import Shard
from ..principal import Principal
from .console_content import (
    ConsolePage,
    ConsoleStream,
    QueueContent,
    Surroundings,
    counts_viewers,
    pod_content,
    stream_content,
    worker_content,
)

STREAMS_PER_PAGE: Final = 50

Result = TypeVar("Result")


class _Listed(NamedTuple):
    """A page of one database, and what is shown about its streams."""

    page: Page
    shown: dict[UUID, ConsoleStream]
    at: datetime


async def read_overview(pod: Pod, tenant: str) -> Surroundings:
    """Return the live pods and workers of all databases that answer, and their queues.

    Raises:
        Unavailable: no database answers.
    """
    return _together(await _of_all(pod, lambda shard: _overview_of(pod, shard, tenant)))


async def read_streams(pod: Pod, caller: Principal, selection: StreamFilter, errors_page: str) -> ConsolePage:
    """Return the newest wanted streams of all databases that answer, and charge the caller for the rows.

    Raises:
        Unavailable: no database answers.
    """
    found = await _of_all(pod, lambda shard: _streams_of(pod, shard, selection, errors_page))
    page = stream_lists.merged([item.page for item in found], STREAMS_PER_PAGE)
    pod.read_rates.charge_rows(caller.tenant, caller.name, page.scanned)
    shown = {stream_id: content for item in found for stream_id, content in item.shown.items()}
    return {
        "at": max(item.at for item in found),
        "data": [shown[item.id] for item in page.streams],
        "next": None if page.before is None else str(page.before),
    }


def points(pod: Pod) -> list[Point]:
    """Return the numbers of the last minutes. With several databases, those of one interval are added up.

    Every database has the delays of all pods, and the tokens of its own workers.
    """
    if len(pod.shards) == 1:
        return [point for shard in pod.shards for point in shard.sampler.points]
    interval_seconds = pod.settings.pod_heartbeat_seconds
    by_interval: dict[int, Point] = {}
    for point in (point for shard in pod.shards for point in shard.sampler.points):
        key = int(point.at // interval_seconds)
        other = by_interval.get(key)
        by_interval[key] = point if other is None else other.with_tokens(point.tokens)
    return [by_interval[key] for key in sorted(by_interval)]


async def _of_all(pod: Pod, read: Callable[[Shard], Awaitable[Result]]) -> list[Result]:
    """Read from all databases at once; return what those have that answer."""
    shards = pod.shards.open
    if len(pod.shards) == 1:
        return [await read(shard) for shard in shards]
    results = await asyncio.gather(*(read(shard) for shard in shards), return_exceptions=True)
    found: list[Result] = []
    failure: BaseException = Unavailable("No part of the service answers at the moment. Try again shortly.")
    for result in results:
        if isinstance(result, Unavailable):
            failure = result
        elif isinstance(result, BaseException):
            raise result
        else:
            found.append(result)
    if not found:
        raise failure
    return found


async def _overview_of(pod: Pod, shard: Shard, tenant: str) -> Surroundings:
    async with translated(shard.pool), shard.pool.acquire() as connection:
        queue = (await shard.watch.queue_state(connection)).total
        live = await stream_lists.live_counts(connection, tenant)
        workers = [worker_content(pod, item) for item in await worker_rows.list_all(connection)]
        alive = any(worker["alive"] for worker in workers)
        return {
            "live": {
                "queued": live.queued,
                "waiting": live.waiting,
                "running": live.running,
                "counted_up_to": stream_lists.MAX_SCANNED,
            },
            "queue": QueueContent(streams=queue.streams, oldest_seconds=queue.oldest_seconds),
            "pods": [pod_content(pod, item) for item in await pod_rows.list_all(connection)],
            "workers": [
                worker | {"name": f"{worker['name']} ({shard.database.name})"} if shard.database.name else worker
                for worker in workers
            ],
            "needs_worker": alive or queue.streams > 0 or await worker_rows.are_needed(connection),
        }


def _together(each: Iterable[Surroundings]) -> Surroundings:
    """Add up what several databases have. A pod has a row in each, and is shown once."""
    first, *others = each
    if not others:
        return first
    every = [first, *others]
    pods = {pod["id"]: pod for one in reversed(every) for pod in one["pods"]}
    return {
        "live": {
            "queued": sum(one["live"]["queued"] for one in every),
            "waiting": sum(one["live"]["waiting"] for one in every),
            "running": sum(one["live"]["running"] for one in every),
            "counted_up_to": stream_lists.MAX_SCANNED,
        },
        "queue": QueueContent(
            streams=sum(one["queue"]["streams"] for one in every),
            oldest_seconds=max(one["queue"]["oldest_seconds"] for one in every),
        ),
        "pods": sorted(pods.values(), key=lambda pod: pod["started_at"]),
        "workers": [worker for one in every for worker in one["workers"]],
        "needs_worker": any(one["needs_worker"] for one in every),
    }


async def _streams_of(pod: Pod, shard: Shard, selection: StreamFilter, errors_page: str) -> _Listed:
    async with translated(shard.pool), shard.pool.acquire() as connection:
        found = await stream_lists.find(connection, selection, STREAMS_PER_PAGE)
        ids = [stream.id for stream in found.streams]
        tails = await event_log.tails(connection, ids)
        counted = [item for item in await pod_rows.list_all(connection) if counts_viewers(pod, item)]
        watching = await pod_rows.viewers(connection, ids, counted)
        silences = await worker_rows.silences(connection)
        written = [item.id for item in found.streams if item.generator == external_streams.GENERATOR]
        details = await external_details.read(connection, written)
        at: datetime = await connection.fetchval("SELECT clock_timestamp()")
    shown = {
        item.id: stream_content(
            item,
            tails.get(item.id, event_log.NOTHING).seq,
            errors_page,
            viewers=watching.get(item.id),
            silent_seconds=silences.get(item.id) if item.status == "running" else None,
            external=details.get(item.id),
        )
        for item in found.streams
    }
    return _Listed(found, shown, at)
