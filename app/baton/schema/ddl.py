r"""Changes of live tables for migrations to use. Each one blocks other sessions for a moment at most.

A change runs on a connection or is written as SQL for psql. Where a statement depends on what the catalog holds, a
query generates the statements: we run them one by one, and psql runs them by `\gexec`.

Postgres has no single statement that builds an index concurrently on a partitioned table such as the log. So the index
is built on the parent alone (which has no rows), then concurrently on each partition, and then attached, outside of any
transaction. Every step can be repeated: an interrupted build leaves an INVALID index, which is dropped first. Workers
may create partitions meanwhile; those have the index from the start, because they are created LIKE the parent.

Timeouts: a statement that blocks others while it waits or works (the index on the parent, attaching) is bounded by
`lock_timeout`. A concurrent build holds SHARE UPDATE EXCLUSIVE, which blocks neither reads nor writes, and must wait
for every older transaction to end: it waits without a limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from alembic import op

# `LOCKS` of a revision that only creates an index on the log: SHARE on the parent for a moment, SHARE UPDATE EXCLUSIVE
# on each partition while its index is built, and ACCESS EXCLUSIVE on that index for the moment of attaching.
LOG_INDEX_LOCKS: Final[Mapping[str, str]] = MappingProxyType({"batch": "ACCESS EXCLUSIVE"})

# Each partition with the name of its index, and with that index if it exists. A partition whose detachment is pending
# is left out, because the parent's index ignores it. Partitions may have any name and lie in any schema.
_PARTITIONS: Final = """
FROM pg_catalog.pg_inherits AS inheritance
JOIN pg_catalog.pg_class AS part ON part.oid = inheritance.inhrelid
CROSS JOIN LATERAL (
    SELECT '{name}_' || coalesce(substring(part.relname FROM '^batch_([0-9]+)$'), part.oid::text) AS name,
           part.relnamespace::regnamespace AS schema
) AS own
LEFT JOIN pg_catalog.pg_class AS built
    ON built.relname = own.name AND built.relnamespace = part.relnamespace AND built.relkind = 'i'
LEFT JOIN pg_catalog.pg_index AS state ON state.indexrelid = built.oid
WHERE inheritance.inhparent = 'baton.batch'::regclass AND NOT inheritance.inhdetachpending
"""

# A partition that was created meanwhile has an index of another name, already attached.
_UNATTACHED: Final = """
AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_inherits AS attached
    JOIN pg_catalog.pg_index AS index ON index.indexrelid = attached.inhrelid
    WHERE attached.inhparent = to_regclass('baton.{name}') AND index.indrelid = part.oid
)
"""

_DROP_LEFTOVERS: Final = (
    "SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %s.%I', own.schema, own.name)"
    + _PARTITIONS
    + "AND NOT state.indisvalid"
)
_BUILD: Final = (
    "SELECT format('CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS %I ON %s.%I {definition}', own.name, "
    "own.schema, part.relname)" + _PARTITIONS + _UNATTACHED
)
_ATTACH: Final = (
    "SELECT format('ALTER INDEX baton.{name} ATTACH PARTITION %s.%I', own.schema, own.name)" + _PARTITIONS + _UNATTACHED
)

# Postgres marks the parent's index as valid when an index is attached. If retention has meanwhile dropped every
# partition that needed attaching, the parent's index stays invalid; dropping it and building it again helps.
_CHECK: Final = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indexrelid = 'baton.{name}'::regclass AND indisvalid) THEN
        RAISE EXCEPTION 'The index baton.{name} is not valid on all partitions. Drop it, and run the migration again.';
    END IF;
END $$
"""


def create_log_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index on the log. `definition` is the SQL after the table's name, such as `(epoch) WHERE terminal`."""
    words = {
        "name": name,
        "definition": definition.replace("'", "''").replace("%", "%%"),
        "unique": "UNIQUE " if unique else "",
    }
    with op.get_context().autocommit_block():
        op.execute(f"CREATE {words['unique']}INDEX IF NOT EXISTS {name} ON ONLY baton.batch {definition}")
        with _without_lock_timeout():
            _run_generated(_DROP_LEFTOVERS.format_map(words))
            _run_generated(_BUILD.format_map(words))
        _run_generated(_ATTACH.format_map(words))
        op.execute(_CHECK.format_map(words))


def create_index(name: str, table: str, definition: str) -> None:
    """Build an index on a table other than the log. `definition` is the SQL after the table's name."""
    with op.get_context().autocommit_block(), _without_lock_timeout():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS baton.{name}")
        op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON baton.{table} {definition}")


def drop_index(name: str) -> None:
    """Drop an index of a table other than the log."""
    with op.get_context().autocommit_block(), _without_lock_timeout():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS baton.{name}")


def drop_log_index(name: str) -> None:
    """Drop an index of the log. Postgres has no concurrent way: this takes ACCESS EXCLUSIVE on the log for a moment."""
    op.execute(f"DROP INDEX IF EXISTS baton.{name}")


def add_check(table: str, name: str, condition: str) -> None:
    """Add a CHECK for new rows. In the next revision, `validate` extends it to existing rows.

    This takes ACCESS EXCLUSIVE on the table, only for a moment, because it reads no row.
    """
    op.execute(f"ALTER TABLE baton.{table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")


def validate(table: str, name: str) -> None:
    """Validate a CHECK for all rows. This holds SHARE UPDATE EXCLUSIVE on the table while it reads all of it."""
    op.execute(f"ALTER TABLE baton.{table} VALIDATE CONSTRAINT {name}")


def require_code(revision: str) -> None:
    """Refuse code older than `revision` at its start, because this revision removes what older code needs."""
    op.execute(f"UPDATE baton.compatibility SET oldest_code = '{revision}'")  # noqa: S608


@contextlib.contextmanager
def _without_lock_timeout() -> Iterator[None]:
    """Set no `lock_timeout` for statements that block no other session while they wait.

    A failure does not restore it: each retry sets the session's limits first.
    """
    op.execute("SELECT set_config('baton.lock_timeout', current_setting('lock_timeout'), false)")
    op.execute("SET lock_timeout = 0")
    yield
    op.execute("SELECT set_config('lock_timeout', current_setting('baton.lock_timeout'), false)")


def _run_generated(query: str) -> None:
    """Run the statements that a query generates."""
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(f"{query.strip()}\n\\gexec\n")
        return
    for (statement,) in op.get_bind().exec_driver_sql(query).all():
        op.get_bind().exec_driver_sql(statement)
