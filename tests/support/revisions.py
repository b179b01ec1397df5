"""Migrations with additional revisions of a test, and the locks that revisions take."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpg
from sqlalchemy import Connection, event, text

from baton.schema.migrate import engine
from baton.schema.revisions import LOCK_MODES, Revision, RevisionHistory, migrations_folder

_MODULE = '''\
"""A change for a test."""

from alembic import op

from baton.schema import ddl

revision = "{revision}"
down_revision = "{before}"
branch_labels = depends_on = None

LOCKS = {locks!r}


def upgrade() -> None:
{upgrade}
'''

_TABLES = text("""
SELECT c.oid, root.relname
FROM pg_class AS c
LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
CROSS JOIN LATERAL (SELECT coalesce(i.indrelid, c.oid) AS oid) AS t
JOIN pg_class AS root ON root.oid = coalesce(pg_partition_root(t.oid), t.oid)
WHERE c.relnamespace = to_regnamespace('baton') AND root.relname <> 'alembic_version'
""")
_HELD = text("SELECT relation, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted")


def history_with(folder: Path, *upgrades: str, locks: Sequence[Mapping[str, str]] = ()) -> RevisionHistory:
    """Return all revisions, followed by 9001, 9002 … with the given upgrades."""
    copy = folder / "migrations"
    shutil.copytree(migrations_folder(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = RevisionHistory().ids[-1]
    for offset, upgrade in enumerate(upgrades):
        revision = str(9001 + offset)
        stated = dict(locks[offset]) if locks else {}
        body = textwrap.indent(textwrap.dedent(upgrade).strip(), "    ")
        module = _MODULE.format(revision=revision, before=before, locks=stated, upgrade=body)
        (copy / "versions" / f"{revision}.py").write_text(module)
        before = revision
    return RevisionHistory(copy)


async def locks_taken(dsn: str, history: RevisionHistory, revision: Revision) -> dict[str, str]:
    """Run a revision; return its strongest lock on each existing table, read just before it commits."""
    taken: dict[str, str] = {}

    def look(connection: Connection) -> None:
        before: dict[int, str] = {oid: name for oid, name in connection.execute(_TABLES)}  # noqa: C416
        connection.commit()

        def held(connection: Connection) -> None:
            for oid, mode in connection.execute(_HELD):
                if oid in before:
                    _note(taken, before[oid], mode)

        event.listen(connection, "commit", held)
        history.upgrade(connection, revision.id)

    async with engine(dsn) as own, own.connect() as connection:
        await connection.run_sync(look)
    return taken


def mode_in_sql(mode: str) -> str:
    """Return a mode such as `AccessExclusiveLock` in the form of SQL."""
    return " ".join(re.findall("[A-Z][a-z]+", mode.removesuffix("Lock"))).upper()


def _note(taken: dict[str, str], table: str, mode: str) -> None:
    """Keep the strongest mode. ACCESS SHARE, the lock of a read, does not count."""
    name = mode_in_sql(mode)
    if name != "ACCESS SHARE":
        taken[table] = min(name, taken.get(table, name), key=list(LOCK_MODES).index)


async def revision_at(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    found: str = await connection.fetchval("SELECT version_num FROM baton.alembic_version")
    return found
