"""Runs the migrations on the connection that `baton.schema.migrate` passes, or writes them as SQL.

The `alembic` command, which developers use, opens its own connection.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from alembic import context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from baton.schema.migrate import engine
from baton.schema.tables import SCHEMA, metadata
from baton.settings import Settings

_PARTITION = re.compile(r"batch_\d{8}")


def include_object(item: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
    """Exclude the partitions from comparisons, because they change every day."""
    table = name if kind == "table" else getattr(getattr(item, "table", None), "name", "")
    return not _PARTITION.fullmatch(table or "")


def number(_context: MigrationContext, _heads: Any, directives: list[MigrationScript]) -> None:
    """Give a new revision the next number: Baton compares numbers to find which revision is newer."""
    head = ScriptDirectory.from_config(context.config).get_current_head()
    directives[0].rev_id = f"{int(head or 0) + 1:04}"


def run(connection: Connection) -> None:
    """Run the requested migrations, each in its own transaction."""
    # CREATE SCHEMA IF NOT EXISTS needs the privilege to create schemas even if the schema exists.
    if connection.scalar(text("SELECT to_regnamespace(:name) IS NULL"), {"name": SCHEMA}):
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        include_object=include_object,
        transaction_per_migration=True,
        process_revision_directives=number,
    )
    with context.begin_transaction():
        context.run_migrations()


def write() -> None:
    """Write the requested migrations as SQL."""
    context.configure(
        dialect_name="postgresql",
        target_metadata=metadata,
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table_schema=SCHEMA,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_on_own_connection() -> None:
    async with engine(Settings.load().dsn) as own, own.connect() as connection:
        await connection.run_sync(run)


passed = context.config.attributes.get("connection")
if context.is_offline_mode():
    write()
elif passed is not None:
    run(passed)
else:
    asyncio.run(run_on_own_connection())
