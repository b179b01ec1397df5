r"""Changes of live tables for migrations to use, each in the form that stops nobody for longer than a moment.

They run on a connection or are written down for psql: what has to be asked first is a query that makes statements,
which we run one by one, and psql by `\gexec`.

Indexes on the log, which is partitioned, cannot be built concurrently in one statement. They are built on the parent
alone (which has no rows), then concurrently on each partition, and then attached, outside of any transaction. All of it
can be repeated: a build that was cut off leaves an INVALID index, which is dropped first. Workers may create partitions
meanwhile: those bring the index along, since they are made like the parent.

Which timeout applies where: a statement that stops others while it waits or works (the parent's index, attaching)
waits for `lock_timeout`. A concurrent build holds SHARE UPDATE EXCLUSIVE, which stops neither reads nor writes, and
must wait for the end of every transaction that is older: it waits for as long as that takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from alembic import op

# For `LOCKS` of a revision that does nothing but this: SHARE on the parent for a moment, SHARE UPDATE EXCLUSIVE on each
# partition while its index is built, and ACCESS EXCLUSIVE on that index for the moment of attaching.
LOG_INDEX_LOCKS: Final[Mapping[str, str]] = MappingProxyType({"batch": "ACCESS EXCLUSIVE"})

# Each partition with the name of its index, and that index if it is there. One whose detachment is pending is none any
# more to the parent's index, which takes nothing from it. Partitions may have any name, and lie in any schema.
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

# A partition that was made meanwhile has an index of another name, which was attached with it.
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

# When retention has dropped all partitions but those that brought the index along, nothing was attached that would make
# the parent's index valid. Being dropped and built again, it is.
_CHECK: Final = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indexrelid = 'baton.{name}'::regclass AND indisvalid) THEN
        RAISE EXCEPTION 'The index baton.{name} is not valid on all partitions. Drop it, and run the migration again.';
    END IF;
END $$
"""


def create_log_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index on the log. `definition` is what follows the table's name: `(epoch) WHERE terminal`."""
    words = {
        "name": name,
        "definition": definition.replace("'", "''").replace("%", "%%"),
        "unique": "UNIQUE " if unique else "",
    }
    with op.get_context().autocommit_block():
        op.execute(f"CREATE {words['unique']}INDEX IF NOT EXISTS {name} ON ONLY baton.batch {definition}")
        with _waiting_for_long():
            _each(_DROP_LEFTOVERS.format_map(words))
            _each(_BUILD.format_map(words))
        _each(_ATTACH.format_map(words))
        op.execute(_CHECK.format_map(words))


def create_index(name: str, table: str, definition: str) -> None:
    """Build an index on a table other than the log; `definition` is what follows the table's name."""
    with op.get_context().autocommit_block(), _waiting_for_long():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS baton.{name}")
        op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON baton.{table} {definition}")


def drop_index(name: str) -> None:
    """Drop an index of a table other than the log."""
    with op.get_context().autocommit_block(), _waiting_for_long():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS baton.{name}")


def drop_log_index(name: str) -> None:
    """Drop an index of the log. There is no concurrent way: it takes ACCESS EXCLUSIVE on the log, for a moment."""
    op.execute(f"DROP INDEX IF EXISTS baton.{name}")


def add_check(table: str, name: str, condition: str) -> None:
    """Hold new rows to a condition. `validate` holds the old ones to it, in the next revision.

    It takes ACCESS EXCLUSIVE on the table, for a moment, since it looks at no row.
    """
    op.execute(f"ALTER TABLE baton.{table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")


def validate(table: str, name: str) -> None:
    """Look whether all rows meet a condition. It takes SHARE UPDATE EXCLUSIVE on the table, however long it reads."""
    op.execute(f"ALTER TABLE baton.{table} VALIDATE CONSTRAINT {name}")


def require_code(revision: str) -> None:
    """Let nobody start whose code is older than `revision`: this one takes away what older code needs."""
    op.execute(f"UPDATE baton.compatibility SET oldest_code = '{revision}'")  # noqa: S608


@contextlib.contextmanager
def _waiting_for_long() -> Iterator[None]:
    """Lift `lock_timeout` from statements that stop nobody while they wait.

    After a failure nothing is put back: whoever tries again sets the session's limits anew.
    """
    op.execute("SELECT set_config('baton.lock_timeout', current_setting('lock_timeout'), false)")
    op.execute("SET lock_timeout = 0")
    yield
    op.execute("SELECT set_config('lock_timeout', current_setting('baton.lock_timeout'), false)")


def _each(query: str) -> None:
    """Run the statements that a query makes."""
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(f"{query.strip()}\n\\gexec\n")
        return
    for (statement,) in op.get_bind().exec_driver_sql(query).all():
        op.get_bind().exec_driver_sql(statement)
