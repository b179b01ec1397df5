"""The streams' rows: creating, claiming, cancelling, ending, listing and erasing."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import pytest
from tests.support.logbook import claim_as, claimed, connected, events, queue_many, row, until, until_after

from baton.db import event_log, stream_creation, stream_ending, stream_lists, stream_queue, streams
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Pool, pool
from baton.db.stream_creation import IdempotencyKey, NewStream
from baton.db.stream_ending import End
from baton.db.stream_lists import StreamFilter
from baton.errors import ConfigurationError, IdempotencyConflict, TooManyStreams
from baton.events import MAX_SEQ, encode_text
from baton.outcome import Outcome

WORKER = UUID(int=1)
NEW = NewStream("test", {"prompt": "a\0b"}, {"chat": 42}, "retry")
ENDS_ONE = """
UPDATE baton.stream SET status = 'completed' WHERE id = (SELECT id FROM baton.stream WHERE tenant = '' LIMIT 1)
"""


@pytest.fixture
async def opened(dsn: str) -> AsyncIterator[Pool]:
    async with pool(dsn, size=4, timeout_seconds=10) as opened:
        yield opened


def key(body: bytes = b"body", *, lifetime_seconds: float = 60) -> IdempotencyKey:
    return IdempotencyKey("key", body, lifetime_seconds)


async def test_a_new_stream_is_queued_with_its_fields(opened: Pool) -> None:
    stream, is_new = await stream_creation.create(opened, NEW)
    assert is_new
    assert (stream.status, stream.epoch, stream.attempts, stream.ended) == ("queued", 0, 0, False)
    assert stream.metadata == {"chat": 42}
    assert await streams.get(opened, stream.id) == stream
    assert await streams.get(opened, uuid.uuid4()) is None


async def test_the_same_key_with_the_same_body_finds_the_stream(opened: Pool) -> None:
    first, _ = await stream_creation.create(opened, NEW, key())
    again, is_new = await stream_creation.create(opened, NEW, key())
    assert (again.id, is_new) == (first.id, False)
    assert await opened.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_the_same_key_with_another_body_is_refused(opened: Pool) -> None:
    await stream_creation.create(opened, NEW, key())
    with pytest.raises(IdempotencyConflict, match="with another body"):
        await stream_creation.create(opened, NEW, key(b"other"))
    assert await opened.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_an_idempotency_key_belongs_to_one_tenant(opened: Pool) -> None:
    await stream_creation.create(opened, NEW, key())
    _, is_new = await stream_creation.create(opened, NewStream("test", 1, {}, "retry", tenant="other"), key(b"other"))
    assert is_new


async def test_only_one_of_many_creates_with_one_key_succeeds(opened: Pool) -> None:
    created = await asyncio.gather(*(stream_creation.create(opened, NEW, key()) for _ in range(12)))
    assert len({stream.id for stream, _ in created}) == 1
    assert [is_new for _, is_new in created].count(True) == 1
    assert await opened.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_an_expired_key_may_be_used_again(opened: Pool) -> None:
    first, _ = await stream_creation.create(opened, NEW, key(lifetime_seconds=-1))
    second, is_new = await stream_creation.create(opened, NEW, key(b"other"))
    assert is_new
    assert first.id != second.id
    assert (await stream_creation.create(opened, NEW, key(b"other")))[0].id == second.id


async def test_the_key_of_an_erased_stream_is_free(opened: Pool) -> None:
    first, _ = await stream_creation.create(opened, NEW, key())
    assert await stream_ending.erase(opened, first.id)
    _, is_new = await stream_creation.create(opened, NEW, key(b"other"))
    assert is_new


async def test_a_tenants_limit_counts_only_its_own_streams(opened: Pool) -> None:
    for _ in range(3):
        await stream_creation.create(opened, NEW, max_live=3)
    with pytest.raises(TooManyStreams, match="You have 3 answers in progress"):
        await stream_creation.create(opened, NEW, max_live=3)
    await stream_creation.create(opened, dataclasses.replace(NEW, tenant="other"), max_live=1)
    await opened.execute(ENDS_ONE)
    await stream_creation.create(opened, NEW, max_live=3)


async def test_at_the_limit_a_used_key_still_finds_its_stream(opened: Pool) -> None:
    first, _ = await stream_creation.create(opened, NEW, key(), max_live=1)
    again, is_new = await stream_creation.create(opened, NEW, key(), max_live=1)
    assert (again.id, is_new) == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        await stream_creation.create(opened, NEW, key(b"other"), max_live=1)
    with pytest.raises(TooManyStreams):
        await stream_creation.create(opened, NEW, dataclasses.replace(key(), key="another"), max_live=1)
    assert await opened.fetchval("SELECT count(*) FROM baton.idempotency_key") == 1


@pytest.mark.parametrize("most", [5, 150])
async def test_a_burst_on_several_pods_stays_within_the_limit(opened: Pool, dsn: str, most: int) -> None:
    async with pool(dsn, size=8, timeout_seconds=10) as one, pool(dsn, size=8, timeout_seconds=10) as two:
        await stream_creation.create(opened, NEW)
        creates = [stream_creation.create((one, two)[number % 2], NEW, max_live=most) for number in range(most + 100)]
        refused = [result for result in await asyncio.gather(*creates, return_exceptions=True) if is_full(result)]
    assert len(refused) == 101
    assert await opened.fetchval("SELECT count(*) FROM baton.stream") == most


async def test_a_create_over_the_limit_is_refused_without_waiting(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as holding:
        await stream_creation.create(opened, NEW, max_live=1)
        await holding.execute("BEGIN; " + stream_creation._ONE_BY_ONE.replace("$1", "''"))
        with pytest.raises(TooManyStreams):
            await stream_creation.create(opened, NEW, max_live=1)


async def test_counting_a_tenants_streams_leaves_updates_in_place(opened: Pool) -> None:
    """No new index has a column that is updated often: these change when a stream is queued, claimed, waits or ends."""
    columns = await opened.fetchval(
        "SELECT array_agg(DISTINCT a.attname) FROM pg_index AS i "
        "JOIN pg_depend AS d ON d.objid = i.indexrelid AND d.refobjid = i.indrelid "
        "JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = d.refobjsubid "
        "WHERE i.indrelid = 'baton.stream'::regclass"
    )
    known = {"status", "tenant", "id", "worker_id", "metadata", "hook_failed"}
    assert set(columns) == known | {"queue_position", "held_until", "priority"}


def is_full(result: object) -> bool:
    if isinstance(result, BaseException) and not isinstance(result, TooManyStreams):
        raise result
    return isinstance(result, TooManyStreams)


async def test_a_claim_takes_the_first_in_line_that_it_can_serve(dsn: str) -> None:
    async with connected(dsn) as connection:
        ids = await queue_many(connection, 5)
        await connection.execute("UPDATE baton.stream SET generator = 'other' WHERE id = $1", ids[0])
        assert await claim_as(connection, WORKER, ["nobody"], 9) == []
        claims = await claim_as(connection, WORKER, ["test", "more"], 3)
        assert {item.stream_id for item in claims} == set(ids[1:4])
        assert {(item.epoch, item.attempts, item.generator, item.cancelled) for item in claims} == {
            (1, 1, "test", False)
        }
        assert (await row(connection, ids[1])).status == "running"
        assert (await row(connection, ids[1])).started_at is not None
        assert [item.stream_id for item in await claim_as(connection, WORKER, ["other"], 9)] == ids[:1]


async def test_a_claim_has_the_streams_input(opened: Pool, dsn: str) -> None:
    await stream_creation.create(opened, NEW)
    async with connected(dsn) as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
    assert (item.input, item.metadata, item.on_worker_lost) == ({"prompt": "a\0b"}, {"chat": 42}, "retry")


async def test_two_claimers_never_get_the_same_stream_or_wait(dsn: str) -> None:
    async with connected(dsn) as first, connected(dsn) as second:
        ids = await queue_many(first, 6)
        await second.execute("SET lock_timeout = '2s'")
        async with first.transaction():
            mine = await claim_as(first, WORKER, ["test"], 3)
            theirs = await claim_as(second, UUID(int=2), ["test"], 6)
        assert {item.stream_id for item in mine} | {item.stream_id for item in theirs} == set(ids)
        assert (len(mine), len(theirs)) == (3, 3)


async def test_a_crowd_of_claimers_shares_the_queue(opened: Pool) -> None:
    async with opened.acquire() as connection:
        ids = await queue_many(connection, 60)
    got: list[UUID] = []

    async def work(number: int) -> None:
        async with opened.acquire() as connection:
            while claims := await claim_as(connection, UUID(int=number), ["test"], 2):
                got.extend(item.stream_id for item in claims)

    await asyncio.gather(*map(work, range(4)))
    assert sorted(got) == sorted(ids)


async def test_a_stream_given_back_is_claimed_under_a_later_epoch(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        assert await stream_queue.requeue(connection, Fence(stream_id, 1))
        assert not await stream_queue.requeue(connection, Fence(stream_id, 1))
        assert (await row(connection, stream_id)).status == "queued"
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        assert (item.epoch, item.attempts) == (3, 1)
        assert await stream_queue.requeue(connection, item.fence, stream_queue.LEFT)
        assert (await row(connection, stream_id)).attempts == 0


async def test_a_queued_stream_is_cancelled_at_once(opened: Pool) -> None:
    stream, _ = await stream_creation.create(opened, NEW)
    assert await stream_ending.request_cancel(opened, stream.id) == "queued"
    assert await stream_ending.request_cancel(opened, stream.id) is None
    async with opened.acquire() as connection:
        assert (await row(connection, stream.id)).status == "cancelled"
        (event,) = await events(connection, stream.id)
        assert event["finish_reason"] == "cancelled"
        assert await claim_as(connection, WORKER, ["test"], 1) == []


async def test_a_running_stream_is_cancelled_by_its_worker(opened: Pool) -> None:
    async with opened.acquire() as connection:
        (stream_id,) = await claimed(connection)
        assert await stream_ending.request_cancel(opened, stream_id) == "running"
        asked_at = (await row(connection, stream_id)).cancel_requested_at
        assert asked_at is not None
        assert await stream_ending.request_cancel(opened, stream_id) == "running"
        assert (await row(connection, stream_id)).cancel_requested_at == asked_at
        assert (await row(connection, stream_id)).status == "running"


async def test_an_ended_or_unknown_stream_is_not_cancelled(opened: Pool) -> None:
    async with opened.acquire() as connection:
        (stream_id,) = await claimed(connection)
        outcome = Outcome.completed("stop")
        await event_log.append(connection, [Append(stream_id, 1, 1, 1, outcome.encode(), outcome)])
        assert await stream_ending.request_cancel(opened, stream_id) is None
        assert await stream_ending.request_cancel(opened, uuid.uuid4()) is None
        assert (await row(connection, stream_id)).status == "completed"


async def test_a_cancel_that_loses_to_a_claim_is_left_to_the_worker(opened: Pool) -> None:
    stream, _ = await stream_creation.create(opened, NEW)
    async with opened.acquire() as connection:
        async with connection.transaction():
            (item,) = await claim_as(connection, WORKER, ["test"], 1)
            cancelling = asyncio.create_task(stream_ending.request_cancel(opened, stream.id))
            assert not item.cancelled
        assert await cancelling == "running"


async def test_an_end_from_outside_follows_the_tail_and_fences_the_worker(opened: Pool) -> None:
    async with opened.acquire() as connection:
        (stream_id,) = await claimed(connection)
        await event_log.append(connection, [Append(stream_id, 1, 1, 1, encode_text("a"))])
        assert not await stream_ending.end(
            connection, End.of_claimed(Fence(stream_id, 2), Outcome.failed("worker_lost", ""))
        )
        assert await stream_ending.end_any(opened, stream_id, Outcome.failed("expired", "Too late."))
        assert not await stream_ending.end_any(opened, stream_id, Outcome.cancelled())
        assert await event_log.append(connection, [Append(stream_id, 1, 3, 3, encode_text("b"))]) == set()
        assert [event["type"] for event in await events(connection, stream_id)] == ["text", "done"]
        assert (await row(connection, stream_id)).error_code == "expired"


async def test_an_end_already_in_the_log_closes_the_row(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        outcome = Outcome.completed("length", usage={"total": 3})
        await event_log.append(connection, [Append(stream_id, 1, 1, 1, outcome.encode(), outcome)])
        await connection.execute("UPDATE baton.stream SET status = 'running', usage = NULL, finish_reason = NULL")
        assert not await stream_ending.end(
            connection, End.of_claimed(Fence(stream_id, 1), Outcome.failed("worker_lost", ""))
        )
        stream = await row(connection, stream_id)
        assert (stream.status, stream.finish_reason, stream.usage) == ("completed", "length", {"total": 3})
        assert len(await events(connection, stream_id)) == 1


async def test_a_stream_that_runs_out_of_numbers_reports_it(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await event_log.append(connection, [Append(stream_id, 1, MAX_SEQ, MAX_SEQ, encode_text("a"))])
        with pytest.raises(ConfigurationError, match="no number left"):
            await stream_ending.end(connection, End.of_claimed(Fence(stream_id, 1), Outcome.cancelled()))
        assert (await row(connection, stream_id)).epoch == 1


async def test_an_erased_stream_leaves_no_text(opened: Pool) -> None:
    stream, _ = await stream_creation.create(opened, NEW, key())
    async with opened.acquire() as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        await event_log.append(connection, [Append(stream.id, item.epoch, 1, 1, encode_text("a"))])
        assert await stream_ending.erase(opened, stream.id)
        assert not await stream_ending.erase(opened, stream.id)
        for table in ("stream", "idempotency_key"):
            assert await connection.fetchval(f"SELECT count(*) FROM baton.{table}") == 0
        assert await connection.fetchval("SELECT count(*) FROM baton.event WHERE type = 'text'") == 0
        assert await event_log.append(connection, [Append(stream.id, item.epoch, 2, 2, encode_text("b"))]) == set()


async def test_a_worker_without_a_row_claims_nothing(dsn: str) -> None:
    async with connected(dsn) as connection:
        await queue_many(connection, 1)
        assert await stream_queue.claim(connection, WORKER, ["test"], 1, place=(0, 1)) == []
        assert len(await claim_as(connection, WORKER, ["test"], 1)) == 1


async def test_streams_are_found_newest_first(opened: Pool) -> None:
    made = []
    for number in range(4):
        new = NewStream("test", None, {"chat": number % 2, "user": "u"}, "retry", tenant="t")
        made.append((await stream_creation.create(opened, new))[0].id)
        await until_after(opened, made[-1])
    await stream_creation.create(opened, NEW)

    async def found(limit: int = 20, **given: Any) -> list[UUID]:
        async with opened.acquire() as connection:
            page = await stream_lists.find(connection, StreamFilter("t", **given), limit)
        return [stream.id for stream in page.streams]

    assert await found() == made[::-1]
    assert await found(2) == [made[3], made[2]]
    assert await found(last=stream_lists.below(made[1])) == [made[0]]
    assert await found(metadata=[{"chat": 1}]) == [made[3], made[1]]
    assert await found(metadata=[{"chat": "1"}, {"chat": 1, "user": "u"}]) == [made[3], made[1]]
    assert await found(statuses=["running"]) == []
    assert await found(statuses=["queued", "failed"]) == made[::-1]


async def test_empty_pages_still_lead_to_all_rare_streams(
    opened: Pool, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr(stream_lists, "MAX_SCANNED", 4)
    made = []
    for number in range(20):
        new = NewStream("test", None, {"kind": "x"}, "retry", tenant="t")
        made.append((await stream_creation.create(opened, new))[0].id)
        if number % 7 != 3:
            await stream_ending.end_any(opened, made[-1], stream_ending.QUEUE_TIMEOUT)
        await until_after(opened, made[-1])
    rare = [made[17], made[10], made[3]]
    for tenant in ("t", None):
        # Fewer have not ended than are looked at; those that have metadata, or both states, are more.
        for given in ({"statuses": ["queued"]}, {"statuses": ["queued", "completed"]}, {"metadata": [{"kind": "x"}]}):
            with subtests.test(f"{tenant} {given}"):
                wanted = StreamFilter(tenant, **given)
                pages: list[list[UUID]] = []
                async with opened.acquire() as connection:
                    while len(pages) < 20:
                        page = await stream_lists.find(connection, wanted, 3)
                        pages.append([stream.id for stream in page.streams])
                        assert page.scanned <= 4
                        if page.before is None:
                            break
                        wanted = replace(wanted, last=stream_lists.below(page.before))
                assert [item for page in pages for item in page] == (made[::-1] if "metadata" in given else rare)
                assert ([] in pages) == ("completed" in given.get("statuses", ()))


async def test_an_append_in_flight_does_not_outlive_the_erasure(dsn: str) -> None:
    async with pool(dsn, size=2, timeout_seconds=10) as opened, connected(dsn) as writing:
        (stream_id,) = await claimed(writing)
        async with writing.transaction():
            text = encode_text("not to be kept")
            assert await event_log.append(writing, [event_log.Append(stream_id, 1, 1, 1, text)]) == {stream_id}
            erasing = asyncio.create_task(stream_ending.erase(opened, stream_id))
            await until_blocked(opened)
        assert await erasing
        # One that starts only now, and has not heard of the end, aims at the place after its last batch.
        for seq in (1, 2):
            assert await event_log.append(writing, [event_log.Append(stream_id, 1, seq, seq, text)]) == set()
        left = await writing.fetch("SELECT data::text FROM baton.event WHERE stream_id = $1", stream_id)
        assert [orjson.loads(data)["finish_reason"] for (data,) in left] == ["erased"]


async def until_blocked(opened: Pool) -> None:
    async def blocked() -> bool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(await opened.fetchval(waiting))

    await until(blocked)
