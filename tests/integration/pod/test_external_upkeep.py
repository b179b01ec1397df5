"""What pods do about open streams that their producers leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from tests.support.external import append, append_queue, opened, request, texts
from tests.support.hints import sending
from tests.support.logbook import connected, events, row

from baton.db import code_revisions, external_appends, external_streams, history, stream_ending
from baton.db.external_appends import Appended, ProducerClaim, Refused
from baton.db.postgres import Connection, pool
from baton.db.schema_revision import REVISION
from baton.db.stream_creation import Limits, NewStream
from baton.errors import Unavailable
from baton.pod import external_upkeep
from baton.pod.external_upkeep import ExternalUpkeep
from baton.settings import Settings


@contextlib.asynccontextmanager
async def upkeep(dsn: str, **settings: Any) -> AsyncIterator[ExternalUpkeep]:
    async with pool(dsn, size=2, timeout_seconds=10) as connections:
        yield ExternalUpkeep(Settings(database_url=dsn, **settings), connections, sending(dsn))


async def check(service: ExternalUpkeep) -> None:
    """Check now, however long the last check took."""
    service._overdue_pace.hurry()
    service._expired_pace.hurry()
    await service.check()


async def ended_by(dsn: str, connection: Connection, stream: UUID, **settings: Any) -> str | None:
    async with upkeep(dsn, **settings) as service:
        await check(service)
    found = await row(connection, stream)
    return (found.error_code or found.finish_reason) if found.ended else None


async def back(connection: Connection, column: str, seconds: float, stream: UUID) -> None:
    table, key = ("stream", "id") if column in {"created_at", "watched_at"} else ("external_stream", "stream_id")
    await connection.execute(
        f"UPDATE baton.{table} SET {column} = clock_timestamp() - make_interval(secs => $1) WHERE {key} = $2",
        seconds,
        stream,
    )


async def test_a_producer_that_is_silent_for_too_long_is_lost(dsn: str) -> None:
    async with connected(dsn) as connection, append_queue(dsn) as queue:
        stream = (await opened(dsn)).stream_id
        await append(queue, stream, texts("a"))
        assert await ended_by(dsn, connection, stream) is None
        await back(connection, "heard_at", 299, stream)
        assert await ended_by(dsn, connection, stream) is None
        await back(connection, "heard_at", 301, stream)
        async with pool(dsn, size=1, timeout_seconds=10) as connections:
            await external_streams.hear(connections, stream)
        assert await ended_by(dsn, connection, stream) is None
        await back(connection, "heard_at", 301, stream)
        assert await ended_by(dsn, connection, stream) == "producer_lost"
        assert [event["type"] for event in await events(connection, stream)] == ["text", "done"]
        assert await queue.append(request(stream, texts("b"))) == Refused("closed", 2, reason="producer_lost")


async def test_a_cancel_whose_pod_died_before_the_end_is_carried_out(dsn: str) -> None:
    async with connected(dsn) as connection:
        streams = [(await opened(dsn, kind=kind)).stream_id for kind in ("events", "text")]
        await connection.execute("UPDATE baton.stream SET cancel_requested_at = clock_timestamp()")
        assert [await ended_by(dsn, connection, stream) for stream in streams] == ["cancelled", "cancelled"]


async def test_each_stream_has_its_own_limits(dsn: str) -> None:
    async with connected(dsn) as connection:
        new = NewStream("external", None, {}, "fail", "", Limits(max_duration=20, idle_timeout=5, unwatched_timeout=10))
        stream = (await opened(dsn, stream=new)).stream_id
        await back(connection, "heard_at", 6, stream)
        assert await ended_by(dsn, connection, stream) == "producer_lost"
        stream = (await opened(dsn, stream=new)).stream_id
        await back(connection, "created_at", 21, stream)
        assert await ended_by(dsn, connection, stream) == "max_duration"


async def test_an_unwatched_stream_ends_once_pods_had_the_time_to_note_viewers(dsn: str) -> None:
    async with connected(dsn) as connection:
        new = NewStream("external", None, {}, "fail", "", Limits(unwatched_timeout=10))
        stream = (await opened(dsn, stream=new)).stream_id
        await back(connection, "created_at", 11, stream)
        assert await ended_by(dsn, connection, stream) is None
        async with upkeep(dsn) as service:
            service._interrupted_at -= 60
            await check(service)
        assert (await row(connection, stream)).finish_reason == "unwatched"


async def test_raw_streams_may_be_silent_but_have_a_longest_life(dsn: str) -> None:
    async with connected(dsn) as connection:
        stream = (await opened(dsn, kind="json", path="a")).stream_id
        await back(connection, "heard_at", 5 * 86_400, stream)
        await back(connection, "created_at", 5 * 86_400, stream)
        assert await ended_by(dsn, connection, stream) is None
        assert await ended_by(dsn, connection, stream, external_max_seconds=4 * 86_400) == "max_duration"


@pytest.mark.parametrize("open_", [True, False])
async def test_an_expired_stream_is_deleted(dsn: str, open_: bool) -> None:
    async with connected(dsn) as connection, upkeep(dsn) as service, append_queue(dsn) as queue:
        stream = (await opened(dsn, kind="text", path="a", ttl_seconds=10)).stream_id
        await append(queue, stream, [b'"x"'], **({} if open_ else {"outcome": external_upkeep.PRODUCER_LOST}))
        await back(connection, "used_at", 9, stream)
        await check(service)
        assert await connection.fetchval("SELECT count(*) FROM baton.external_stream") == 1
        await back(connection, "used_at", 11, stream)
        assert await external_streams.get(connection, stream) is None
        assert await external_streams.find(connection, "", "a") is None
        again = await opened(dsn, kind="text", path="a")
        assert again.stream_id != stream, "a path is free once its stream has expired"
        await back(connection, "used_at", 11, again.stream_id)
        await connection.execute("UPDATE baton.external_stream SET ttl_seconds = 10")
        await check(service)
        for table in ("stream", "external_stream", "producer"):
            assert await connection.fetchval(f"SELECT count(*) FROM baton.{table}") == 0, table


async def test_reading_renews_a_ttl_only_after_a_tenth_of_it(dsn: str) -> None:
    async with connected(dsn) as connection, pool(dsn, size=1, timeout_seconds=10) as connections:
        stream = await opened(dsn, kind="text", path="a", ttl_seconds=100)
        for seconds, written in ((9, 0), (11, 1)):
            await back(connection, "used_at", seconds, stream.stream_id)
            before = await connection.fetchval("SELECT used_at FROM baton.external_stream")
            await external_streams.touch(connections, stream)
            assert (await connection.fetchval("SELECT used_at FROM baton.external_stream") != before) == written


# After a failover of the database, which may have lost what a producer was told.


async def test_a_producer_whose_next_number_fits_goes_on_after_a_failover(dsn: str) -> None:
    async with connected(dsn) as connection, append_queue(dsn) as queue:
        stream = (await opened(dsn)).stream_id
        await append(queue, stream, texts("a"), by=("a", 0, 0))
        await history.mark_restored(connection)
        queue.distrust()
        repeated = await append(queue, stream, texts("a"), by=("a", 0, 0))
        assert repeated.duplicate
        assert (await append(queue, stream, texts("b"), by=("a", 0, 1))).tail == 2
        assert await ended_by(dsn, connection, stream, failover_settle_seconds=0) is None


async def test_a_producer_whose_next_number_does_not_fit_has_lost_something(dsn: str) -> None:
    async with connected(dsn) as connection, append_queue(dsn) as queue:
        stream = (await opened(dsn)).stream_id
        await append(queue, stream, texts("a"), by=("a", 0, 0))
        await history.mark_restored(connection)
        # It does not have to know: another history is noticed by the statement.
        with pytest.raises(Unavailable, match="failed over"):
            await queue.append(request(stream, texts("d"), by=("a", 0, 3)))
        assert await ended_by(dsn, connection, stream, failover_settle_seconds=0) == "log_rewound"
        assert await queue.append(request(stream, texts("d"), by=("a", 0, 3))) == Refused(
            "closed", 2, reason="log_rewound"
        )


async def test_an_append_that_overtakes_another_ends_no_stream_after_a_failover(dsn: str) -> None:
    """Clients of the protocol send several appends at once, which may arrive in any order, on different pods."""
    async with connected(dsn) as connection, append_queue(dsn) as one, append_queue(dsn) as other:
        stream = (await opened(dsn)).stream_id
        await append(one, stream, texts("a"), by=("a", 0, 0))
        await history.mark_restored(connection)
        one.distrust()
        with pytest.raises(Unavailable, match="failed over"):
            await other.append(request(stream, texts("c"), by=("a", 0, 2)))
        overtaking = asyncio.create_task(one.append(request(stream, texts("c"), by=("a", 0, 2))))
        await asyncio.sleep(0)  # it is queued first
        assert await one.append(request(stream, texts("b"), by=("a", 0, 1))) == Appended(
            2, closed=False, producer=ProducerClaim("a", 0, 1)
        )
        assert await overtaking == Refused("gap", 1, number=1)
        assert (await append(other, stream, texts("c"), by=("a", 0, 2))).tail == 3


async def test_the_first_append_of_an_epoch_proves_nothing_after_a_failover(dsn: str) -> None:
    async with connected(dsn) as connection, append_queue(dsn) as queue:
        stream = (await opened(dsn)).stream_id
        await append(queue, stream, texts("a"), by=("a", 0, 0))
        await history.mark_restored(connection)
        with pytest.raises(Unavailable, match="failed over"):
            await queue.append(request(stream, texts("b"), by=("a", 1, 0)))
        assert await ended_by(dsn, connection, stream, failover_settle_seconds=0) == "log_rewound"


async def test_what_nobody_can_prove_ends_once_the_pods_have_waited(dsn: str) -> None:
    async with (
        connected(dsn) as connection,
        append_queue(dsn) as queue,
        upkeep(dsn, failover_settle_seconds=0) as service,
    ):
        unnamed, of_two = (await opened(dsn)).stream_id, (await opened(dsn)).stream_id
        await append(queue, unnamed, texts("a"))
        for name in "ab":
            await append(queue, of_two, texts(name), by=(name, 0, 0))
        await history.mark_restored(connection)
        queue.distrust()
        with pytest.raises(Unavailable, match="failed over"):
            await queue.append(request(unnamed, texts("b")))
        with pytest.raises(Unavailable, match="failed over"):
            await queue.append(request(of_two, texts("b"), by=("a", 0, 1)))
        await check(service)
        await check(service)
        for stream in (unnamed, of_two):
            assert (await row(connection, stream)).error_code == "log_rewound"


async def test_a_cancel_of_a_stream_that_is_not_proved_complete_ends_it_as_rewound(dsn: str) -> None:
    """Its terminal event may have the number of an event that clients have."""
    async with connected(dsn) as connection, pool(dsn, size=1, timeout_seconds=10) as connections:
        stream = (await opened(dsn)).stream_id
        await history.mark_restored(connection)
        assert await stream_ending.request_cancel(connections, stream) == "open"
        assert (await row(connection, stream)).error_code == "log_rewound"


async def test_older_code_keeps_open_streams_away(dsn: str) -> None:
    async with connected(dsn) as connection, pool(dsn, size=1, timeout_seconds=10) as connections:
        old = "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('old', '{}', 1)"
        await connection.execute(old)
        assert not await code_revisions.exclude_older(connections)
        await connection.execute("DELETE FROM baton.worker")
        assert await code_revisions.exclude_older(connections)
        assert await connection.fetchval("SELECT oldest_code FROM baton.compatibility") == REVISION


async def test_a_statement_asks_for_the_history_once_however_many_streams_it_is_about(dsn: str) -> None:
    ids = [(await opened(dsn)).stream_id for _ in range(4)]
    limits = {"max_duration": 60, "idle_timeout": 60, "max_life": 60}
    async with connected(dsn) as connection:
        await connection.execute("SET track_functions = 'all'")
        async with connection.transaction():

            async def calls() -> int:
                asked = "SELECT coalesce(pg_stat_get_xact_function_calls('baton.current_history'::regproc), 0)"
                found: int = await connection.fetchval(asked)
                return found

            states = await external_appends.read(connection, [(stream_id, "a") for stream_id in ids])
            assert await calls() == 1
            writes = []
            for stream_id, state in states.items():
                state.accept(request(stream_id, texts("x"), by=("a", 0, 0)), max_bytes=100)
                writes.append(external_appends.Write(stream_id, 0, state, 1, texts("x")[0], 1, 1, ["a"], None))
            assert await external_appends.write(connection, writes) == set(ids)
            assert await calls() == 2
            assert await external_streams.rewound_history(connection) is None
            assert await calls() == 3
            assert await external_streams.overdue(connection, **limits, rewound=True, unwatched=True) == []
            assert await calls() == 4
