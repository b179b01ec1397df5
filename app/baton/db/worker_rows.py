"""The workers' rows: a counter that each worker raises while it lives, and the streams that it owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from types import MappingProxyType
from typing import Final
from uuid import UUID

from ..model_entries import EXTERNAL
from .fence import Fence
from .postgres import Connection, Place, Pool
from .schema_revision import REVISION
from .streams import UNWATCHED_SINCE

# The most silent streams that a worker reports.
MOST_SILENT: Final = 100
NO_SILENCES: Final[Mapping[UUID, float]] = MappingProxyType({})

_REGISTER = """
INSERT INTO baton.worker (name, generators, concurrency, code, has_end_hook) VALUES ($1, $2, $3, $4, $5) RETURNING id
"""
# Whether a worker has an end hook, which then runs for every stream that a worker ends.
HAS_END_HOOK: Final = "SELECT EXISTS (SELECT FROM baton.worker WHERE has_end_hook)"
_PLACE = "SELECT ctid FROM baton.worker WHERE id = $1"
_RAISE = """
UPDATE baton.worker
SET heartbeat = heartbeat + 1, heartbeat_at = clock_timestamp(), tokens = $2, silent = $3, silent_seconds = $4
WHERE id = $1
RETURNING ctid
"""
_OWNED = f"""
SELECT id, epoch, claim_token, cancel_requested_at IS NOT NULL AS cancelled,
       coalesce({UNWATCHED_SINCE} < clock_timestamp() - make_interval(secs => unwatched_timeout), false) AS unwatched,
       inputs
FROM baton.stream
WHERE worker_id = $1 AND status = 'running'
"""  # noqa: S608
# By their key, whatever the planner expects of the index of running streams.
_OWNED_OF = f"""
WITH known AS MATERIALIZED (SELECT * FROM baton.stream WHERE id = ANY ($2))
{_OWNED.replace("baton.stream", "known")}
"""  # noqa: S608
_COUNTERS = "SELECT id, heartbeat FROM baton.worker"
_TOKENS = "SELECT id, tokens FROM baton.worker"
# There is one row for each worker, and each row names a few streams.
_SILENCES = """
SELECT s.id, s.seconds + extract(epoch FROM clock_timestamp() - w.heartbeat_at)::double precision
FROM baton.worker AS w, unnest(w.silent, w.silent_seconds) AS s (id, seconds)
"""
_REMOVE = "DELETE FROM baton.worker WHERE id = $1"
_CANCELLED = "SELECT id, cancel_requested_at IS NOT NULL FROM baton.stream WHERE id = ANY ($1)"
_ORPHANS = """
SELECT id, epoch, claim_token, attempts, on_worker_lost, coalesce(history <> baton.current_history(), false) AS rewound,
       generator, continues
FROM baton.stream AS s
WHERE status = 'running' AND worker_id IS DISTINCT FROM $1
  AND NOT EXISTS (SELECT FROM baton.worker AS w WHERE w.id = s.worker_id)
"""
# Of a database without streams it is unknown who will write them. The sample bounds the cost.
_ARE_NEEDED = """
SELECT EXISTS (SELECT FROM baton.stream WHERE status = 'queued')
    OR EXISTS (SELECT FROM baton.stream WHERE status = 'running')
    OR coalesce(bool_or(generator <> $1 AND created_at > clock_timestamp() - interval '1 day'), true)
FROM (SELECT generator, created_at FROM baton.stream ORDER BY id DESC LIMIT 200) AS newest
"""
_LISTED = """
SELECT w.id, w.name, w.generators, w.concurrency, w.started_at,
       extract(epoch FROM clock_timestamp() - w.heartbeat_at)::double precision AS silent_seconds,
       (SELECT count(*) FROM baton.stream AS s WHERE s.worker_id = w.id AND s.status = 'running') AS running,
       w.tokens
FROM baton.worker AS w ORDER BY w.name, w.id
"""
_NAME_OF_WRITER = """
SELECT w.name FROM baton.stream AS s JOIN baton.worker AS w ON w.id = s.worker_id
WHERE s.id = $1 AND s.status = 'running'
"""
_OFFERED = "SELECT DISTINCT unnest(generators) FROM baton.worker"
_OFFERS = "SELECT DISTINCT generators FROM baton.worker"


@dataclass(frozen=True, slots=True)
class Owned:
    """A stream that a worker owns according to the database."""

    fence: Fence
    cancelled: bool
    unwatched: bool
    inputs: int = 0  # how many it has got


@dataclass(frozen=True, slots=True)
class Orphan:
    """A stream whose worker is gone. `rewound`: it belongs to an older history of the database."""

    fence: Fence
    attempts: int
    on_worker_lost: str
    rewound: bool = False
    generator: str = ""
    continues: bool = False  # another worker can continue it

    @property
    def stream_id(self) -> UUID:
        """The stream's id."""
        return self.fence.stream_id


@dataclass(frozen=True, slots=True)
class ListedWorker:
    """A worker, as its row describes it."""

    id: UUID
    name: str
    generators: Sequence[str]
    concurrency: int
    started_at: datetime
    silent_seconds: float
    running: int
    tokens: int


async def list_all(executor: Connection | Pool) -> list[ListedWorker]:
    """List the workers that have not left, by name."""
    return [ListedWorker(*row) for row in await executor.fetch(_LISTED)]


async def name_of_writer(executor: Connection | Pool, stream_id: UUID) -> str | None:
    """Return the name of the worker that runs a stream; None if none does."""
    name: str | None = await executor.fetchval(_NAME_OF_WRITER, stream_id)
    return name


async def register(
    connection: Connection, name: str, generators: Sequence[str], concurrency: int, *, has_end_hook: bool = False
) -> UUID:
    """Insert a row for a worker that starts; return its id."""
    worker_id: UUID = await connection.fetchval(_REGISTER, name, generators, concurrency, REVISION, has_end_hook)
    return worker_id


async def any_has_end_hook(executor: Connection | Pool) -> bool:
    """Return whether a registered worker has an end hook."""
    found: bool = await executor.fetchval(HAS_END_HOOK)
    return found


async def place(connection: Connection, worker_id: UUID) -> Place | None:
    """Return where a worker's row is until its next update."""
    found: Place | None = await connection.fetchval(_PLACE, worker_id)
    return found


async def heartbeat(
    connection: Connection, worker_id: UUID, tokens: int = 0, silences: Mapping[UUID, float] = NO_SILENCES
) -> Place | None:
    """Raise the worker's counter; return where its row is now, or None if it was declared dead.

    `tokens`: how many it has generated so far. `silences`: for how many seconds each silent stream has been silent.
    Only the longest `MOST_SILENT` are kept.
    """
    longest = sorted(silences.items(), key=itemgetter(1), reverse=True)[:MOST_SILENT]
    ids, seconds = [item[0] for item in longest], [item[1] for item in longest]
    place: Place | None = await connection.fetchval(_RAISE, worker_id, tokens, ids, seconds)
    return place


async def silences(executor: Connection | Pool) -> dict[UUID, float]:
    """Return for how many seconds each silent stream has been silent, as its worker last reported."""
    return {row[0]: row[1] for row in await executor.fetch(_SILENCES)}


async def owned(connection: Connection, worker_id: UUID, among: Sequence[UUID] | None = None) -> list[Owned]:
    """Return the streams that the worker owns: all, or only the ones in `among`, which are looked up by their key.

    Reading all of them may be slow: while an old snapshot is open, the index keeps an entry for each stream that the
    worker has run since.
    """
    if among is None:
        rows = await connection.fetch(_OWNED, worker_id)
    else:
        rows = await connection.fetch(_OWNED_OF, worker_id, among)
    return [Owned(Fence(*row[:3]), *row[3:]) for row in rows]


async def cancelled(connection: Connection, stream_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of these streams must stop, or have no row any more."""
    running = {row[0] for row in await connection.fetch(_CANCELLED, stream_ids) if not row[1]}
    return set(stream_ids) - running


async def counters(executor: Connection | Pool) -> dict[UUID, int]:
    """Return the counter of each worker. A counter falls only if the database went back in time."""
    return {row[0]: row[1] for row in await executor.fetch(_COUNTERS)}


async def tokens(executor: Connection | Pool) -> dict[UUID, int]:
    """Return how many tokens each worker has generated."""
    return {row[0]: row[1] for row in await executor.fetch(_TOKENS)}


async def remove(connection: Connection, worker_id: UUID) -> None:
    """Delete the row of a worker that has left or is dead."""
    await connection.execute(_REMOVE, worker_id)


async def orphans(connection: Connection, own_id: UUID) -> list[Orphan]:
    """Return the running streams whose worker has no row. Those of the worker `own_id` are left out."""
    return [Orphan(Fence(*row[:3]), *row[3:]) for row in await connection.fetch(_ORPHANS, own_id)]


async def offered_generators(executor: Connection | Pool) -> frozenset[str]:
    """Return the names of the generators that registered workers offer."""
    return frozenset(row[0] for row in await executor.fetch(_OFFERED))


async def offers(executor: Connection | Pool) -> list[frozenset[str]]:
    """Return what registered workers offer: the generators of each, without repetitions."""
    return [frozenset(row[0]) for row in await executor.fetch(_OFFERS)]


async def are_needed(executor: Connection | Pool) -> bool:
    """Whether streams need a worker: some wait or run, or not all of the newest ones are written over HTTP."""
    needed: bool = await executor.fetchval(_ARE_NEEDED, EXTERNAL)
    return needed
