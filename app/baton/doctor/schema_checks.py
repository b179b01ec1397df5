"""Checks of Baton's schema: its revision, tables that a crash empties, and invalid indexes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..db.schema_revision import REVISION, check_schema
from ..errors import ConfigurationError
from .finding import Case, Finding, error, ok, refusal, warning

# The rate buckets and the rows of pods are UNLOGGED on purpose.
_UNLOGGED: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind IN ('r', 'p') AND c.relpersistence <> 'p'
  AND c.relname NOT IN ('bucket', 'token_bucket', 'pod')
ORDER BY 1
"""
# An index of a partitioned table stays invalid until the index of each partition is attached, so it is reported too.
_INVALID_INDEXES: Final = """
SELECT c.relname FROM pg_index AS x
JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND NOT (x.indisvalid AND x.indisready) ORDER BY 1
"""


async def revision(case: Case) -> AsyncIterator[Finding]:
    """Is the schema compatible with this version of Baton?"""
    try:
        found = await check_schema(case.connection)
    except ConfigurationError as problem:
        yield refusal("schema", problem)
        return
    yield ok("schema", f"The schema is at revision {found}; this version of Baton is made for {REVISION}.")


async def unlogged(case: Case) -> AsyncIterator[Finding]:
    """Is there a table that a crash empties?"""
    if names := [row["relname"] for row in await case.connection.fetch(_UNLOGGED)]:
        yield error(
            "unlogged",
            f"UNLOGGED: {', '.join(names)}. A crash empties such a table, and standbys do not have it.",
            "ALTER TABLE … SET LOGGED.",
        )


async def indexes(case: Case) -> AsyncIterator[Finding]:
    """Are all indexes valid?"""
    names = [row["relname"] for row in await case.connection.fetch(_INVALID_INDEXES)]
    if names:
        yield warning(
            "indexes_invalid",
            f"Invalid indexes, which slow writes and serve no reads: {', '.join(names[:5])}.",
            "If no migration is building it now, run `baton migrate`, or REINDEX INDEX CONCURRENTLY.",
        )
    else:
        yield ok("indexes", "All indexes are valid.")
