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
from tests.logbook import claimed, connected, employ
from tests.past import old_stream

from baton import log, partitions, pods, rates, streams, workers
from baton.database import Connection, pool
from baton.events import encode_text
from baton.log import Append
from baton.outcome import Outcome

ENDED, QUEUED, RUNNING, BATCHES = 10_000, 20, 60, 20
MOST_ROWS = 500
WORKER = UUID("01900000-0000-7000-8000-000000000001")
FIRST, LAST = UUID(int=0), UUID(int=(1 << 128) - 1)

_STREAMS = """
INSERT INTO baton.stream (generator, input, on_worker_lost, status, worker_id, epoch, metadata)
SELECT 'test', '1', 'retry', $1, $2, 1, jsonb_build_object('chat', i::text) FROM generate_series(1, $3) AS i
"""
_BATCHES = """
INSERT INTO baton.batch
SELECT id, i, i, 1, false, '{"type":"text","delta":"x"}'
FROM (SELECT id FROM baton.stream ORDER BY random() LIMIT 500) AS s, generate_series(1, $1) AS i
"""

# Each query with the arguments that a pod or worker gives it, and how many partitions it may look into for them.
QUERIES: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "read": (log._READ, ("$stream", 10, log.PAGE_ROWS, log.PAGE_BYTES), 1),
    "read_newest": (log._READ_NEWEST, ("$stream", log.PAGE_ROWS, 131_072), 1),
    "last": (log._LAST, ("$stream",), 1),
    "tails": (log._TAILS, (["$stream", "$running"],), 1),
    "erase": (log._ERASE, ("$stream", True), 1),
    "get": (streams._GET, ("$stream",), 0),
    "find": (streams._FIND, ("", None, None, None, 20), 0),
    "find by metadata": (streams._FIND, ("", None, None, ['{"chat": "4242"}'], 20), 0),
    "insert": (streams._INSERT, ("", "test", "1", "{}", "retry", *[None] * 5, 936, 1000), 0),
    "take": (rates._TAKE, ("", "caller", 0.1, 10), 0),
    "claim": (streams._CLAIM, (WORKER, ["test"], 10), 0),
    "overdue": (streams._OVERDUE, (600.0, True), 0),
    "watched": (streams._WATCHED, (["$running"],), 0),
    "close": (streams._CLOSE, ("$running", 1, "failed", "error", "a", "b", None, 1, 0.1, 0.1), 0),
    "owned": (workers._OWNED, (WORKER,), 0),
    "live": (streams._LIVE, ("", FIRST, LAST, MOST_ROWS, ["running"], 50), 0),
    "live counts": (streams._LIVE_COUNTS, ("", MOST_ROWS), 0),
    "latest": (streams._LATEST, ("", FIRST, LAST, 51, None, 51), 0),
    "latest failed": (streams._LATEST, ("", FIRST, LAST, MOST_ROWS - 1, ["failed"], 51), 0),
    "latest of another": (streams._LATEST, ("nobody", FIRST, LAST, MOST_ROWS - 1, None, 51), 0),
    "by id": (streams._LATEST, ("", "$stream", "$stream", 51, None, 51), 0),
    "nth": (streams._NTH, ("", FIRST, LAST, MOST_ROWS - 1), 0),
    "queue": (streams._QUEUE_STATE, (), 0),
    "workers": (workers._LISTED, (), 0),
    "note": (pods._NOTE, (WORKER, 600, "a", "1", "ready", "x", 0, 0, "{}", "{}", "{}", None), 0),
    "viewers": (pods._VIEWERS, (["$stream"], [str(WORKER)]), 0),
    "orphans": (workers._ORPHANS, (WORKER,), 0),
}


async def in_use(connection: Connection) -> dict[str, str]:
    """Fill the database; return the streams to ask for."""
    await partitions.create_ahead(connection, 30)
    await employ(connection, WORKER)
    for status, worker, count in (("completed", None, ENDED), ("queued", None, QUEUED), ("running", WORKER, RUNNING)):
        await connection.execute(_STREAMS, status, worker, count)
    await connection.execute(_BATCHES, BATCHES)
    await connection.execute("ANALYZE baton.stream, baton.batch, baton.worker")
    stream = await connection.fetchval("SELECT stream_id FROM baton.batch LIMIT 1")
    running = await connection.fetchval("SELECT id FROM baton.stream WHERE status = 'running' LIMIT 1")
    return {"$stream": str(stream), "$running": str(running)}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_what_runs_all_the_time_uses_an_index_and_one_partition(
    dsn: str, mode: str, subtests: pytest.Subtests
) -> None:
    async with connected(dsn) as connection:
        names = await in_use(connection)
        await connection.execute(f"SET plan_cache_mode = {mode}")
        for name, (query, arguments, most) in QUERIES.items():
            if query in {streams._FIND, streams._LATEST} and mode == "force_generic_plan":
                continue  # they have none: they say so themselves
            with subtests.test(name):
                asked = log.within_day(query, UUID(names["$stream"]))
                nodes = [node async for node in executed(connection, asked, literals(arguments, names))]
                relations = {node["Relation Name"]: node["Node Type"] for node in nodes if "Relation Name" in node}
                # A worker's row is one of a handful, and so is a pod's.
                scanned = {relation: kind for relation, kind in relations.items() if relation not in {"worker", "pod"}}
                assert "Seq Scan" not in scanned.values(), relations
                assert sum(relation.startswith("batch_") for relation in relations) == most, relations
                looked_at = [(node["Actual Rows"] + removed(node), node["Node Type"]) for node in nodes]
                assert max(looked_at)[0] < MOST_ROWS, looked_at


async def test_an_append_looks_up_its_streams_by_their_key(dsn: str) -> None:
    async with connected(dsn) as connection:
        names = await in_use(connection)
        running = UUID(names["$running"])
        arguments = ([running], [1], [1], [1], [False], [b"{}"], [None], None)
        plan = orjson.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {log._APPEND}", *arguments))
        kinds = {node.get("Relation Name"): node["Node Type"] for node in walk(plan[0]["Plan"])}
        assert kinds["stream"] == "Index Scan"


async def append(connection: Connection, ids: list[UUID], outcome: Outcome | None = None) -> None:
    events = outcome.encode() if outcome else encode_text("x")
    assert await log.append(connection, [Append(stream_id, 1, 9, 9, events, outcome) for stream_id in ids]) == set(ids)


# What locks the log, with the number of partitions that hold the streams it is about.
LOCKING: dict[str, tuple[Callable[[Connection, list[UUID]], Awaitable[object]], int]] = {
    "append": (lambda connection, ids: append(connection, ids[:2]), 1),
    "append for two days": (append, 2),
    "append of ends": (lambda connection, ids: append(connection, ids[:2], Outcome.completed("stop")), 1),
    "read": (lambda connection, ids: log.read(connection, ids[0], 1), 1),
    "read_newest": (lambda connection, ids: log.read_newest(connection, ids[0], 131_072), 1),
    "read_tail": (lambda connection, ids: log.read_tail(connection, ids[0]), 1),
    "tails": (lambda connection, ids: log.tails(connection, ids[:2]), 1),
    "tails of two days": (log.tails, 2),
    "tails of none": (lambda connection, ids: log.tails(connection, []), 0),
    "erase": (lambda connection, ids: log.erase(connection, ids[0], keep_end=True), 1),
    "partitions": (lambda connection, _ids: partitions.attached(connection), 0),
    "partitions missing": (lambda connection, _ids: partitions.missing(connection, 30), 0),
    "partitions created before": (lambda connection, _ids: partitions.create_ahead(connection, 30), 0),
}
# Of each session, that it needs not share with others: beyond them a lock takes a place in the server's table.
FAST_LOCKS = 16

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
                assert locked["locks"] <= FAST_LOCKS or mode == "force_custom_plan", locked


@asynccontextmanager
async def never(connection: Connection) -> AsyncIterator[None]:
    """Undo what is done to the database here."""
    transaction = connection.transaction()
    await transaction.start()
    yield
    await transaction.rollback()


def test_rows_of_the_log_are_touched_in_one_module() -> None:
    package = Path(log.__file__).parent
    touching = re.compile(r"(FROM|INTO|JOIN|UPDATE) baton\.(batch|event)\b")
    assert [path.name for path in package.rglob("*.py") if touching.search(path.read_text())] == ["log.py"]


async def test_finding_is_planned_anew_each_time(dsn: str) -> None:
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        for number in range(10):
            await streams.find(opened, metadata=[{"chat": str(number)}])
            await streams.latest(opened, "", (FIRST, LAST), None, 20)
        planned = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1"
        for query in (streams._FIND, streams._LATEST):
            assert tuple(await opened.fetchrow(planned, query) or ()) == (0, 10)


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
        return "{" + ",".join(orjson.dumps(literal(item, names)).decode() for item in argument) + "}"
    return names.get(str(argument), str(argument))
