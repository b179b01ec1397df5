"""Chaos itself: a short run, and one with a log that is tampered with."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil

import asyncpg
import orjson
import psutil
import pytest
from rich.console import Console
from tests.support.logbook import until

from baton.chaos import end_hook
from baton.chaos.experiment import Experiment, Options
from baton.chaos.generators import Answer
from baton.db import postgres, stream_creation
from baton.db.stream_creation import NewStream


def done(status: str = "completed", code: str | None = None) -> str:
    return orjson.dumps({"type": "done", "status": status, "error": {"code": code} if code else None}).decode()


class Played:
    """A run of chaos whose words are kept."""

    def __init__(self, options: Options, dsn: str | None) -> None:
        self.output = io.StringIO()
        self.chaos = Experiment(options, dsn, Console(file=self.output, width=120))

    async def run(self) -> int:
        status = await self.chaos.run()
        if self.chaos.violations:
            return status
        assert not self.chaos.folder.exists()
        return status


KINDS = (
    "worker SIGSTOP",
    "forged notifications",
    "listen black-holed",
    "promotion",
    "pod SIGKILL",
    "queries cut",
    "replies lost",
    "notify queue full",
    "listen cut",
    "worker SIGKILL",
    "old snapshot",
    "pod SIGTERM",
    "queries delayed",
    "listen stalled",
    "pod SIGSTOP",
    "queries black-holed",
    "backends terminated",
    "slow disk",
    "worker SIGTERM",
    "listen delayed",
    "queries stalled",
    "postgres restart",
    "postgres outage",
)


@pytest.mark.parametrize(
    ("seconds", "every_seconds"), [(6, 0.3), pytest.param(16, 0.7, marks=pytest.mark.slow)], ids=["dense", "long"]
)
async def test_nothing_is_lost_under_any_fault(seconds: float, every_seconds: float) -> None:
    options = Options(
        seconds=seconds,
        seed=5,
        streams=12,
        viewers=3,
        pods=3,
        workers=2,
        rate=30,
        every_seconds=every_seconds,
        faults=KINDS,
    )
    played = Played(options, None)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    handlers = logging.getLogger().handlers[:]
    status = await played.run()
    # Its log is in a folder that is gone by now.
    assert logging.getLogger().handlers == handlers
    words = played.output.getvalue()
    assert status == 0, words
    counts = played.chaos.director.counts
    # How much fits into the time is the machine's affair: that each slot played to its end is not.
    assert len(counts.keys() & set(KINDS)) >= 5, counts
    assert played.chaos.workload.traffic.events > 200
    assert played.chaos.workload.judged >= options.streams
    assert f"The seed was 5. To repeat: baton chaos --seconds {seconds} --seed 5 --streams 12" in words
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.slow
async def test_nothing_is_lost_while_nats_dies_hangs_and_is_forged() -> None:
    kinds = ["nats SIGKILL", "forged NATS messages", "worker SIGKILL", "nats SIGSTOP", "pod SIGTERM", "queries cut"]
    options = Options(seconds=20, seed=5, streams=8, viewers=2, workers=2, every_seconds=0.8, faults=kinds, nats=True)
    played = Played(options, None)
    assert await played.run() == 0, played.output.getvalue()
    counts = played.chaos.director.counts
    assert {kind for kind in kinds if "nats" in kind.lower()} <= counts.keys(), counts
    assert " --nats " in played.output.getvalue()


@pytest.mark.slow
async def test_nothing_is_lost_over_two_databases() -> None:
    options = Options(
        seconds=12,
        seed=5,
        streams=12,
        viewers=3,
        pods=2,
        workers=2,
        rate=30,
        every_seconds=0.7,
        databases=2,
        # If the second outage finds its database down, it waits for its next turn.
        faults=("postgres outage", "queries stalled", "postgres outage", "promotion", *KINDS),
    )
    played = Played(options, None)
    running = asyncio.create_task(played.run())
    await until(lambda: running.done() or hasattr(played.chaos, "workload"), within_seconds=60)
    workload = played.chaos.workload
    # As a create that got no answer leaves it: nobody approves what it waits for.
    answer = Answer(events=3, rate=30, burst=1, ask_every=1)
    stray = NewStream("asking", answer.as_input(), {}, "retry", may_continue=True)
    await stream_creation.create(list(workload.databases)[1].pool, stray)
    status = await running
    words = played.output.getvalue()
    assert status == 0, words
    assert workload.strays >= 1
    assert workload.by_database.keys() == {"a", "b"}
    assert workload.unkeyed.created > 0
    assert played.chaos.director.counts["postgres outage"] >= 1
    assert "--databases 2" in words


@pytest.mark.slow
async def test_a_modified_log_makes_chaos_fail(dsn: str) -> None:
    options = Options(seconds=4, seed=1, streams=3, viewers=2, pods=2, workers=2, faults=["listen cut", "queries cut"])
    played = Played(options, dsn)
    running = asyncio.create_task(played.run())
    connection = await asyncpg.connect(dsn)
    tampered = None
    while tampered is None and not running.done():
        await asyncio.sleep(0.02)
        tampered = await connection.fetchval(
            """
            UPDATE baton.batch SET events = convert_to(replace(convert_from(events, 'UTF8'), '"delta":"', '"delta":"0'),
                                                       'UTF8')
            WHERE (stream_id, first_seq) = (SELECT stream_id, first_seq FROM baton.batch WHERE NOT terminal LIMIT 1)
            RETURNING stream_id
            """
        )
    assert await running == 1
    wrong = [found for found in played.chaos.violations if found.stream == str(tampered)]
    assert {found.complaint.kind for found in wrong} & {"not the log", "mixture"}
    assert {found.stream for found in played.chaos.violations} == {str(tampered)}
    words = played.output.getvalue()
    assert f"{tampered}" in words
    folder = played.chaos.folder
    assert f"The logs of the processes are in {folder}" in words
    assert str(tampered) in (folder / "violations.log").read_text()
    assert (folder / "pod-1.log").exists()
    # On a database that is not its own it leaves nothing but the schema.
    assert await connection.fetchval("SELECT count(*) FROM baton.stream") == 0
    assert await connection.fetchval("SELECT count(*) FROM baton.batch") == 0
    await connection.close()
    shutil.rmtree(folder)


async def test_what_the_hook_saved_is_compared_with_the_streams_that_have_ended(dsn: str) -> None:
    insert = "INSERT INTO chaos.saved SELECT id, 'completed', 'a' FROM baton.stream WHERE status = 'completed'"
    async with postgres.pool(dsn, size=1, timeout_seconds=10) as pool:
        async with pool.acquire() as connection:
            await end_hook.prepare(connection)
        for status, hook_failed in (("completed", False), ("cancelled", True), ("waiting", False)):
            stream = (await stream_creation.create(pool, NewStream("asking", {}, {}, "retry")))[0].id
            await pool.execute(
                "UPDATE baton.stream SET status = $2, hook_failed = $3 WHERE id = $1", stream, status, hook_failed
            )
        completed = await pool.fetchval("SELECT id FROM baton.stream WHERE status = 'completed'")

        async def wrong(text: str = "a") -> tuple[int, int]:
            found = await end_hook.against_log(pool, completed, "completed", text)
            return len(await end_hook.unlike(pool)), len(found)

        assert await wrong() == (1, 1)  # not saved
        await pool.execute(insert)
        assert await wrong() == (0, 0)
        assert await wrong("b") == (0, 1)
        assert await end_hook.counts(pool) == (1, 1)
        await pool.execute(insert)
        assert await wrong() == (1, 1)  # saved twice
        await pool.execute("DELETE FROM chaos.saved")
        await pool.execute("INSERT INTO chaos.saved SELECT id, status, 'a' FROM baton.stream")
        assert await wrong() == (2, 0)  # saved without an end, and in spite of its mark
        await pool.execute("UPDATE chaos.saved SET status = 'failed' WHERE status = 'completed'")
        assert await wrong() == (3, 1)  # saved with another status
