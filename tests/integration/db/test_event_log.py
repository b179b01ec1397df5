"""The log: what an append writes or leaves out, and what a read returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from tests.support.logbook import claimed, connected, events, row
from tests.support.past import day, id_at, old_stream

from baton.db import event_log, notifications
from baton.db.event_log import Append, Batch, Standing
from baton.db.fence import Fence
from baton.db.postgres import Connection
from baton.events import encode_event, encode_text, join_lines
from baton.outcome import Outcome, Timings


def batch(stream_id: UUID, first: int, last: int, *, epoch: int = 1, size_bytes: int = 0) -> Append:
    lines = [encode_text(f"{seq}".ljust(size_bytes, ".")) for seq in range(first, last + 1)]
    return Append(stream_id, epoch, first, last, join_lines(lines))


def terminal(stream_id: UUID, seq: int, outcome: Outcome, *, epoch: int = 1) -> Append:
    return Append(stream_id, epoch, seq, seq, outcome.encode(), outcome)


async def write(connection: Connection, stream_id: UUID, sizes: Sequence[int]) -> None:
    """Append batches with these numbers of events."""
    first = 1
    for size in sizes:
        assert await event_log.append(connection, [batch(stream_id, first, first + size - 1)]) == {stream_id}
        first += size


def numbers(batches: list[Batch]) -> list[int]:
    """Return the numbers of the events that were read, and check that the events contain them."""
    found = []
    for item in batches:
        assert len(item.lines) == item.last_seq - item.first_seq + 1
        for seq, line in enumerate(item.lines, item.first_seq):
            assert orjson.loads(line)["delta"] == str(seq)
            found.append(seq)
    return found


async def test_a_read_after_any_cursor_has_all_later_events(dsn: str) -> None:
    async with connected(dsn) as connection:
        stream_id, neighbour = await claimed(connection, 2)
        await write(connection, neighbour, [3, 3])
        await write(connection, stream_id, [1, 4, 2, 1, 5])
        batches = [(1, 1), (2, 5), (6, 7), (8, 8), (9, 13)]
        for cursor in range(16):
            read = await event_log.read(connection, stream_id, cursor)
            assert [(item.first_seq, item.last_seq) for item in read] == [item for item in batches if item[1] > cursor]
            assert numbers(read)[-1:] == ([] if cursor >= 13 else [13])


async def test_pages_by_rows_add_up(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "PAGE_ROWS", 3)
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await write(connection, stream_id, [2] * 8)
        for start in range(16):
            cursor, found = start, set[int]()
            while page := await event_log.read(connection, stream_id, cursor):
                assert len(page) <= 3
                found |= set(numbers(page))
                cursor = page[-1].last_seq
            assert {seq for seq in found if seq > start} == set(range(start + 1, 17))


async def test_pages_by_bytes_add_up_and_hold_at_least_one_batch(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "PAGE_BYTES", 1000)
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for seq, size in enumerate([5000, 300, 300, 300, 300, 5000, 10], 1):
            await event_log.append(connection, [batch(stream_id, seq, seq, size_bytes=size)])
        cursor, pages = 0, []
        while page := await event_log.read(connection, stream_id, cursor):
            pages.append([item.first_seq for item in page])
            cursor = page[-1].last_seq
    assert pages == [[1], [2, 3, 4, 5], [6], [7]]


@pytest.mark.parametrize(
    ("max_bytes", "found"), [(1, [5]), (600, [4, 5]), (1100, [3, 4, 5]), (99_999, [1, 2, 3, 4, 5])]
)
async def test_the_newest_batches_are_read_oldest_first(dsn: str, max_bytes: int, found: list[int]) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for seq in range(1, 6):
            await event_log.append(connection, [batch(stream_id, seq, seq, size_bytes=500)])
        read = await event_log.read_newest(connection, stream_id, max_bytes)
    assert [item.first_seq for item in read] == found


async def test_an_empty_log(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        assert await event_log.read(connection, stream_id, 0) == []
        assert await event_log.read_newest(connection, stream_id, 100) == []
        assert await event_log.read_tail(connection, stream_id) == event_log.Tail()
        assert await event_log.tails(connection, [stream_id, UUID(int=0)]) == {stream_id: Standing(0, ended=False)}


async def test_tails(dsn: str) -> None:
    async with connected(dsn) as connection:
        first, second = await claimed(connection, 2)
        await write(connection, first, [2, 3])
        await event_log.append(connection, [terminal(second, 1, Outcome.cancelled())])
        assert await event_log.tails(connection, [first, second]) == {
            first: Standing(5, ended=False),
            second: Standing(1, ended=True),
        }
        assert await event_log.read_tail(connection, first) == event_log.Tail(5, 1, None)
        assert await event_log.read_tail(connection, second) == event_log.Tail(1, 1, Outcome.cancelled())


async def test_an_append_leaves_out_what_is_fenced_and_writes_the_rest(dsn: str) -> None:
    async with connected(dsn) as connection:
        good, stale, taken, erased, ended = await claimed(connection, 5)
        await write(connection, taken, [1])
        await connection.execute("UPDATE baton.stream SET epoch = 2 WHERE id = $1", stale)
        await connection.execute("DELETE FROM baton.stream WHERE id = $1", erased)
        await event_log.append(connection, [terminal(ended, 1, Outcome.cancelled())])
        appends = [batch(stream_id, 1, 2) for stream_id in (good, stale, taken, erased)]
        appends.append(terminal(ended, 2, Outcome.completed("stop")))
        assert await event_log.append(connection, appends) == {good}
        found = await event_log.tails(connection, [good, stale, taken])
        assert {stream_id: standing.seq for stream_id, standing in found.items()} == {good: 2, stale: 0, taken: 1}
        assert len(await events(connection, ended)) == 1
        assert (await row(connection, ended)).status == "cancelled"


async def test_a_fenced_terminal_batch_closes_no_row(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await write(connection, stream_id, [1])
        for late in (
            terminal(stream_id, 1, Outcome.completed("stop")),
            terminal(stream_id, 2, Outcome.cancelled(), epoch=0),
        ):
            assert await event_log.append(connection, [late]) == set()
        assert (await row(connection, stream_id)).status == "running"


async def test_the_terminal_batch_and_the_row_are_one_statement(dsn: str) -> None:
    took = Timings(2.5, 0.5, 9)
    outcome = Outcome.failed("rate_limited", "Slow down.", usage={"total": 3}, timings=took)
    async with connected(dsn) as connection:
        open_id, stream_id = await claimed(connection, 2)
        await connection.execute("UPDATE baton.stream SET worker_id = gen_random_uuid()")
        assert await event_log.append(connection, [terminal(stream_id, 1, outcome), batch(open_id, 1, 3)]) == {
            stream_id,
            open_id,
        }
        stream = await row(connection, stream_id)
        assert (stream.status, stream.error_code, stream.error_message) == ("failed", "rate_limited", "Slow down.")
        assert (stream.finish_reason, stream.usage, stream.tokens) == ("error", {"total": 3}, 9)
        assert (stream.time_to_first_token_seconds, stream.duration_seconds) == (0.5, 2.5)
        assert stream.finished_at is not None
        assert (await row(connection, open_id)).status == "running"
        assert await connection.fetchval("SELECT worker_id FROM baton.stream WHERE id = $1", stream_id) is None
        assert await connection.fetchval("SELECT worker_id FROM baton.stream WHERE id = $1", open_id) is not None
        await connection.execute("ALTER TABLE baton.stream ADD CHECK (status <> 'completed') NOT VALID")
        with pytest.raises(asyncpg.CheckViolationError):
            await event_log.append(connection, [terminal(open_id, 4, Outcome.completed("stop"))])
        assert (await event_log.read_tail(connection, open_id)).last_seq == 3


async def test_the_view_has_one_row_for_each_event(dsn: str) -> None:
    given: list[dict[str, Any]] = [
        {"type": "text", "delta": "a\0b"},
        {"type": "custom", "name": "\u2028\u0085", "data": {"lines": "\n"}},
        {"type": "text", "delta": "\U0001f600"},
    ]
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await event_log.append(connection, [batch(stream_id, 1, 2)])
        await event_log.append(
            connection, [Append(stream_id, 1, 3, 5, join_lines([encode_event(item) for item in given]))]
        )
        await event_log.append(connection, [terminal(stream_id, 6, Outcome.cancelled())])
        rows = await connection.fetch(
            "SELECT seq, type, data FROM baton.event WHERE stream_id = $1 ORDER BY seq", stream_id
        )
        found = await events(connection, stream_id)
    assert [item["seq"] for item in rows] == [1, 2, 3, 4, 5, 6]
    assert [item["type"] for item in rows] == ["text", "text", "text", "custom", "text", "done"]
    assert [orjson.loads(item["data"]) for item in rows] == found
    assert found[2:5] == given


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [(event_log._READ, [0, 512, 262_144]), (event_log._READ_NEWEST, [512, 262_144]), (event_log._LAST, [])],
    ids=["read", "read_newest", "read_tail"],
)
async def test_a_read_looks_into_one_partition_by_its_key(dsn: str, statement: str, arguments: list[int]) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await write(connection, stream_id, [1])
        await connection.execute("SET enable_seqscan = off")
        asked = event_log.within_day(statement, stream_id)
        plan = "\n".join(
            line for (line,) in await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) {asked}", stream_id, *arguments)
        )
        day = f"{await connection.fetchval('SELECT (clock_timestamp() AT TIME ZONE $1)::date', 'UTC'):%Y%m%d}"
        partitions = await connection.fetchval(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass"
        )
    assert partitions > 1
    assert f"batch_{day}_pkey" in plan
    assert set(re.findall(r" on (batch_\d{8})(?=\W)(?!.*never executed)", plan)) == {f"batch_{day}"}
    assert "Seq Scan" not in plan


async def test_tails_of_streams_of_several_days(dsn: str) -> None:
    async with connected(dsn) as connection:
        expected = {
            await old_stream(connection, days, batches=days): event_log.Standing(days + 1, ended=True)
            for days in (0, 1, 3)
        }
        missing = id_at(await day(connection, 2))
        assert await event_log.tails(connection, [*expected, missing]) == expected


async def test_without_streams_tails_run_no_query(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.close()
    assert await event_log.tails(connection, []) == {}


async def test_data_that_looks_like_a_reset_is_progress(dsn: str) -> None:
    event = encode_event({"type": "custom", "name": "data", "data": {"type": "reset"}})
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await event_log.append(connection, [Append(stream_id, 1, 1, 1, event)])
        assert await event_log.grew(connection, Fence(stream_id, 1))
        await event_log.append(connection, [Append(stream_id, 1, 2, 3, event + b'\n{"type":"reset"}')])
        assert not await event_log.grew(connection, Fence(stream_id, 1))


@pytest.mark.parametrize("number", [0, 1, (1 << 128) - 1])
async def test_any_id_can_be_read(dsn: str, number: int) -> None:
    async with connected(dsn) as connection:
        assert await event_log.read(connection, UUID(int=number), 0) == []


async def test_a_number_beyond_the_last_possible_one_is_refused(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        with pytest.raises(asyncpg.DataError):
            await event_log.append(connection, [Append(stream_id, 1, 2**31, 2**31, encode_text("x"))])


async def test_notify_sends_each_payload(dsn: str) -> None:
    heard: list[str] = []
    async with connected(dsn) as listening, connected(dsn) as sending:
        await listening.add_listener("baton_events", lambda *given: heard.append(str(given[-1])))
        await notifications.notify(sending, "baton_events", ["one", "two", "three"])
        await listening.execute("SELECT 1")
    assert heard == ["one", "two", "three"]
