"""Lists of streams: pages of the newest first, and how many of a tenant's streams are live.

A list scans a bounded number of rows, however rare the wanted streams are. So a page may be short or even empty and
still say where to continue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from .postgres import Connection, Pool
from .streams import COLUMNS, LIVE, Stream, from_row

# These choose the rows that one statement scans, $4 at most: the newest between two ids, the live ones, or the ones
# with some metadata. The last two are in no order: unless all of them were scanned, they do not show which rows are
# the newest.
#
# Comparing rows makes Postgres use the index on (tenant, id), since no other index has this order. With statistics from
# before a tenant grew, a plan for `tenant = $1` may walk through the streams of all others, or sort all of this one.
_NEWEST_OF_TENANT = """(tenant, id) BETWEEN ROW($1::text, $2::uuid) AND ROW($1::text, $3::uuid)
    ORDER BY tenant DESC, id DESC LIMIT $4"""
_NEWEST_OF_ALL = "id BETWEEN $2 AND $3 ORDER BY id DESC LIMIT $4"
_LIVE_OF_TENANT = "tenant = $1 AND status NOT IN ('completed', 'failed', 'cancelled') LIMIT $4"
_LIVE_OF_ALL = "status NOT IN ('completed', 'failed', 'cancelled') LIMIT $4"
# The index on metadata has no tenant, so streams of other tenants count too.
_MATCHING = "metadata @> ANY ($6::jsonb[]) LIMIT $4"

# The page is the part of these rows that fits: of one tenant, between two ids, in one of some states, with metadata.
# In any case the statement returns how many rows were scanned, and the oldest of them.
_PAGE = f"""
WITH scanned AS MATERIALIZED (
    SELECT id, ($1::text IS NULL OR tenant = $1) AND id BETWEEN $2::uuid AND $3::uuid
        AND ($5::text[] IS NULL OR status = ANY ($5)) AND ($6::jsonb[] IS NULL OR metadata @> ANY ($6)) AS fits
    FROM baton.stream WHERE {{}}
), whole AS (
    SELECT count(*) AS scanned, (SELECT id FROM scanned ORDER BY id LIMIT 1) AS oldest FROM scanned
)
SELECT whole.*, page.* FROM whole LEFT JOIN (
    SELECT {COLUMNS} FROM baton.stream
    WHERE id = ANY (ARRAY (SELECT id FROM scanned WHERE fits ORDER BY id DESC LIMIT $7))
) AS page ON true
ORDER BY page.id DESC
"""  # noqa: S608

# The index on metadata has no order, and reading a million entries of it takes 40 ms. So Postgres is first asked how
# many it expects. For a rare value the estimate is a fixed part of the table, 1 in 10,000, and without statistics it is
# 1 in 100. So only a larger part means that the value is common.
_EXPECTED = "EXPLAIN (FORMAT JSON) SELECT FROM baton.stream WHERE metadata @> ANY ($1::jsonb[])"
_IS_COMMON = """
SELECT $1 > 0.02 * reltuples AND EXISTS (
    SELECT FROM pg_stats WHERE schemaname = 'baton' AND tablename = 'stream' AND attname = 'metadata'
)
FROM pg_class WHERE oid = 'baton.stream'::regclass
"""
# This holds whatever the statistics are: a scan of the table, or a sort before the limit, has no bound.
_BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"

_LIVE_COUNTS = """
SELECT count(*) FILTER (WHERE status = 'queued') AS queued, count(*) FILTER (WHERE status = 'waiting') AS waiting,
       count(*) FILTER (WHERE status IN ('running', 'open')) AS running
FROM (
    SELECT status FROM baton.stream
    WHERE tenant = $1 AND status NOT IN ('completed', 'failed', 'cancelled') LIMIT $2
) AS live
"""

_COUNT_WAITING = "SELECT count(*) FROM (SELECT FROM baton.stream WHERE status = 'waiting' LIMIT $1) AS waiting"

# The most rows that a list scans in one statement.
MAX_SCANNED = 2000
# The most streams that `count_waiting` counts.
MOST_WAITING = 10_000
FIRST, LAST = UUID(int=0), UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class StreamFilter:
    """Which streams to list: of one tenant, or of all if it is None; between two ids; in one of some states.

    With `metadata`, a stream must have one of these alternatives.
    """

    tenant: str | None
    first: UUID = FIRST
    last: UUID = LAST
    statuses: Sequence[str] | None = None
    metadata: Sequence[Mapping[str, Any]] | None = None

    @property
    def live(self) -> bool:
        """Whether only streams that have not ended match."""
        return self.statuses is not None and LIVE.issuperset(self.statuses)

    @property
    def filters(self) -> bool:
        """Whether a scanned row may not match the filter."""
        return self.statuses is not None or self.metadata is not None

    @property
    def alternatives(self) -> list[str] | None:
        """The alternatives of `metadata` as JSON, for the query."""
        return None if self.metadata is None else [orjson.dumps(item).decode() for item in self.metadata]


@dataclass(frozen=True, slots=True)
class Page:
    """Some streams, newest first. The list continues before the id `before`; if it is None, this is the last page.

    `scanned` is how many rows were read for the page, and `oldest` is the lowest id of them.
    """

    streams: Sequence[Stream]
    before: UUID | None
    scanned: int
    oldest: UUID | None


class LiveStreams(NamedTuple):
    """How many streams are queued, waiting for an input, and running or open."""

    queued: int
    waiting: int
    running: int


async def find(connection: Connection, selection: StreamFilter, limit: int) -> Page:
    """Return the newest wanted streams, `limit` at most, and where to continue.

    The page may be short or empty while more streams follow: it is the last one only if it has no `before`.
    """
    async with connection.transaction(readonly=True):
        await connection.execute(_BY_INDEX)
        if selection.metadata is not None and not await _is_common(connection, selection):
            page = await _read_page(connection, _MATCHING, MAX_SCANNED, selection, limit)
            if page.scanned < MAX_SCANNED:
                return page
        if selection.live:
            source = _LIVE_OF_ALL if selection.tenant is None else _LIVE_OF_TENANT
            page = await _read_page(connection, source, MAX_SCANNED, selection, limit)
            if page.scanned < MAX_SCANNED:
                return page
        return await _read_newest(connection, selection, limit)


async def find_all(connection: Connection, selection: StreamFilter, limit: int) -> AsyncIterator[Stream]:
    """Yield the newest `limit` wanted streams, one statement for each page, however many pages it takes."""
    count = 0
    while count < limit:
        page = await find(connection, selection, limit - count)
        for stream in page.streams:
            yield stream
        count += len(page.streams)
        if page.before is None:
            return
        selection = replace(selection, last=below(page.before))


def merged(pages: Sequence[Page], limit: int) -> Page:
    """Return the page that the databases would have together, each of which has returned one for the same list."""
    # Below the end of a page its database may have more streams.
    known_from = max((page.before for page in pages if page.before is not None), default=FIRST)
    found = sorted(
        (stream for page in pages for stream in page.streams if stream.id >= known_from),
        key=lambda stream: stream.id,
        reverse=True,
    )
    before = found[limit - 1].id if len(found) > limit else known_from if known_from != FIRST else None
    oldest = min((page.oldest for page in pages if page.oldest is not None), default=None)
    return Page(found[:limit], before, sum(page.scanned for page in pages), oldest)


def below(stream_id: UUID) -> UUID:
    """Return the id just below an id."""
    return UUID(int=max(0, stream_id.int - 1))


async def live_counts(executor: Connection | Pool, tenant: str) -> LiveStreams:
    """Return how many of a tenant's streams have not ended, up to `MAX_SCANNED` in total."""
    row = await executor.fetchrow(_LIVE_COUNTS, tenant, MAX_SCANNED)
    assert row is not None
    return LiveStreams(**dict(row))


async def count_waiting(executor: Connection | Pool) -> int:
    """Return how many streams of all tenants wait for an input; at most `MOST_WAITING`."""
    found: int = await executor.fetchval(_COUNT_WAITING, MOST_WAITING)
    return found


async def _is_common(connection: Connection, selection: StreamFilter) -> bool:
    """Return whether the statistics show that too many streams have the metadata to read their part of the index."""
    plan = orjson.loads(await connection.fetchval(_EXPECTED, selection.alternatives))
    expected = plan[0]["Plan"]["Plan Rows"]
    return expected > MAX_SCANNED and bool(await connection.fetchval(_IS_COMMON, float(expected)))


async def _read_newest(connection: Connection, selection: StreamFilter, limit: int) -> Page:
    source = _NEWEST_OF_ALL if selection.tenant is None else _NEWEST_OF_TENANT
    most = MAX_SCANNED if selection.filters else limit + 1
    page = await _read_page(connection, source, most, selection, limit)
    if page.before is None and page.scanned == most:
        return replace(page, before=page.oldest)
    return page


async def _read_page(connection: Connection, source: str, most: int, selection: StreamFilter, limit: int) -> Page:
    """Scan `most` rows of a source at most. The page says where to continue only if it is full."""
    rows = await connection.fetch(
        _PAGE.format(source),
        *(
            selection.tenant,
            selection.first,
            selection.last,
            most,
            selection.statuses,
            selection.alternatives,
            limit + 1,
        ),
    )
    found = [from_row(dict(list(row.items())[2:])) for row in rows if row["id"] is not None]
    before = found[limit - 1].id if len(found) > limit else None
    return Page(found[:limit], before, rows[0]["scanned"], rows[0]["oldest"])
