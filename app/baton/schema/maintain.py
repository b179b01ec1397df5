"""`baton maintain`: one run, a loop of runs, or a preview of what a run would do. `maintenance_run` has the steps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

import asyncpg

from ..backoff import Backoff, retry
from ..db import event_log, partitions, retention
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..db.schema_revision import check_schema
from ..errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch
from .maintenance_run import BLOCKED, STATEMENT_SECONDS, MaintenanceRun, Say, amount
from .retention_policy import Policy, due_of, keeper_of

logger = logging.getLogger(__name__)


async def maintain(dsn: str, policy: Policy, *, say: Say, dry_run: bool = False) -> None:
    """Run maintenance once; with `dry_run`, only report what it would do.

    Raises:
        DatabaseUnreachable: no connection can be opened, or it is lost.
        SchemaMismatch: the migrations have not run, or this code is older than the schema.
        ConfigurationError: Postgres refuses a step, for example because the role lacks privileges.
    """
    with _translated_errors():
        connection = await connect(dsn, command_timeout_seconds=STATEMENT_SECONDS + 5, name="baton maintain")
        try:
            await check_schema(connection)
            if dry_run:
                await preview(connection, policy, say)
            else:
                await MaintenanceRun(connection, policy, say).run()
        finally:
            connection.terminate()


async def keep_maintaining(dsn: str, policy: Policy, *, every_seconds: float, say: Say) -> None:
    """Run maintenance again and again until cancelled. After the first run, an outage is logged and retried.

    Raises:
        DatabaseUnreachable: no connection can be opened for the first run.
        SchemaMismatch: at the start, or after the schema has changed.
        ConfigurationError: Postgres refuses a step of the first run.
    """
    await maintain(dsn, policy, say=say)
    await asyncio.sleep(every_seconds)

    async def keep_on(backoff: Backoff) -> None:
        while True:
            await maintain(dsn, policy, say=say)
            backoff.reset()
            await asyncio.sleep(every_seconds)

    def on_failure(error: Exception) -> None:
        if isinstance(error, SchemaMismatch):
            raise error
        logger.warning("%s Retrying.", error)

    backoff = Backoff(first_seconds=1, cap_seconds=min(60.0, every_seconds))
    await retry(keep_on, errors=(ConfigurationError,), on_failure=on_failure, backoff=backoff)


async def preview(connection: Connection, policy: Policy, say: Say) -> None:
    """Report what a run would do now."""
    now = await partitions.now(connection)
    horizon = policy.horizon(now)
    found = await partitions.attached(connection)
    if await partitions.width(connection) != policy.width_days:
        say(f"Would make new partitions hold {amount(policy.width_days, 'day')} each.")
    for name in await partitions.missing(connection, policy.days_ahead, policy.width_days):
        say(f"Would create partition {name}.")
    stream_count, key_count = await retention.count(connection, horizon)
    say(
        f"Would delete {amount(stream_count, 'stream')} created before {partitions.day_of(horizon)} (UTC) and "
        f"{amount(key_count, 'idempotency key')} that have expired."
    )
    row_count, call_count = await retention.count_leftovers(connection, horizon)
    if row_count:
        say(f"Would delete {amount(row_count, 'row')} of states, steps and inputs whose streams have ended.")
    if call_count:
        say(f"Would delete {amount(call_count, 'call')} that no worker could make.")
    for name, marked in (await partitions.detached(connection)).items():
        say(f"Would {'drop' if marked else 'leave alone'} {name}, which is detached.")
    due = due_of(found, horizon)
    for item in due.partitions:
        live = await keeper_of(connection, item, live=True)
        if live is None:
            say(f"Would drop partition {item.name}.")
        else:
            say(f"Would keep partition {item.name}: it holds stream {live.stream_id}, which is {live.status}.")
            if await event_log.has_ended(connection, item):
                say(f"Would delete the rows of expired streams from partition {item.name}.")
    if due.foreign is not None:
        say(f"Would drop no partition: another session is detaching {due.foreign}.")


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn what Postgres or the driver raises into one sentence with advice."""
    try:
        yield
    except BLOCKED as error:  # before the errors of a connection: a statement that timed out counts among those
        raise ConfigurationError(
            f"A step of the maintenance waited too long, or was cancelled: {error}. Finished steps stay done, and the "
            "next run continues."
        ) from error
    except CONNECTION_ERRORS as error:
        raise DatabaseUnreachable(
            f"The connection to the database was lost: {error!r}. Finished steps stay done, and the next run continues."
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"The maintenance failed: {error}. Run `baton maintain` as the role that ran `baton migrate`."
        ) from error
    except asyncpg.PostgresError as error:
        raise ConfigurationError(f"The maintenance failed: {error}.") from error
