"""The application's end hook: what it saves is committed with the end of its stream, and it holds up nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from tests.support import end_hook
from tests.support.cluster import Tap, echo, ended
from tests.support.end_hook import GATE, TARGET, saved, unlike
from tests.support.hints import notify_cancel
from tests.support.logbook import connected, events, row, settings, until, until_tail, working

from baton.chaos.proxy import Proxy
from baton.commands import end_hooks
from baton.db import ended_answers, hooked_ends, stream_creation, stream_ending, worker_rows
from baton.db.fence import Fence
from baton.db.postgres import Connection, pool
from baton.db.stream_creation import Limits, NewStream
from baton.errors import ConfigurationError
from baton.observability.metrics import WorkerMetrics
from baton.outcome import Outcome
from baton.worker import hooked_ends as service
from baton.worker.end_hook import load_end_hook
from baton.worker.workers import Workers

WITH_HOOK = {"on_end": TARGET, "lease_seconds": 1}
FAULTY = ("raise", "violate", "swallow", "cancel itself", "hang", "query forever", "ignore its cancellation", "close")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("baton.worker.end_hook._STUBBORN_SECONDS", 0.05)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    async with connected(dsn) as opened:
        await opened.execute(end_hook.TABLE)
        yield opened


async def create(
    dsn: str, *given: object, hook: str = "", generator: str = "echo", limits: Limits | None = None, **others: Any
) -> UUID:
    metadata = {"hook": hook, "chat": 7}
    new = NewStream(generator, list(given), metadata, "fail", "ada", limits=limits or Limits(), **others)
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        return (await stream_creation.create(opened, new))[0].id


async def end_of(connection: Connection, stream_id: UUID) -> tuple[str, bool]:
    """Wait for a stream's end; return how it ended, and whether that was without its hook."""

    async def has_ended() -> bool:
        return (await row(connection, stream_id)).ended

    await until(has_ended)
    await events(connection, stream_id)
    found = await connection.fetchrow(
        "SELECT coalesce(error_code, finish_reason), hook_failed FROM baton.stream WHERE id = $1", stream_id
    )
    assert found is not None
    return found[0], found[1]


async def waits(connection: Connection, count: int = 1) -> bool:
    """Whether so many hooks wait at the gate."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted", GATE
    )
    return found == count


async def test_every_answer_is_saved_once_with_its_end(dsn: str, connection: Connection) -> None:
    tap = Tap()
    async with working(dsn, {"echo": echo, "tap": tap}, **WITH_HOOK):
        whole = [await create(dsn, "a", "b") for _ in range(5)]
        bad = await create(dsn, "a", {"type": "no such"})
        cancelled = await create(dsn, generator="tap")
        tap.let("so", " far")
        await until_tail(connection, cancelled, 2)
        async with pool(dsn, size=1, timeout_seconds=10) as opened:
            assert await stream_ending.request_cancel(opened, cancelled) == "running"
            await notify_cancel(opened, cancelled)
        assert [await end_of(connection, item) for item in whole] == [("stop", False)] * 5
        assert await end_of(connection, bad) == ("invalid_event", False)
        assert await end_of(connection, cancelled) == ("cancelled", False)
    assert await unlike(connection) == []
    assert sorted(await saved(connection)) == sorted(
        [*((item, "completed", "ab") for item in whole), (bad, "failed", "a"), (cancelled, "cancelled", "so far")]
    )


async def test_the_hook_gets_the_answer_as_it_ended(dsn: str, connection: Connection) -> None:
    got: list[ended_answers.EndedAnswer] = []
    usage = {"type": "usage", "input_tokens": 1, "output_tokens": 2}
    call = {"type": "tool_call", "index": 0, "id": "c1", "name": "find", "arguments_delta": "{}"}
    result = {"type": "tool_result", "id": "c1", "name": "find", "content": 7}
    stream_id = await create(dsn, {"type": "reasoning", "delta": "hm"}, call, result, "yes", usage)
    async with working(dsn, {"echo": echo}):
        await end_of(connection, stream_id)

    async def note(_connection: Connection, answer: ended_answers.EndedAnswer) -> None:
        got.append(answer)

    await connection.execute("UPDATE baton.stream SET hook_failed = true")
    assert await hooked_ends.run_again(connection, stream_id, note)
    assert not await hooked_ends.run_again(connection, stream_id, note)  # it is not marked any more
    answer = got[0]
    assert (answer.id, answer.tenant, answer.generator, answer.metadata["chat"]) == (stream_id, "ada", "echo", 7)
    assert (answer.status, answer.finish_reason, answer.error) == ("completed", "stop", None)
    assert (answer.text, answer.reasoning) == ("yes", "hm")
    assert answer.tool_calls == [{"id": "c1", "name": "find", "arguments": "{}"}]
    assert [found["content"] for found in answer.tool_results] == [7]
    assert answer.usage == {"input_tokens": 1, "output_tokens": 2}
    assert (answer.events, answer.attempts, answer.input[3]) == (6, 1, "yes")
    assert answer.timings["tokens"] == 3
    assert answer.created_at < answer.ended_at


async def test_a_hook_that_waits_holds_up_no_other_stream(dsn: str, connection: Connection) -> None:
    tap = Tap()
    await connection.execute("SELECT pg_advisory_lock($1)", GATE)
    async with working(dsn, {"echo": echo, "tap": tap}, **WITH_HOOK) as worker:
        slow = [await create(dsn, "a", hook="wait") for _ in range(service.CONNECTIONS)]
        await until(lambda: waits(connection, service.CONNECTIONS))
        other = await create(dsn, generator="tap")
        for count in range(1, 6):
            tap.let("token")
            await until_tail(connection, other, count)
        # No row is locked: a pod notes which streams are watched in one statement.
        await connection.execute("SET lock_timeout = '5s'")
        await connection.execute("UPDATE baton.stream SET watched_at = clock_timestamp()")
        assert await saved(connection) == []
        assert not (await row(connection, slow[0])).ended
        await connection.execute("SELECT pg_advisory_unlock($1)", GATE)
        tap.end()
        for stream_id in (*slow, other):
            assert await end_of(connection, stream_id) == ("stop", False)
        assert worker.metrics.end_hook_seconds.count == service.CONNECTIONS + 1
    assert await unlike(connection) == []


async def test_what_fails_is_the_hook_and_not_the_answer(
    dsn: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(dsn, {"echo": echo}, **WITH_HOOK, on_end_timeout_seconds=0.3) as worker:
        bad = {hook: await create(dsn, "a", hook=hook) for hook in FAULTY}
        good = await create(dsn, "a")
        found = {hook: await end_of(connection, stream_id) for hook, stream_id in bad.items()}
        assert found == dict.fromkeys(FAULTY, ("stop", True))
        assert await end_of(connection, good) == ("stop", False)
        failures = worker.metrics.end_hook_failures
        registry = worker.metrics.registry
        assert registry.get_sample_value("baton_end_hook_failures_total", {"then": "give_up"}) == len(FAULTY)
        assert registry.get_sample_value("baton_end_hook_failures_total", {"then": "retry"}) == 2 * len(FAULTY)
        assert failures is not None
    assert await unlike(connection) == []
    reports = [item.getMessage() for item in caplog.records if item.levelno == logging.ERROR]
    assert len(reports) == len(FAULTY)
    assert all("baton run-end-hooks" in item for item in reports)


async def test_a_hook_may_act_as_another_role(dsn: str, connection: Connection) -> None:
    """Baton writes the end as its own role, and so does the next hook of this connection begin."""
    async with working(dsn, {"echo": echo}, **WITH_HOOK):
        for hook in ("become another role", ""):
            assert await end_of(connection, await create(dsn, "a", hook=hook)) == ("stop", False)
    assert len(await saved(connection)) == 2


async def test_a_hook_that_commits_is_found_out(
    dsn: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(dsn, {"echo": echo}, on_end="tests.support.end_hook:commit"):
        assert await end_of(connection, await create(dsn, "a")) == ("stop", True)
    assert "ended Baton's transaction by itself" in caplog.text


async def test_failed_hooks_run_again_by_a_command(
    dsn: str, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await connection.execute("INSERT INTO fault VALUES (true)")
    async with working(dsn, {"echo": echo}, **WITH_HOOK):
        ids = sorted([await create(dsn, "a", hook="raise while there is a fault") for _ in range(3)])
        for stream_id in ids:
            assert await end_of(connection, stream_id) == ("stop", True)
    given = settings(dsn, **WITH_HOOK)

    async def run(*, limit: int = 100, dry_run: bool = False) -> tuple[int, str]:
        code = await asyncio.to_thread(end_hooks.run, given, limit=limit, dry_run=dry_run)
        return code, capsys.readouterr().out

    assert await run(dry_run=True) == (0, "".join(f"{stream_id}\n" for stream_id in ids))
    assert await run() == (1, "The end hook ran for 0 streams, and failed for 3.\n")
    await connection.execute("DELETE FROM fault")
    assert await run(limit=1) == (0, "The end hook ran for 1 streams, and failed for 0.\n")
    assert await run() == (0, "The end hook ran for 2 streams, and failed for 0.\n")
    assert await saved(connection) == [(stream_id, "completed", "a") for stream_id in ids]
    assert await unlike(connection) == []
    with pytest.raises(ConfigurationError, match="BATON_ON_END"):
        await asyncio.to_thread(end_hooks.run, settings(dsn), limit=1, dry_run=False)


async def test_ends_without_a_writer_have_the_hook_too(dsn: str, connection: Connection) -> None:
    """Each is found by two workers, whose hooks run one at a time."""
    late, unserved = [await create(dsn, generator="none", limits=Limits(queue_timeout=0.01)) for _ in range(2)]
    orphan = await create(dsn, generator="none")
    rewound = await create(dsn, generator="none")
    await connection.execute(
        "UPDATE baton.stream SET status = 'running', epoch = 1, attempts = 3, worker_id = gen_random_uuid() "
        "WHERE id = ANY ($1)",
        [orphan, rewound],
    )
    await connection.execute("UPDATE baton.stream SET history = 'older' WHERE id = $1", rewound)
    line = b'{"type":"text","delta":"so far"}'
    await connection.execute("INSERT INTO baton.batch VALUES ($1, 1, 1, 1, false, $2)", orphan, line)
    async with working(dsn, {"echo": echo}, **WITH_HOOK), working(dsn, {"echo": echo}, **WITH_HOOK):
        assert await end_of(connection, late) == ("queue_timeout", False)
        assert await end_of(connection, unserved) == ("queue_timeout", False)
        assert await end_of(connection, orphan) == ("worker_lost", False)
        assert await end_of(connection, rewound) == ("log_rewound", False)
    assert await unlike(connection) == []
    assert (orphan, "failed", "so far") in await saved(connection)


async def test_pods_leave_the_end_of_a_cancelled_stream_to_a_worker_with_a_hook(
    dsn: str, connection: Connection
) -> None:
    queued, lost = [await create(dsn, generator="none") for _ in range(2)]
    async with (
        pool(dsn, size=1, timeout_seconds=10) as opened,
        working(dsn, {"echo": echo}, queue_poll_seconds=60, worker_heartbeat_seconds=0.1, **WITH_HOOK),
    ):
        assert await stream_ending.request_cancel(opened, queued) == "running"
        await notify_cancel(opened, queued)
        assert await end_of(connection, queued) == ("cancelled", False)
        # Without the notification it is found by looking.
        assert await stream_ending.request_cancel(opened, lost) == "running"
        assert await end_of(connection, lost) == ("cancelled", False)
        assert await unlike(connection) == []
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        # No worker has a hook any more, since this one is dead.
        await connection.execute("DELETE FROM baton.worker")
        assert await stream_ending.request_cancel(opened, await create(dsn, generator="none")) == "queued"


async def test_a_worker_without_the_hook_leaves_such_ends_to_others(dsn: str, connection: Connection) -> None:
    async with working(dsn, {"echo": echo}) as plain:
        holder = await worker_rows.register(connection, "has a hook", ["none"], 1, has_end_hook=True)
        overdue = await create(dsn, generator="none", limits=Limits(queue_timeout=0.01))
        for _ in range(3):
            plain._upkeep._overdue_pace.hurry()
            await asyncio.sleep(0.06)
        assert not (await row(connection, overdue)).ended
        await worker_rows.remove(connection, holder)
        assert await end_of(connection, overdue) == ("queue_timeout", False)


@pytest.mark.parametrize("when", ["in the hook", "at the commit"])
async def test_a_lost_connection_neither_loses_nor_repeats_what_was_saved(
    dsn: str, connection: Connection, when: str
) -> None:
    async with Proxy(dsn) as proxy:
        await connection.execute("SELECT pg_advisory_lock($1)", GATE)
        async with working(proxy.dsn, {"echo": echo}, **{**WITH_HOOK, "lease_seconds": 30}) as worker:
            stream_id = await create(dsn, "a", hook="wait")
            await until(lambda: waits(connection))
            if when == "at the commit":
                proxy.hold_replies()  # the server goes on, and nobody hears of it
            else:
                proxy.cut()
                await until(lambda: waits(connection))
            await connection.execute("SELECT pg_advisory_unlock($1)", GATE)
            if when == "at the commit":
                proxy.cut()
                proxy.resume()
            assert await end_of(connection, stream_id) == ("stop", False)
            await until(lambda: not worker.slots.runs)
        assert await unlike(connection) == []


async def test_a_worker_that_leaves_gives_a_hook_its_time(dsn: str, connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_lock($1)", GATE)
    worker = Workers(settings(dsn, worker_drain_seconds=0, **WITH_HOOK), {"echo": echo})
    task = asyncio.create_task(worker.run())
    try:
        stream_id = await create(dsn, "a", hook="wait")
        await until(lambda: waits(connection))
        worker.leave()
        await asyncio.sleep(0.2)
        assert not task.done()
        await connection.execute("SELECT pg_advisory_unlock($1)", GATE)
        await asyncio.wait_for(task, 30)
    finally:
        await ended(task)
    assert await end_of(connection, stream_id) == ("stop", False)
    assert await unlike(connection) == []


async def test_a_claim_that_is_lost_while_the_hook_runs_undoes_it(dsn: str, connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_lock($1)", GATE)
    async with working(dsn, {"echo": echo}, **WITH_HOOK) as worker:
        stream_id = await create(dsn, "a", hook="wait")
        await until(lambda: waits(connection))
        outcome = Outcome.failed("worker_lost", "Gone.")
        token = await connection.fetchval("SELECT claim_token FROM baton.stream WHERE id = $1", stream_id)
        end = stream_ending.End.of_claimed(Fence(stream_id, 1, token), outcome)
        assert await stream_ending.end(connection, end)
        await connection.execute("SELECT pg_advisory_unlock($1)", GATE)
        await until(lambda: not worker.slots.runs)
    assert (await row(connection, stream_id)).error_code == "worker_lost"
    assert await saved(connection) == []


async def test_a_slow_hook_of_an_end_without_a_writer_sees_the_whole_log(dsn: str, connection: Connection) -> None:
    """The last append of a worker that was declared dead arrives while the hook runs."""
    stream_id = await create(dsn, generator="none")
    await connection.execute("UPDATE baton.stream SET status = 'running', epoch = 1 WHERE id = $1", stream_id)
    texts: list[str] = []
    async with connected(dsn) as late:

        async def hook(_connection: Connection, answer: ended_answers.EndedAnswer) -> None:
            texts.append(answer.text)
            if len(texts) == 1:
                line = orjson.dumps({"type": "text", "delta": "late"})
                await late.execute("INSERT INTO baton.batch VALUES ($1, 1, 1, 1, false, $2)", stream_id, line)

        end = stream_ending.End.of_claimed(Fence(stream_id, 1), Outcome.failed("worker_lost", "Gone."))
        assert await stream_ending.end(connection, end, hook)
    assert texts == ["", "late"]
    assert len(await events(connection, stream_id)) == 2


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("tests.support.end_hook:plain", "is not a coroutine function: define it with `async def on_end"),
        ("tests.support.end_hook:of_one", "cannot be called with two arguments"),
        ("tests.support.end_hook:missing", "has no 'missing'"),
        ("no_such_module:hook", "there is no module 'no_such_module'"),
    ],
)
def test_a_hook_that_cannot_be_used_is_refused_at_the_start(target: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        load_end_hook(settings("postgresql://localhost/none", on_end=target), WorkerMetrics())
