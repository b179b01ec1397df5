"""Runs a command over each database of the settings.

With `BATON_DATABASE_URL` there is one: its lines and errors are those of the command. With `BATON_DATABASES` each line
begins with the name of its database, and an error of one does not stop the others. It is written to standard error at
once, and kept: in the end the command fails, and says which databases it did not reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import typer

from ..database_entries import DatabaseEntry
from ..db.named_errors import naming, sentence
from ..errors import ConfigurationError
from ..settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class OneDatabase:
    """A database of the settings, and the settings of what works with it alone."""

    entry: DatabaseEntry
    settings: Settings

    @property
    def name(self) -> str:
        """The name of its entry; empty with `BATON_DATABASE_URL`."""
        return self.entry.name

    def say(self, line: str) -> None:
        """Print a line about it."""
        typer.echo(self._named(line))

    def complain(self, problem: str) -> None:
        """Print what went wrong, to standard error."""
        typer.echo(f"baton: {self._named(problem)}", err=True)

    def _named(self, line: str) -> str:
        return f"{self.name}: {sentence(line, self.entry)}" if self.name else line


def databases_of(settings: Settings) -> Sequence[OneDatabase]:
    """Return the databases by number.

    Raises:
        ConfigurationError: none is configured.
    """
    return [OneDatabase(entry, settings.of(entry)) for entry in settings.all_databases]


def chosen(settings: Settings, name: str | None) -> OneDatabase:
    """Return the database that a command was told to use. With `BATON_DATABASE_URL` there is no choice.

    Raises:
        ConfigurationError: there are several, and the name is none of theirs or missing.
    """
    known = {database.name: database for database in databases_of(settings)}
    if not settings.databases:
        if name is not None:
            raise ConfigurationError("--database names an entry of BATON_DATABASES, which is not set. Leave it out.")
        return known[""]
    if name is None:
        raise ConfigurationError(f"There are several databases. Choose one with --database: {', '.join(known)}.")
    if name not in known:
        raise ConfigurationError(f"BATON_DATABASES has no {name!r:.40}. Choose one of {', '.join(known)}.")
    return known[name]


class EachDatabase:
    """The databases of the settings, for the steps of a command. After a failure, a database is left out."""

    def __init__(self, settings: Settings) -> None:
        """Raise ConfigurationError if no database is configured."""
        self.databases = databases_of(settings)
        self.several = bool(settings.databases)
        self.failures: dict[str, ConfigurationError] = {}

    async def run(
        self, work: Callable[[OneDatabase], Awaitable[Result]], *, at_once: bool = False
    ) -> dict[str, Result]:
        """Do the work for each database, in the order of their numbers or `at_once`; return the results by their names.

        Raises:
            ConfigurationError: the work failed for the only database.
        """
        remaining = [database for database in self.databases if database.name not in self.failures]
        if not self.several:
            return {"": await work(remaining[0])}
        results: dict[str, Result] = {}
        if at_once:
            async with asyncio.TaskGroup() as tasks:
                for database in remaining:
                    tasks.create_task(self._attempt(database, work, results))
        else:
            for database in remaining:
                await self._attempt(database, work, results)
        return {database.name: results[database.name] for database in remaining if database.name in results}

    def require_all(self, done: str, then: str = "Run this command again once the reason above is gone.") -> None:
        """Raise a summary unless all databases were `done`, such as "migrated". It says what to do `then`.

        Raises:
            ConfigurationError: some were not. The reason of each was printed before.
        """
        if self.failures:
            names = [database.name for database in self.databases if database.name in self.failures]
            were = "was" if len(names) == 1 else "were"
            raise ConfigurationError(
                f"{len(names)} of {len(self.databases)} databases {were} not {done}: {', '.join(names)}. {then}"
            )

    async def _attempt(
        self, database: OneDatabase, work: Callable[[OneDatabase], Awaitable[Result]], results: dict[str, Result]
    ) -> None:
        try:
            with naming(database.entry):
                results[database.name] = await work(database)
        except ConfigurationError as error:
            self.failures[database.name] = error
            database.complain(str(error))
