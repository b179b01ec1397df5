"""How Postgres plans the queries that run all the time: by an index, and in no partition but the stream's own.

The database is one that has been in use: partitions for weeks, many streams that have ended and few that have not. Both
plans are looked at that a prepared statement may get, the one for its arguments and the one for any.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from tests.support.logbook import claimed, connected, employ
from tests.support.past import old_stream

from baton.db import (
    event_log,
    external_appends,
    partitions,
    pod_rows,
    queue_lines,
    rate_buckets,
    steps,
    stop_calls,
    stream_admission,
    stream_creation,
    stream_ending,
    stream_lists,
    stream_queue,
    stream_states,
    streams,
    worker_rows,
)
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Connection, connect
from baton.db.stream_lists import StreamFilter
from baton.db.stream_states import State
from baton.events import RESET_HEAD, RESUMED_HEAD, USAGE_HEAD, encode_text
from baton.outcome import Outcome

ENDED, QUEUED, HELD, RUNNING, OPEN, BATCHES = 10_000, 20, 20, 60, 60, 20
MOST_ROWS = 500
WORKER = UUID("01900000-0000-7000-8000-000000000001")
YESTERDAY = "yesterday"
# A new stream's priority, and where it goes.
IN_LINE = (0, None, False, ["test"], YESTERDAY)
FIRST, LAST = stream_lists.FIRST, stream_lists.LAST

OF_TENANT = stream_lists._PAGE.format(stream_lists._NEWEST_OF_TENANT)
OF_ALL = stream_lists._PAGE.format(stream_lists._NEWEST_OF_ALL)
LIVE = stream_lists._PAGE.format(stream_lists._LIVE_OF_TENANT)
LIVE_OF_ALL = stream_lists._PAGE.format(stream_lists._LIVE_OF_ALL)
MATCHING = stream_lists._PAGE.format(stream_lists._MATCHING)

_STREAMS = """
INSERT INTO baton.stream (generator, input, on_worker_lost, status, worker_id, epoch, metadata)
SELECT 'test', '1', 'retry', $1, $2, 1, jsonb_build_object('chat', i::text) FROM generate_series(1, $3) AS i
"""
_HELD = """
WITH held AS (
    INSERT INTO baton.stream (generator, input, on_worker_lost, queue_position, held_until)
    SELECT 'test', '1', 'retry', NULL, clock_timestamp() - interval '1 minute' FROM generate_series(1, $1)
    RETURNING id
)
SELECT id FROM held LIMIT 1
"""
_BATCHES = """
INSERT INTO baton.batch
SELECT id, i, i, 1, false, '{"type":"text","delta":"x"}'
FROM (SELECT id FROM baton.stream ORDER BY random() LIMIT 500) AS s, generate_series(1, $1) AS i
"""
_KEPT = """
WITH kept AS (SELECT id, i FROM baton.stream, generate_series(1, 20) AS i WHERE status = 'running'),
     results AS (INSERT INTO baton.step SELECT id, 'name', '\\x00', i, '{}' FROM kept)
INSERT INTO baton.stream_state SELECT id, 20, '{}' FROM kept WHERE i = 1
"""

_OPEN = """
WITH open AS (INSERT INTO baton.stream (generator, input, on_worker_lost, status)
              SELECT 'external', 'null', 'fail', 'open' FROM generate_series(1, $1) RETURNING id),
     producers AS (INSERT INTO baton.producer SELECT id, name, 0, 6 FROM open, (VALUES ('a'), ('b')) AS n (name))
INSERT INTO baton.external_stream (stream_id, tenant, kind, content_type, tail, producers)
SELECT id, '', 'events', 'application/json', 2, 2 FROM open
"""

# Streams of which those with a higher `$3` are newer.
_AGED = """
INSERT INTO baton.stream (id, tenant, generator, input, on_worker_lost, status, metadata)
SELECT ('01900000' || lpad(to_hex($3::integer), 4, '0') || '7000' || '8000' || lpad(to_hex(i), 12, '0'))::uuid,
       $1, 'test', '1', 'retry', $4, jsonb_build_object('kind', $5::text, 'chat', i::text)
FROM generate_series(1, $2::integer) AS i
"""
LISTS: dict[str, StreamFilter] = {
    "the newest": StreamFilter("large"),
    "a state that none has": StreamFilter("large", statuses=["failed"]),
    "a state that is rare": StreamFilter("large", statuses=["cancelled"]),
    "two states": StreamFilter("large", statuses=["failed", "cancelled"]),
    "queued": StreamFilter("large", statuses=["queued"]),
    "metadata that all have": StreamFilter("large", statuses=["failed"], metadata=[{"kind": "x"}]),
    "metadata that none has": StreamFilter("large", metadata=[{"kind": "none"}, {"kind": 1}]),
    "metadata that one has": StreamFilter("large", metadata=[{"chat": "4242"}, {"chat": 4242}]),
    "of all": StreamFilter(None, statuses=["failed"]),
    "running of all": StreamFilter(None, statuses=["running"]),
    "of a small tenant": StreamFilter("small", statuses=["cancelled"]),
    "metadata of a small tenant": StreamFilter("small", metadata=[{"kind": "x"}]),
}
LARGE = 100_000


def appending(*, closing: bool = False, saving: bool = False, forgetting: bool = False) -> str:
    """The statement that a worker appends with, at first."""
    return event_log._statement(closing=closing, saving=saving, forgetting=forgetting, where_free=False)


# Each query with the arguments that a pod or worker gives it, and how many partitions it may look into for them.
QUERIES: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "read": (event_log._READ, ("$stream", 10, event_log.PAGE_ROWS, event_log.PAGE_BYTES), 1),
    "read_newest": (event_log._READ_NEWEST, ("$stream", event_log.PAGE_ROWS, 131_072), 1),
    "last": (event_log._LAST, ("$stream",), 1),
    "usage": (event_log._USAGE, ("$stream", rf"\x{USAGE_HEAD.hex()}"), 1),
    "tails": (event_log._TAILS, (["$stream", "$running"],), 1),
    "erase": (event_log._ERASE, ("$stream", True), 1),
    "get": (streams._GET, ("$stream",), 0),
    "get many": (streams._GET_MANY, (["$stream", "$running"],), 0),
    "continued messages": (streams._CONTINUED, (["$stream", "$running"],), 0),
    "newest": (OF_TENANT, ("", FIRST, LAST, 21, None, None, 21), 0),
    "newest failed": (OF_TENANT, ("", FIRST, LAST, MOST_ROWS - 1, ["failed"], None, 51), 0),
    "newest with metadata": (OF_TENANT, ("", FIRST, LAST, MOST_ROWS - 1, None, ['{"chat": "1"}'], 51), 0),
    "newest of another": (OF_TENANT, ("nobody", FIRST, LAST, MOST_ROWS - 1, ["failed"], None, 51), 0),
    "newest of all": (OF_ALL, (None, FIRST, LAST, MOST_ROWS - 1, ["failed"], None, 51), 0),
    "by id": (OF_TENANT, ("", "$stream", "$stream", 51, None, None, 51), 0),
    "live": (LIVE, ("", FIRST, LAST, MOST_ROWS - 1, ["running"], None, 50), 0),
    "live of all": (LIVE_OF_ALL, (None, FIRST, LAST, MOST_ROWS - 1, ["running"], None, 50), 0),
    "matching": (MATCHING, ("", FIRST, LAST, MOST_ROWS - 1, None, ['{"chat": "4242"}'], 50), 0),
    "insert": (
        stream_creation._INSERT,
        ("", "test", "1", "{}", "retry", *[None] * 6, True, False, *IN_LINE, None, 936, 1000, FIRST, ["$stream"], 7),
        0,
    ),
    "take": (rate_buckets._TAKE, ("", "caller", 0.1, 10), 0),
    "claim": (stream_queue._CLAIM, (WORKER, ["test"], 10, "(0,1)", YESTERDAY, 1 << 27, ["test"]), 0),
    "first queued": (queue_lines._FIRST, (["test"], YESTERDAY), 0),
    "first queued of all": (queue_lines._FIRST_OF_ALL, (YESTERDAY,), 0),
    "overdue": (stream_queue._OVERDUE, (YESTERDAY, 600.0, True), 0),
    "give back": (
        stream_queue._REQUEUE,
        ("$running", 1, None, False, 0, 0, "worker_lost", ["test"], YESTERDAY),
        0,
    ),
    "due": (stream_admission._DUE, (["test"], 100), 0),
    "look for due": (stream_admission._LOOK, (["test"], ["", "other"]), 0),
    "admit": (stream_admission._ADMIT, ("$held", ["test"], YESTERDAY), 0),
    "running of a tenant": (stream_admission._COUNT, ("",), 0),
    "held of a tenant": (stream_admission._OF_TENANT, ("", ["test"], 3), 0),
    "parked tenants": (stream_admission._PARKED_TENANTS, (["test"], 100), 0),
    "release parked": (stream_admission._RELEASE, (["test"], 100), 0),
    "watched": (streams._WATCHED, (["$running"],), 0),
    "close": (stream_ending._CLOSE, ("$running", 1, "failed", "error", "a", "b", *[None, 1, 0.1, 0.1, None, None]), 0),
    "owned": (worker_rows._OWNED, (WORKER,), 0),
    "owned of": (worker_rows._OWNED_OF, (WORKER, ["$running"]), 0),
    "live counts": (stream_lists._LIVE_COUNTS, ("", MOST_ROWS), 0),
    "queue": (stream_queue._QUEUE_STATE, (YESTERDAY,), 0),
    "workers": (worker_rows._LISTED, (), 0),
    "silences": (worker_rows._SILENCES, (), 0),
    "note": (pod_rows._NOTE, (WORKER, 600, "a", "1", "ready", "x", 0, 0, "{}", "{}", "{}", None, "0023"), 0),
    "viewers": (pod_rows._VIEWERS, (["$stream"], [str(WORKER)]), 0),
    "orphans": (worker_rows._ORPHANS, (WORKER,), 0),
    "grew": (event_log._GREW, ("$stream", 1, rf"\x{RESET_HEAD.hex()}", rf"\x{RESUMED_HEAD.hex()}"), 1),
    "stop calls": (stop_calls._TAKE, (["test"], 32, 60), 0),
    "stop calls made": (stop_calls._DELETE, (["$running"],), 0),
    "stop calls postponed": (stop_calls._POSTPONE, (["$running"], [1]), 0),
}
# What a worker asks over the connections that find rows only by an index.
_STATE = (["$running"], [21], [r"\x7b7d"], ["test"], [0], [20])
_ROWS = (["$running"], [21], [21], [1], [False], [r"\x7b7d"], [None], None)
_END = (["$running"], ["failed"], ["error"], ["a"], ["b"], [None], [1], [0.1], [0.1], [None], [None], [1])
_APPENDS = (["$open"], [2], [3], [3], [False], [r"\x7b7d"], [2], [1], [None], [1])
_NUMBERS = (["$open"], ["a"], [0], [7])
BY_INDEX: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "append": (appending(), _ROWS, 0),
    "append with states": (appending(saving=True), (*_ROWS, *_STATE), 0),
    "append that ends": (appending(closing=True, forgetting=True), (*_ROWS, *_END), 0),
    "append that ends with states": (
        appending(closing=True, forgetting=True, saving=True),
        (*_ROWS, *_END, *_STATE),
        0,
    ),
    "save alone": (stream_states._SAVE_ALONE, (*_STATE, [1], [None], None), 0),
    "state": (stream_states._READ, ("$running",), 0),
    "step": (steps._KEEP, ("$running", 1, None, "name", r"\x00", 7, r"\x7b7d"), 0),
    "step of another run": (steps._READ_ONE, ("$running", "name", r"\x00", 1), 0),
    "steps": (steps._READ, ("$running",), 0),
    "steps deleted": (steps._DELETE, ("$running",), 0),
    "append of producers": (external_appends._statement(closing=False), (*_APPENDS, *_NUMBERS), 0),
    "append of producers that ends": (
        external_appends._statement(closing=True),
        (*_APPENDS, *_NUMBERS, ["$open"], *_END[1:-1]),
        0,
    ),
    "states of external streams": (external_appends._READ, (["$open"],), 0),
    "producers": (external_appends._READ_PRODUCERS, (["$open"], ["a"]), 0),
}


async def in_use(connection: Connection) -> dict[str, str]:
    """Fill the database; return the streams to ask for."""
    await partitions.create_ahead(connection, 30)
    await employ(connection, WORKER)
    for status, worker, count in (("completed", None, ENDED), ("queued", None, QUEUED), ("running", WORKER, RUNNING)):
        await connection.execute(_STREAMS, status, worker, count)
    held = await connection.fetchval(_HELD, HELD)
    await connection.execute(_BATCHES, BATCHES)
    await connection.execute(_KEPT)
    await connection.execute(_OPEN, OPEN)
    await connection.execute(
        "ANALYZE baton.stream, baton.batch, baton.worker, baton.stream_state, baton.step, baton.stop_call"
    )
    stream = await connection.fetchval("SELECT stream_id FROM baton.batch LIMIT 1")
    running = await connection.fetchval("SELECT id FROM baton.stream WHERE status = 'running' LIMIT 1")
    open_one = await connection.fetchval("SELECT stream_id FROM baton.external_stream LIMIT 1")
    return {"$stream": str(stream), "$running": str(running), "$open": str(open_one), "$held": str(held)}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_frequent_statements_use_an_index_and_one_partition(
    dsn: str, mode: str, subtests: pytest.Subtests
) -> None:
    async with connected(dsn) as connection:
        names = await in_use(connection)
        for name, (query, arguments, most) in QUERIES.items():
            # As the code that asks this does.
            listed = query in {OF_TENANT, OF_ALL, LIVE, LIVE_OF_ALL, MATCHING}
            await connection.execute(stream_lists._BY_INDEX.replace("LOCAL", "") if listed else "RESET ALL")
            await connection.execute(f"SET plan_cache_mode = {mode}")
            with subtests.test(name):
                asked = event_log.within_day(query, UUID(names["$stream"]))
                nodes = [node async for node in executed(connection, asked, literals(arguments, names))]
                relations = {node["Relation Name"]: node["Node Type"] for node in nodes if "Relation Name" in node}
                # A worker's row is one of a handful, and so is a pod's, or a call that is still to be made.
                few = {"worker", "pod", "stop_call"}
                scanned = {relation: kind for relation, kind in relations.items() if relation not in few}
                assert "Seq Scan" not in scanned.values(), relations
                assert sum(relation.startswith("batch_") for relation in relations) == most, relations
                read_rows = [(node["Actual Rows"] + removed(node), node["Node Type"]) for node in nodes]
                assert max(read_rows)[0] < MOST_ROWS, read_rows


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_worker_finds_states_and_steps_by_their_keys(dsn: str, mode: str, subtests: pytest.Subtests) -> None:
    """Though the tables are small when the plan is made, since it is kept while they grow."""
    async with connected(dsn) as filling:
        names = await in_use(filling)
    connection = await connect(dsn, by_index=True)
    await connection.execute(f"SET plan_cache_mode = {mode}")
    for name, (query, arguments, most) in BY_INDEX.items():
        with subtests.test(name):
            nodes = [node async for node in executed(connection, query, literals(arguments, names))]
            read = [node for node in nodes if node["Node Type"].endswith("Scan") and "Relation Name" in node]
            assert {node["Node Type"] for node in read} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
            # By the stream at least, whose rows are few.
            assert all(node["Actual Rows"] + removed(node) <= 20 for node in read), read
            assert (
                len({node["Relation Name"] for node in nodes if node.get("Relation Name", "").startswith("batch_")})
                == most
            )
    await connection.close()


async def test_an_append_looks_up_its_streams_by_their_key(dsn: str) -> None:
    async with connected(dsn) as connection:
        names = await in_use(connection)
        running = UUID(names["$running"])
        arguments = ([running], [1], [1], [1], [False], [b"{}"], [None], None)
        statement = event_log._statement(closing=False, saving=False, forgetting=False, where_free=False)
        plan = orjson.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments))
        kinds = {node.get("Relation Name"): node["Node Type"] for node in walk(plan[0]["Plan"])}
        assert kinds["stream"] == "Index Scan"


async def test_a_worker_plans_each_append_once(dsn: str) -> None:
    """Otherwise Postgres may plan the end of each stream, which takes longer than executing it."""
    async with connected(dsn) as filling:
        names = await in_use(filling)
        running = UUID(names["$running"])
    connection = await connect(dsn, by_index=True)
    for seq in range(10, 20):
        await append_at(connection, running, seq)
        await append_at(connection, running, seq, Outcome.cancelled())  # its place is taken
    planned = await connection.fetchval(
        "SELECT sum(custom_plans) FROM pg_prepared_statements WHERE statement LIKE '%INSERT INTO baton.batch%'"
    )
    assert planned == 0
    await connection.close()


async def append_at(connection: Connection, stream_id: UUID, seq: int, outcome: Outcome | None = None) -> None:
    events = outcome.encode() if outcome else encode_text("x")
    await event_log.append(connection, [Append(stream_id, 1, seq, seq, events, outcome)])


async def append(
    connection: Connection, ids: list[UUID], outcome: Outcome | None = None, *, saving: bool = False
) -> None:
    events = outcome.encode() if outcome else encode_text("x")
    state = State(9, b"{}", "test", 8) if saving else None
    assert await event_log.append(
        connection, [Append(stream_id, 1, 9, 9, events, outcome, None, state, saving) for stream_id in ids]
    ) == set(ids)


# What locks the log, with the number of partitions that hold the streams it is about.
LOCKING: dict[str, tuple[Callable[[Connection, list[UUID]], Awaitable[object]], int]] = {
    "append": (lambda connection, ids: append(connection, ids[:2]), 1),
    "append for two days": (append, 2),
    "append of ends": (lambda connection, ids: append(connection, ids[:2], Outcome.completed("stop")), 1),
    "read": (lambda connection, ids: event_log.read(connection, ids[0], 1), 1),
    "read_newest": (lambda connection, ids: event_log.read_newest(connection, ids[0], 131_072), 1),
    "read_tail": (lambda connection, ids: event_log.read_tail(connection, ids[0]), 1),
    "read_usage": (lambda connection, ids: event_log.read_usage(connection, ids[0]), 1),
    "tails": (lambda connection, ids: event_log.tails(connection, ids[:2]), 1),
    "tails of two days": (event_log.tails, 2),
    "tails of none": (lambda connection, ids: event_log.tails(connection, []), 0),
    "append with states": (lambda connection, ids: append(connection, ids[:2], saving=True), 1),
    "append of ends that forgets": (
        lambda connection, ids: append(connection, ids[:2], Outcome.cancelled(), saving=True),
        1,
    ),
    "grew": (lambda connection, ids: event_log.grew(connection, Fence(ids[0], 1)), 1),
    "state": (lambda connection, ids: stream_states.read(connection, ids[0]), 0),
    "steps": (lambda connection, ids: steps.read(connection, ids[0]), 0),
    "erase": (lambda connection, ids: event_log.erase(connection, ids[0], keep_end=True), 1),
    "partitions": (lambda connection, _ids: partitions.attached(connection), 0),
    "partitions missing": (lambda connection, _ids: partitions.missing(connection, 30), 0),
    "partitions created before": (lambda connection, _ids: partitions.create_ahead(connection, 30), 0),
}
# A session has places of its own for 16, before Postgres 18. Each lock beyond them takes one in the server's table.
MOST_LOCKS = 22

_WARM_UP = 10  # after five executions Postgres may change to a plan for any arguments

_LOCKED = """
SELECT count(DISTINCT i.inhrelid) AS partitions, count(*) AS locks
FROM pg_locks AS l
LEFT JOIN pg_index AS x ON x.indexrelid = l.relation
LEFT JOIN pg_inherits AS i
    ON i.inhparent = 'baton.batch'::regclass AND i.inhrelid = coalesce(x.indrelid, l.relation)
WHERE l.pid = $1 AND l.locktype = 'relation'
"""


@pytest.mark.parametrize("mode", ["auto", "force_custom_plan", "force_generic_plan"])
async def test_a_statement_locks_the_partitions_of_its_streams_only(
    dsn: str, mode: str, subtests: pytest.Subtests
) -> None:
    async with connected(dsn) as watching:
        await in_use(watching)
        ids = [*await claimed(watching, 2), await old_stream(watching, 1, ended=False)]
        for name, (statement, most) in LOCKING.items():
            with subtests.test(name):
                connection = await asyncpg.connect(dsn, server_settings={"plan_cache_mode": mode})
                async with connection.transaction():
                    for _ in range(_WARM_UP):
                        async with never(connection):
                            await statement(connection, ids)
                async with never(connection):
                    await statement(connection, ids)
                    locked = await watching.fetchrow(_LOCKED, connection.get_server_pid())
                await connection.close()
                assert locked is not None
                assert locked["partitions"] == most
                assert locked["locks"] <= MOST_LOCKS or mode == "force_custom_plan", locked


@asynccontextmanager
async def never(connection: Connection) -> AsyncIterator[None]:
    """Undo what is done to the database here."""
    transaction = connection.transaction()
    await transaction.start()
    yield
    await transaction.rollback()


def test_only_one_module_touches_rows_of_the_log() -> None:
    package = Path(event_log.__file__).parent.parent
    touching = re.compile(r"(FROM|INTO|JOIN|UPDATE) baton\.(batch|event)\b")
    assert [path.name for path in package.rglob("*.py") if touching.search(path.read_text())] == ["event_log.py"]


async def test_a_list_scans_a_bounded_number_of_rows(dsn: str, subtests: pytest.Subtests) -> None:
    """The statistics are from before the tenant grew, or of now; the oldest of its streams are the ones wanted."""
    async with connected(dsn) as connection:
        await connection.execute("ALTER TABLE baton.stream SET (autovacuum_enabled = false)")
        await connection.execute(_AGED, "small", 50, 0, "completed", "x")
        await connection.execute(_AGED, "large", 3, 1, "cancelled", "rare")
        await connection.execute("ANALYZE baton.stream")
        await connection.execute(_AGED, "large", LARGE, 2, "completed", "x")
        for statistics in ("of before", "of now"):
            for name, wanted in LISTS.items():
                with subtests.test(f"{name}, statistics {statistics}"):
                    assert await blocks(connection, wanted) < stream_lists.MAX_SCANNED + 200
                    page = await stream_lists.find(connection, wanted, 20)
                    assert page.scanned <= stream_lists.MAX_SCANNED
            await connection.execute("ANALYZE baton.stream")
        small = await stream_lists.find(connection, StreamFilter("small", statuses=["cancelled"]), 20)
        assert (small.streams, small.before, small.scanned) == ([], None, 50)
        found = [item async for item in stream_lists.find_all(connection, LISTS["a state that is rare"], 20)]
        assert [item.metadata["kind"] for item in found] == ["rare"] * 3


async def blocks(connection: Connection, wanted: StreamFilter) -> int:
    """Count the blocks of `stream` and its indexes that a list of 20 looks at."""
    query = """
        SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
        FROM pg_statio_all_tables WHERE relid = 'baton.stream'::regclass
    """
    await connection.execute("SELECT pg_stat_force_next_flush()")
    before: int = await connection.fetchval(query)
    await stream_lists.find(connection, wanted, 20)
    await connection.execute("SELECT pg_stat_force_next_flush()")
    after: int = await connection.fetchval(query)
    return after - before


async def executed(connection: Connection, query: str, arguments: str) -> Any:
    """The nodes of a query's plan that did something."""
    await connection.execute(f"PREPARE asked AS {query}")
    transaction = connection.transaction()
    await transaction.start()
    try:
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked{arguments}")
    finally:
        await transaction.rollback()
        await connection.execute("DEALLOCATE asked")
    for node in walk(orjson.loads(plan)[0]["Plan"]):
        if node["Actual Loops"]:
            yield node


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def removed(node: dict[str, Any]) -> float:
    each = sum(float(rows) for name, rows in node.items() if name.startswith("Rows Removed by"))
    return each * float(node["Actual Loops"])


def literals(arguments: tuple[Any, ...], names: dict[str, str]) -> str:
    listed = ", ".join("NULL" if item is None else f"'{literal(item, names)}'" for item in arguments)
    return f" ({listed})" if arguments else ""


def literal(argument: Any, names: dict[str, str]) -> str:
    """What Postgres reads as any type: an array's items in double quotes."""
    if isinstance(argument, list):
        items = ("NULL" if item is None else orjson.dumps(literal(item, names)).decode() for item in argument)
        return "{" + ",".join(items) + "}"
    return names.get(str(argument), str(argument))
