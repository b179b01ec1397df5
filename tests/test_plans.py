"""How Postgres plans the queries that run all the time: by an index, and in no partition but the stream's own.

The database is one that has been in use: partitions for weeks, many streams that have ended and few that have not. Both
plans are looked at that a prepared statement may get, the one for its arguments and the one for any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import orjson
import pytest
from tests.logbook import connected, employ

from baton import log, partitions, pods, rates, streams, workers
from baton.database import Connection, pool

ENDED, QUEUED, RUNNING, BATCHES = 10_000, 20, 60, 20
MOST_ROWS = 500
WORKER = UUID("01900000-0000-7000-8000-000000000001")
YESTERDAY = "yesterday"
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
    "get": (streams._GET, ("$stream",), 0),
    "find": (streams._FIND, ("", None, None, None, 20), 0),
    "find by metadata": (streams._FIND, ("", None, None, ['{"chat": "4242"}'], 20), 0),
    "insert": (streams._INSERT, ("", "test", "1", "{}", "retry", *[None] * 5, 936, 1000, FIRST, ["$stream"], 7), 0),
    "take": (rates._TAKE, ("", "caller", 0.1, 10), 0),
    "claim": (streams._CLAIM, (WORKER, ["test"], 10, "(0,1)", YESTERDAY, FIRST), 0),
    "first queued": (streams._FIRST_QUEUED, (YESTERDAY, FIRST, ["test"]), 0),
    "first queued of all": (streams._FIRST_QUEUED, (YESTERDAY, FIRST, None), 0),
    "overdue": (streams._OVERDUE, (YESTERDAY, FIRST, 600.0, True), 0),
    "watched": (streams._WATCHED, (["$running"],), 0),
    "close": (streams._CLOSE, ("$running", 1, "failed", "error", "a", "b", None, 1, 0.1, 0.1), 0),
    "owned": (workers._OWNED, (WORKER,), 0),
    "owned of": (workers._OWNED_OF, (WORKER, ["$running"]), 0),
    "live": (streams._LIVE, ("", FIRST, LAST, MOST_ROWS, ["running"], 50), 0),
    "live counts": (streams._LIVE_COUNTS, ("", MOST_ROWS), 0),
    "latest": (streams._LATEST, ("", FIRST, LAST, 51, None, 51), 0),
    "latest failed": (streams._LATEST, ("", FIRST, LAST, MOST_ROWS - 1, ["failed"], 51), 0),
    "latest of another": (streams._LATEST, ("nobody", FIRST, LAST, MOST_ROWS - 1, None, 51), 0),
    "by id": (streams._LATEST, ("", "$stream", "$stream", 51, None, 51), 0),
    "nth": (streams._NTH, ("", FIRST, LAST, MOST_ROWS - 1), 0),
    "queue": (streams._QUEUE_STATE, (YESTERDAY, FIRST), 0),
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
                nodes = [node async for node in executed(connection, query, literals(arguments, names))]
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
        arguments = ([running], [1], [1], [1], [False], [b"{}"])
        plan = orjson.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {log._APPEND}", *arguments))
        kinds = {node.get("Relation Name"): node["Node Type"] for node in walk(plan[0]["Plan"])}
        assert kinds["stream"] == "Index Scan"


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
