"""Runs the migrations on the connection that `baton.migrate` hands over, or, for `alembic` itself, on its own."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from alembic import context
from sqlalchemy import Connection, inspect, text

from baton.migrate import engine
from baton.schema import SCHEMA, metadata
from baton.settings import Settings

_PARTITION = re.compile(r"batch_\d{8}")


def include_object(item: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
    """Leave the partitions, which come and go by the day, out of comparisons."""
    table = name if kind == "table" else getattr(getattr(item, "table", None), "name", "")
    return not _PARTITION.fullmatch(table or "")


def run(connection: Connection) -> None:
    """Run the requested migrations, each in its own transaction."""
    # IF NOT EXISTS would ask for the right to create schemas even where there is nothing to create.
    if not inspect(connection).has_schema(SCHEMA):
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
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_alone() -> None:
    async with engine(Settings.load().dsn) as own, own.connect() as connection:
        await connection.run_sync(run)


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    asyncio.run(run_alone())
