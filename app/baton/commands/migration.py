"""`baton migrate`: migrates each database in turn, and then gives several of them their numbers and weights.

They get these once all of them have the newest schema. If one is away, the others are migrated nevertheless, and the
next run continues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import asyncpg
import typer

from ..db.named_errors import naming
from ..db.notification_delivery import session_dsn
from ..db.postgres import CONNECTION_ERRORS, connect
from ..errors import ConfigurationError
from ..schema import numbering
from ..schema.lock_timeouts import LockTimeouts
from ..schema.migrate import announce, migrate, revision_of
from ..schema.migration_sql import script
from ..schema.numbering import NumberedDatabase
from ..settings import Settings
from .each_database import EachDatabase, OneDatabase

_AGAIN = (
    "The numbers of the databases and the weights were not recorded. Run this command again once the reason above is "
    "gone."
)


class Migration:
    """One call of the command, to the revision `to`, or to the newest one if it is None."""

    def __init__(self, settings: Settings, to: str | None, timeouts: LockTimeouts) -> None:
        self._settings = settings
        self._days_ahead = settings.partition_days_ahead
        self._to = to
        self._timeouts = timeouts

    async def run(self) -> None:
        """Migrate, and print each step.

        Raises:
            ConfigurationError: a database was not migrated, or got no number.
        """
        each = EachDatabase(self._settings)
        await each.run(self._migrate)
        each.require_all("migrated", "Run this command again once the reason above is gone." if self._to else _AGAIN)
        if not each.several or self._to is not None:
            return
        async with contextlib.AsyncExitStack() as stack:
            numbered = await _connected(each, stack)
            with _numbering_errors():
                lines = [*await numbering.number(numbered), await numbering.record_weights(numbered)]
        for line in filter(None, lines):
            typer.echo(line)

    async def announce(self) -> None:
        """Print what `run` would do.

        Raises:
            ConfigurationError: a database does not answer, or cannot be migrated.
        """
        each = EachDatabase(self._settings)
        await each.run(
            lambda database: announce(database.settings.dsn, days_ahead=self._days_ahead, to=self._to, say=database.say)
        )
        each.require_all("read")
        if each.several and self._to is None:
            async with contextlib.AsyncExitStack() as stack:
                numbered = await _connected(each, stack)
                with _numbering_errors():
                    lines = await numbering.preview(numbered)
            for line in lines:
                typer.echo(line)

    async def write_sql(self, start: str | None) -> None:
        """Print the migrations as SQL, from the revision `start` or `base`, or by default from that of the databases.

        Raises:
            ConfigurationError: the databases have different revisions, or one does not answer.
        """
        if start is None:
            start = await self._revision()
        begin = None if start == "base" else start
        if self._settings.databases:
            names = ", ".join(entry.name for entry in self._settings.all_databases)
            typer.echo(f"-- For each database: {names}. Then run `baton migrate`, which gives them their numbers.")
        typer.echo(script(start=begin, to=self._to, days_ahead=self._days_ahead, timeouts=self._timeouts), nl=False)

    async def _migrate(self, database: OneDatabase) -> None:
        settings = database.settings
        dsn = await session_dsn(settings.dsn, settings.listen_dsn, say=database.say)
        await migrate(dsn, days_ahead=self._days_ahead, to=self._to, timeouts=self._timeouts, say=database.say)
        if self._to is None:
            database.say("The database is up to date.")

    async def _revision(self) -> str | None:
        if self._settings.database_url is None and not self._settings.databases:
            return None
        each = EachDatabase(self._settings)
        revisions = await each.run(lambda database: revision_of(database.settings.dsn))
        each.require_all("read")
        if len(set(revisions.values())) > 1:
            found = ", ".join(f"{name} {revision or 'none'}" for name, revision in revisions.items())
            raise ConfigurationError(
                f"The databases have different revisions: {found}. Print the SQL for each start with --from."
            )
        return next(iter(revisions.values()))


async def _connected(each: EachDatabase, stack: contextlib.AsyncExitStack) -> Sequence[NumberedDatabase]:
    """Open a connection to each database, until the end of the stack."""
    numbered = []
    for database in each.databases:
        with naming(database.entry):
            connection = await connect(database.settings.dsn, name="baton migrate", prepare=False)
        stack.callback(connection.terminate)
        numbered.append(NumberedDatabase(database.entry, connection))
    return numbered


@contextlib.contextmanager
def _numbering_errors() -> Iterator[None]:
    try:
        yield
    except (asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
        raise ConfigurationError(
            f"The numbers of the databases and the weights could not be recorded: {error!r}. Run `baton migrate` again."
        ) from error
