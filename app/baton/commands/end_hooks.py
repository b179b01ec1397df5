"""`baton run-end-hooks`: runs the end hook of streams that ended without it, because it had failed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from ..db import hooked_ends
from ..db.postgres import CONNECTION_ERRORS, Connection
from ..errors import ConfigurationError
from ..observability.metrics import WorkerMetrics
from ..settings import Settings
from ..worker.end_hook import EndHook, HookFailed, WatchedHook, load_end_hook
from .each_database import EachDatabase, OneDatabase
from .one_connection import over_connection

WORKING_ROLE: Final = "the role of the workers"
_PAGE: Final = 100


def run(settings: Settings, *, limit: int, dry_run: bool) -> int:
    """Run the hook for up to `limit` streams, oldest first; return the exit code: 1 if it failed for one.

    With `dry_run` print the streams only.

    Raises:
        ConfigurationError: there is no hook, it cannot be loaded, or the database cannot be used.
    """
    hook = load_end_hook(settings, WorkerMetrics())
    if hook is None and not dry_run:
        raise ConfigurationError("There is no end hook. Set BATON_ON_END=module:function, as for the workers.")

    each = EachDatabase(settings)
    results = asyncio.run(_run_each(each, None if dry_run else hook, limit))
    each.require_all("searched")
    return max(results)


async def _run_each(each: EachDatabase, hook: EndHook | None, limit: int) -> list[int]:
    """Print the streams of each database, or run the hook for them: for `limit` streams of all databases together."""
    remaining = limit

    async def work(connection: Connection, database: OneDatabase) -> int:
        nonlocal remaining
        found = [stream_id async for stream_id in _failed(connection, remaining)]
        remaining -= len(found)
        if hook is not None:
            return await _run_all(connection, hook, found, database)
        sys.stdout.writelines(f"{stream_id}\n" for stream_id in found)
        return 0

    async def over(database: OneDatabase) -> int:
        return await over_connection(
            database, lambda connection: work(connection, database), name="baton end hooks", role=WORKING_ROLE
        )

    return [*(await each.run(over)).values()]


async def _run_all(connection: Connection, hook: EndHook, found: Sequence[UUID], database: OneDatabase) -> int:
    done = failed = 0
    for stream_id in found:
        watched = WatchedHook(hook)
        try:
            done += await hooked_ends.run_again(connection, stream_id, watched)
        except (HookFailed, *CONNECTION_ERRORS):
            if watched.failure is None:
                raise
            failed += 1
            sys.stderr.write(f"{stream_id}: {watched.failure}\n")
            if connection.is_closed():
                raise ConfigurationError(
                    f"The end hook of stream {stream_id} did not stop when it was cancelled. Correct it, and run this "
                    "command again."
                ) from None
    database.say(f"The end hook ran for {done} streams, and failed for {failed}.")
    return 1 if failed else 0


async def _failed(connection: Connection, limit: int) -> AsyncIterator[UUID]:
    """Yield streams that ended without their hook. One whose hook fails again is not repeated."""
    after = UUID(int=0)
    while limit > 0 and (page := await hooked_ends.failed(connection, min(limit, _PAGE), after)):
        for stream_id in page:
            yield stream_id
        after, limit = page[-1], limit - len(page)
