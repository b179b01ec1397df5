"""Checks of workers and their queue: dead workers, streams without a worker, and streams that wait too long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db import hooked_ends, worker_rows
from .finding import Case, Finding, amount, duration, error, ok, warning

_WORKERS: Final = """
SELECT name, generators, concurrency,
       extract(epoch FROM clock_timestamp() - heartbeat_at)::double precision AS silent
FROM baton.worker ORDER BY heartbeat_at
"""
_ORPHANS: Final = """
SELECT count(*), min(id::text) FROM baton.stream AS s
WHERE status = 'running' AND NOT EXISTS (SELECT FROM baton.worker AS w WHERE w.id = s.worker_id)
"""
_RUNNING: Final = "SELECT count(*) FROM baton.stream WHERE status = 'running'"
# Among those that are due soonest.
_WEBHOOKS: Final = """
SELECT count(*) FILTER (WHERE error IS NOT NULL) AS failing, max(error) AS error,
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::double precision AS seconds
FROM (SELECT error, created_at FROM baton.webhook_call ORDER BY due_at LIMIT 1000) AS calls
"""
_MOST_COUNTED: Final = 1000
_WEBHOOK_SECONDS: Final = 120
_QUEUED: Final = """
SELECT generator, count(*) AS waiting,
       extract(epoch FROM clock_timestamp() - min(greatest(coalesce(queued_at, created_at), start_after)))
       ::double precision AS seconds
FROM baton.stream
WHERE status = 'queued' AND (queue_position IS NOT NULL OR held_until <= clock_timestamp())
GROUP BY generator ORDER BY 3 DESC
"""


async def workers(case: Case) -> AsyncIterator[Finding]:
    """Is a worker alive, and is there no row of a dead one?"""
    lease = case.settings.lease_seconds
    rows = await case.connection.fetch(_WORKERS)
    dead = [row for row in rows if row["silent"] > 2 * lease]
    alive = [row for row in rows if row["silent"] <= lease]
    if dead:
        level = warning if alive else error
        yield level(
            "workers_dead",
            f"{amount(len(dead), 'worker')} without a heartbeat for longer than BATON_LEASE_SECONDS={lease:g}, such as "
            f"{dead[0]['name']!r} for {duration(dead[0]['silent'])}.",
            "Start a worker: it requeues or ends the streams of dead workers. If one is alive, read its log.",
        )
    if not alive and await worker_rows.are_needed(case.connection):
        yield warning("workers_missing", "No worker is alive, so streams stay queued.", "Run `baton worker`.")
    elif not alive and not dead:
        yield ok("workers", "No worker is alive, and none is needed: producers write all recent streams.")
    elif not dead:
        slots = sum(row["concurrency"] for row in alive)
        running = await case.connection.fetchval(_RUNNING)
        yield ok("workers", f"{amount(len(alive), 'live worker')}, {running:,} of {slots:,} slots in use.")


async def orphans(case: Case) -> AsyncIterator[Finding]:
    """Is there a running stream whose worker does not exist?"""
    count, example = await case.row(_ORPHANS)
    if count:
        yield warning(
            "streams_orphaned",
            f"{amount(count, 'stream')} marked as running by a worker that does not exist, such as {example}.",
            f"A live worker requeues or ends it within twice BATON_LEASE_SECONDS={case.settings.lease_seconds:g}. Run "
            "`baton worker` if none is alive.",
        )


async def end_hooks(case: Case) -> AsyncIterator[Finding]:
    """Is there a stream that ended without its end hook, or a webhook that cannot be called?"""
    if count := await hooked_ends.count_failed(case.connection, _MOST_COUNTED):
        more = " or more" if count == _MOST_COUNTED else ""
        yield warning(
            "end_hooks_failed",
            f"{amount(count, 'stream')}{more} ended without the end hook, because it failed.",
            "Read the workers' log for the cause, correct the hook, and run `baton run-end-hooks`.",
        )
    row = await case.row(_WEBHOOKS)
    if row["failing"]:
        yield warning(
            "webhooks_failing",
            f"{amount(row['failing'], 'call')} of webhooks failed and will be repeated, the oldest since "
            f"{duration(row['seconds'])}. The last error: {row['error']!r:.200}.",
            "Make the receiver reachable. A call is given up after a day.",
        )
    elif row["seconds"] > _WEBHOOK_SECONDS:
        yield warning(
            "webhooks_waiting",
            f"Calls of webhooks have waited for {duration(row['seconds'])}.",
            "Give BATON_WEBHOOK_SECRETS to the workers: without it a worker makes no calls.",
        )
    else:
        yield ok("ends", "No end hook and no call of a webhook has failed.")


async def queue(case: Case) -> AsyncIterator[Finding]:
    """How long do streams wait, and does a worker offer their generator?"""
    rows = await case.connection.fetch(_QUEUED)
    lease = case.settings.lease_seconds
    alive = [row for row in await case.connection.fetch(_WORKERS) if row["silent"] <= lease]
    offered = {name for row in alive for name in row["generators"]}
    well = True
    for row in rows:
        found = f"{amount(row['waiting'], 'stream')} queued for {row['generator']!r}"
        found = f"{found}, the oldest for {duration(row['seconds'])}"
        if row["generator"] not in offered:
            well = False
            yield error(
                "queue_unserved",
                f"{found}; no live worker offers it.",
                "Run a worker that offers it: see BATON_GENERATORS and BATON_ENABLED_GENERATORS.",
            )
        elif row["seconds"] > case.thresholds.queued_seconds:
            well = False
            yield warning(
                "queue_slow",
                f"{found}.",
                "Run more workers, or raise BATON_WORKER_CONCURRENCY if theirs have capacity left.",
            )
    if well:
        oldest = f", the oldest for {duration(rows[0]['seconds'])}" if rows else ""
        yield ok("queue", f"{amount(sum(row['waiting'] for row in rows), 'stream')} queued{oldest}.")
