"""Appends of producers, through the queues of one pod or of two, into the log."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest
from tests.support.external import append, append_queue, opened, request, texts
from tests.support.logbook import connected, events, row, until

from baton.chaos.proxy import Proxy
from baton.db import external_appends, external_streams, stream_ending
from baton.db.external_appends import Appended, ProducerClaim, Refused
from baton.db.postgres import pool
from baton.errors import Unavailable
from baton.outcome import Outcome
from baton.pod import append_queue as append_queue_module

STOP = Outcome.completed("stop")
WAITS = """
SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'baton pod append' AND wait_event_type = 'Lock'
"""


async def test_an_append_is_in_the_log_when_it_is_answered(dsn: str) -> None:
    stream = await opened(dsn)
    async with append_queue(dsn) as queue, connected(dsn) as connection:
        assert (await append(queue, stream.stream_id, texts("a", "b"))).tail == 2
        assert [event["delta"] for event in await events(connection, stream.stream_id)] == ["a", "b"]
        usage = b'{"type":"usage","input_tokens":3,"output_tokens":2}'
        ended = await append(queue, stream.stream_id, [*texts("c"), usage], outcome=STOP)
        assert (ended.tail, ended.closed) == (5, True)
        assert [event["type"] for event in await events(connection, stream.stream_id)][-2:] == ["usage", "done"]
        found = await row(connection, stream.stream_id)
        assert (found.status, found.finish_reason, found.tokens) == ("completed", "stop", 4)
        assert found.usage == {"input_tokens": 3, "output_tokens": 2}
        assert found.time_to_first_token_seconds is not None


async def test_appends_that_arrive_together_are_few_batches_in_order(dsn: str) -> None:
    streams = [(await opened(dsn)).stream_id for _ in range(3)]
    async with append_queue(dsn) as queue, connected(dsn) as connection:
        found = await asyncio.gather(
            *(
                append(queue, stream, texts(f"{number} "), by=("a", 0, number))
                for number in range(40)
                for stream in streams
            )
        )
        assert sorted(item.tail for item in found) == sorted(list(range(1, 41)) * 3)
        for stream in streams:
            assert [event["delta"] for event in await events(connection, stream)] == [f"{n} " for n in range(40)]
        assert await connection.fetchval("SELECT count(*) FROM baton.batch") <= 6


async def test_producers_on_two_pods_write_one_stream_without_gaps(dsn: str) -> None:
    """Each append goes to a random pod, so each pod's memory of the streams is wrong all the time."""
    streams = [(await opened(dsn)).stream_id for _ in range(3)]
    async with append_queue(dsn) as one, append_queue(dsn) as other, connected(dsn) as connection:

        async def produce(stream: UUID, name: str) -> None:
            for number in range(30):
                queue = random.choice((one, other))
                found = await append(queue, stream, texts(f"{name}{number} "), by=(name, 0, number))
                assert found.producer is not None
                assert found.producer.seq == number

        await asyncio.gather(*(produce(stream, name) for stream in streams for name in "abc"))
        for stream in streams:
            deltas = [event["delta"] for event in await events(connection, stream)]
            assert len(deltas) == 90
            for name in "abc":
                assert [each for each in deltas if each[0] == name] == [f"{name}{n} " for n in range(30)]


async def test_what_a_producer_repeats_is_answered_with_its_newest_number(dsn: str) -> None:
    stream = (await opened(dsn)).stream_id
    async with append_queue(dsn) as one, append_queue(dsn) as other:
        await append(one, stream, texts("0"), by=("a", 0, 0))
        await append(other, stream, texts("1"), by=("a", 0, 1))
        again = await append(one, stream, texts("0"), by=("a", 0, 0))
        assert again == Appended(2, closed=False, duplicate=True, producer=ProducerClaim("a", 0, 1))
        # The first pod remembers epoch 0 until then.
        await append(other, stream, texts("2"), by=("a", 2, 0))
        await append(one, stream, texts("3"), by=("a", 3, 0))
        assert await other.append(request(stream, texts("4"), by=("a", 1, 0))) == Refused("fenced", 4, number=3)


async def test_a_refusal_is_never_based_on_an_old_state(dsn: str) -> None:
    stream = (await opened(dsn)).stream_id
    async with append_queue(dsn) as one, append_queue(dsn) as other:
        await append(one, stream, texts("0"), by=("a", 0, 0))
        await append(other, stream, texts("1"), by=("a", 0, 1))
        # One pod remembers 0 as the last number. For it, 2 is a gap.
        await append(one, stream, texts("2"), by=("a", 0, 2))
        assert await other.append(request(stream, texts("4"), by=("a", 0, 4))) == Refused("gap", 3, number=3)
        await append(one, stream, texts("3"), by=("a", 1, 0))
        assert await other.append(request(stream, texts("3"), by=("a", 0, 3))) == Refused("fenced", 4, number=1)


@pytest.mark.parametrize("named", [True, False])
async def test_an_append_whose_outcome_is_unknown_is_written_once(dsn: str, named: bool) -> None:
    """The connection is lost after the statement was sent and before its answer: with a producer, it is repeated."""
    stream = (await opened(dsn)).stream_id
    async with Proxy(dsn) as proxy, append_queue(proxy.dsn) as queue, connected(dsn) as connection:
        await append(queue, stream, texts("0"), by=("a", 0, 0) if named else None)
        async with connection.transaction():
            await connection.execute("SELECT FROM baton.external_stream WHERE stream_id = $1 FOR UPDATE", stream)
            sent = asyncio.create_task(queue.append(request(stream, texts("1"), by=("a", 0, 1) if named else None)))
            await until(lambda: connection.fetchval(WAITS))
            proxy.hold_replies()

        async def is_written() -> bool:
            return len(await events(connection, stream)) == 2

        await until(is_written)
        proxy.cut()
        proxy.resume()
        if named:
            found = await sent
            assert isinstance(found, Appended)
            assert (found.tail, found.duplicate) == (2, True)
        else:
            with pytest.raises(Unavailable, match="may have stored"):
                await sent
        assert len(await events(connection, stream)) == 2


async def test_cancelling_while_appends_run_leaves_one_end(dsn: str) -> None:
    for _ in range(5):
        stream = (await opened(dsn)).stream_id
        async with append_queue(dsn) as queue, pool(dsn, size=2, timeout_seconds=10) as connections:
            appends = [queue.append(request(stream, texts("x"), by=("a", 0, number))) for number in range(20)]
            *found, ended = await asyncio.gather(*appends, stream_ending.request_cancel(connections, stream))
            assert ended == "open"
            written = [item for item in found if isinstance(item, Appended)]
            assert {item.reason for item in found if isinstance(item, Refused)} <= {"cancelled"}
            async with connected(dsn) as connection:
                log = await events(connection, stream)
                assert [event["type"] for event in log] == ["text"] * len(written) + ["done"]
                external = await external_streams.get(connection, stream)
                assert external is not None
                assert (external.tail, external.closed) == (len(log), True)
                assert (await row(connection, stream)).status == "cancelled"


async def test_two_producers_that_close_at_once_leave_one_end(dsn: str) -> None:
    stream = (await opened(dsn)).stream_id
    async with append_queue(dsn) as one, append_queue(dsn) as other, connected(dsn) as connection:
        found = await asyncio.gather(
            one.append(request(stream, texts("a"), by=("a", 0, 0), outcome=STOP)),
            other.append(request(stream, texts("b"), by=("b", 0, 0), outcome=STOP)),
        )
        assert sorted(type(item).__name__ for item in found) == ["Appended", "Refused"]
        assert len(await events(connection, stream)) == 2


async def test_an_append_in_flight_while_its_stream_is_deleted_leaves_nothing(dsn: str) -> None:
    stream = (await opened(dsn)).stream_id
    erased = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%SET closed%'"
    async with connected(dsn) as writing, pool(dsn, size=1, timeout_seconds=10) as connections:
        transaction = writing.transaction()
        await transaction.start()
        state = (await external_appends.read(writing, [(stream, "a")]))[stream]
        state.accept(request(stream, texts("x"), by=("a", 0, 0)), max_bytes=1000)
        write = external_appends.Write(stream, 0, state, 1, texts("x")[0], 1, 1, {"a"}, None)
        assert await external_appends.write(writing, [write]) == {stream}
        erasing = asyncio.create_task(stream_ending.erase(connections, stream))
        async with connected(dsn) as looking:
            await until(lambda: looking.fetchval(erased))
        await transaction.commit()
        assert await erasing
        assert await writing.fetchval("SELECT count(*) FROM baton.producer") == 0
        assert await writing.fetchval("SELECT count(*) FROM baton.external_stream") == 0


async def test_a_state_is_not_forgotten_while_its_append_is_decided(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest state may belong to an append in the same group as many streams that are not known yet."""
    monkeypatch.setattr(append_queue_module, "MOST_STATES", 1)
    first, *others = [(await opened(dsn)).stream_id for _ in range(4)]
    async with append_queue(dsn) as queue:
        await append(queue, first, texts("a"))
        found = await asyncio.gather(*(append(queue, stream, texts("b")) for stream in (*others, first)))
        assert [item.tail for item in found] == [1, 1, 1, 2]
        assert len(queue._states) <= 1


async def test_a_deleted_stream_takes_nothing(dsn: str) -> None:
    stream = (await opened(dsn, path="a/b")).stream_id
    async with append_queue(dsn) as queue, pool(dsn, size=2, timeout_seconds=10) as connections:
        await append(queue, stream, texts("a"))
        assert await stream_ending.erase(connections, stream)
        assert await queue.append(request(stream, texts("b"))) == Refused("not_found")
        assert await connections.fetchval("SELECT count(*) FROM baton.producer") == 0
        again = await opened(dsn, path="a/b")
        assert again.stream_id != stream
        assert (await append(queue, again.stream_id, texts("b"))).tail == 1
