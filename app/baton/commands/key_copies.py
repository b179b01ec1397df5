"""What `baton keys` does with the databases: each key has a row with the same id and hash in all of them.

A key is created in all databases or in none. A revocation does not wait: it is written to the databases that answer,
and the others get it from `baton keys sync`. Pods refuse a key once one of their databases knows that it was revoked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeVar

from ..auth import all_keys, keys
from ..auth.all_keys import Rows, SharedKey
from ..auth.keys import ApiKey
from ..db.postgres import Connection
from ..errors import ConfigurationError
from .each_database import EachDatabase, OneDatabase
from .one_connection import MIGRATING_ROLE, connected, over_connection, refusals

Result = TypeVar("Result")

_NAME: Final = "baton keys"


async def read(each: EachDatabase) -> dict[str, Rows]:
    """Read the keys of each database."""
    return await each.run(lambda database: _over(database, all_keys.read), at_once=True)


async def create(
    each: EachDatabase, name: str, tenant: str, scopes: Collection[str], expires_days: int | None
) -> tuple[ApiKey, str]:
    """Make a key in all databases; return it, and its text, which is not stored.

    Raises:
        ConfigurationError: the name is taken in one, a name or a scope cannot be used, or a database does not answer.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def opened(database: OneDatabase) -> Connection:
            connection = await stack.enter_async_context(connected(database, name=_NAME, role=MIGRATING_ROLE))
            with refusals(database, MIGRATING_ROLE):
                await connection.execute("BEGIN")
            return connection

        connections = await each.run(opened)
        each.require_all("reached", "No key was created: all databases have the same keys. Try again when all answer.")
        (first, connection), *others = ((database, connections[database.name]) for database in each.databases)
        with refusals(first, MIGRATING_ROLE):
            key, text = await keys.make(connection, name, tenant, scopes, expires_days)
            row = (await all_keys.read(connection))[key.id]
        for database, connection in others:
            with refusals(database, MIGRATING_ROLE):
                await all_keys.copy(connection, row, None)
        # An error between two commits leaves a key that nobody has. `baton keys revoke` frees its name.
        for database in each.databases:
            with refusals(database, MIGRATING_ROLE):
                await connections[database.name].execute("COMMIT")
    return key, text


async def revoke(each: EachDatabase, id_or_name: str) -> ApiKey:
    """Revoke a key in each database that answers; return it.

    Raises:
        ConfigurationError: no key has that id or name, two have that name, or it was revoked before.
    """
    found = await read(each)
    key = _revocable(all_keys.union(found), id_or_name, each)

    async def in_one(database: OneDatabase) -> None:
        row = found[database.name].get(key.id)
        if row is not None and row["revoked_at"] is None:
            await _over(database, lambda connection: keys.revoke(connection, str(key.id)))

    await each.run(in_one, at_once=True)
    return key


async def sync(each: EachDatabase) -> int:
    """Copy to each database that answers what it lacks, and print a line about each; return how many changes it took.

    Raises:
        ConfigurationError: the only database fails.
    """
    shared = all_keys.union(await read(each))

    async def complete(database: OneDatabase) -> int:
        return await _over(database, lambda connection: _complete(connection, database, shared))

    return sum((await each.run(complete)).values())


def _revocable(shared: Sequence[SharedKey], id_or_name: str, each: EachDatabase) -> ApiKey:
    """Return the key that is called so. A revocation that has not reached all databases can be repeated."""
    wanted = [item.key for item in shared if item.called(id_or_name) and (item.state != "revoked" or item.unrevoked)]
    if not wanted:
        each.require_all("searched", f"The others have no key {id_or_name!r:.120} that could be revoked.")
        raise ConfigurationError(
            f"There is no key {id_or_name!r:.120} that could be revoked. `baton keys list` shows all keys."
        )
    if len(wanted) > 1:
        ids = " and ".join(str(key.id) for key in wanted)
        raise ConfigurationError(f"{len(wanted)} keys are called {id_or_name!r:.120}. Revoke one by its id: {ids}.")
    return wanted[0]


async def _complete(connection: Connection, database: OneDatabase, shared: Sequence[SharedKey]) -> int:
    changes = 0
    # First, since a revocation frees a name.
    for item in shared:
        if database.name in item.unrevoked and item.key.revoked_at is not None:
            await all_keys.revoke(connection, item.key.id, item.key.revoked_at)
            database.say(f"Revoked {item.key.name!r} ({item.key.id}).")
            changes += 1
    problems = []
    for item in shared:
        if database.name in item.missing:
            try:
                await all_keys.copy(connection, item.row, item.key.revoked_at)
            except ConfigurationError:
                problems.append(f"{item.key.name!r} ({item.key.id})")
            else:
                database.say(f"Copied {item.key.name!r} ({item.key.id}).")
                changes += 1
    if problems:
        raise ConfigurationError(
            f"Not copied, since other valid keys have these names: {', '.join(problems)}. Revoke one key of each name "
            "by its id, and run this again."
        )
    return changes


async def _over(database: OneDatabase, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    return await over_connection(database, work, name=_NAME, role=MIGRATING_ROLE)
