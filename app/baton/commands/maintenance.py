"""`baton maintain`: maintains all databases, once or again and again.

Each database has a task of its own, so that one that is away or hangs does not hold up the others.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from ..backoff import Backoff
from ..db.named_errors import naming
from ..db.notification_delivery import session_dsn
from ..errors import ConfigurationError
from ..schema.maintain import keep_maintaining
from ..schema.maintain import maintain as maintain_one
from ..schema.retention_policy import Policy
from ..settings import Settings
from .each_database import EachDatabase, OneDatabase
from .one_connection import MIGRATING_ROLE, connected


async def maintain(settings: Settings, every_seconds: float | None, *, dry_run: bool) -> None:
    """Maintain each database once, or every so many seconds until cancelled. With `dry_run` print what would be done.

    Raises:
        ConfigurationError: a run failed. With `every_seconds` and several databases: the first run of all of them.
    """
    policy = Policy(settings.partition_days_ahead, settings.retention_days, settings.partition_days)
    each = EachDatabase(settings)
    if every_seconds is None:
        await each.run(lambda database: _run(database, policy, dry_run=dry_run), at_once=not dry_run)
        each.require_all("read" if dry_run else "maintained")
    elif each.several:
        await _keep_all(each, policy, every_seconds)
    else:
        (database,) = each.databases
        dsn = await _session_dsn(database)
        await keep_maintaining(dsn, policy, every_seconds=every_seconds, say=database.say)


async def _run(database: OneDatabase, policy: Policy, *, dry_run: bool = False) -> None:
    if database.name:
        # What is deleted from a wrong database is gone.
        async with connected(database, name="baton maintain", role=MIGRATING_ROLE):
            pass
    dsn = database.settings.dsn if dry_run else await _session_dsn(database)
    await maintain_one(dsn, policy, say=database.say, dry_run=dry_run)


async def _session_dsn(database: OneDatabase) -> str:
    return await session_dsn(database.settings.dsn, database.settings.listen_dsn, say=database.say)


async def _keep_all(each: EachDatabase, policy: Policy, every_seconds: float) -> None:
    firsts = [asyncio.get_running_loop().create_future() for _ in each.databases]
    async with asyncio.TaskGroup() as group:
        keepers = [
            group.create_task(_keep(database, policy, every_seconds, first))
            for database, first in zip(each.databases, firsts, strict=True)
        ]
        if not any(await asyncio.gather(*firsts)):
            for keeper in keepers:
                keeper.cancel()
    raise ConfigurationError("No database could be maintained. The reasons stand above.")


async def _keep(database: OneDatabase, policy: Policy, every_seconds: float, first: asyncio.Future[bool]) -> NoReturn:
    """Maintain a database until cancelled. A failure is reported and the run repeated, since it may pass."""
    backoff = Backoff(first_seconds=1, cap_seconds=min(60.0, every_seconds))
    while True:
        try:
            with naming(database.entry):
                await _run(database, policy)
        except ConfigurationError as error:
            database.complain(f"{error} Retrying.")
            worked, pause_seconds = False, backoff.next_seconds()
        else:
            backoff.reset()
            worked, pause_seconds = True, every_seconds
        if not first.done():
            first.set_result(worked)
        await asyncio.sleep(pause_seconds)
