"""Plain generators in a worker: steps that wait, states, continuing, and a `stop` that is not async."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.logbook import connected, ended, events, queue, row, settings, text, until, until_tail, working

import baton
from baton.db import stream_ending, stream_queue
from baton.db.postgres import pool
from baton.generators import GenerationRequest, stopper
from baton.generators.protocol import Yielded
from baton.generators.threaded import Threaded
from baton.worker.workers import Workers

SLOW: dict[str, Any] = {"lease_seconds": 600}
WORDS = ["It ", "was ", "the ", "best ", "of ", "times"]


class Author:
    """Writes a word for each step, saves after each, and continues.

    Its first run is held in its fourth step. Once it has returned, the run yields nothing new.
    """

    continues = True

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.closed = 0

    def word(self, number: int) -> str:
        self.calls.append(number)
        if self.calls.count(3) == 1 and number == 3:
            self.held.set()
            self.go_on.wait(60)
        return WORDS[number]

    def __call__(self, request: GenerationRequest) -> Iterator[Yielded]:
        try:
            yield {"type": "continue", "after": request.so_far.seq}
            for number in range(request.state or 0, len(WORDS)):
                word = request.step("word", self.word, number)
                while request.run == 1 and number == 3:
                    time.sleep(0.01)
                    yield ""
                yield word
                yield {"type": "state", "state": number + 1}
        except GeneratorExit:
            self.closed += 1
            raise


async def test_a_plain_generator_continues_from_its_state_and_repeats_no_step(dsn: str) -> None:
    author = Author()
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, Threaded(author)):
            await until(author.held.is_set)
            await until_tail(connection, stream_id, 3)
        assert author.closed == 1  # in its step, while the function still runs
        author.go_on.set()
        async with working(dsn, Threaded(author)):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert [event["type"] for event in found] == [*["text"] * 3, "resumed", *["text"] * 3, "done"]
        assert text(found) == "".join(WORDS)
        assert author.calls == [0, 1, 2, 3, 3, 4, 5]


async def test_a_worker_that_leaves_hands_a_plain_generator_over_in_its_step(dsn: str) -> None:
    author = Author()
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        workers = Workers(settings(dsn, **SLOW, worker_drain_seconds=600), {"test": Threaded(author)})
        (worker,) = workers.all
        task = asyncio.create_task(workers.run())
        await until(author.held.is_set)
        run = worker.slots.runs[stream_id]
        worker.leave()
        assert (run.steps.running, run.handed_over) == (1, False)
        author.go_on.set()
        await task
        assert author.closed == 1
        assert (await row(connection, stream_id)).status == "queued"
        async with working(dsn, Threaded(author), **SLOW):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert (text(found), found[3]["reason"]) == ("".join(WORDS), "worker_left")
        assert author.calls == [0, 1, 2, 3, 4, 5]  # the step was not interrupted


async def test_a_plain_generator_is_not_silent_in_its_step_and_is_cancelled_there(dsn: str) -> None:
    author = Author()
    async with connected(dsn) as connection, working(dsn, Threaded(author), **SLOW, idle_timeout_seconds=60) as worker:
        stream_id = await queue(dsn, may_continue=True)
        await until(author.held.is_set)
        run = worker.slots.runs[stream_id]
        run.last_event_at -= 3600
        assert run.silent_seconds == 0
        run.enforce(max_duration=3600, idle_timeout=60)
        async with pool(dsn, size=1, timeout_seconds=10) as one:
            assert await stream_ending.request_cancel(one, stream_id) == "running"
        assert (await ended(connection, stream_id)).status == "cancelled"
        assert author.closed == 1
        author.go_on.set()


async def test_a_zombies_step_closes_the_plain_generator(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    author = Author()
    caplog.set_level(logging.WARNING)
    async with connected(dsn) as connection, working(dsn, Threaded(author), **SLOW) as worker:
        stream_id = await queue(dsn, may_continue=True)
        await until(author.held.is_set)
        assert await stream_queue.requeue(connection, worker.slots.runs[stream_id].outbox.fence)
        author.go_on.set()
        await ended(connection, stream_id)
        assert author.closed == 1
        assert text(await events(connection, stream_id)) == "".join(WORDS)
    assert author.calls == [0, 1, 2, 3, 3, 4, 5]
    assert "never retrieved" not in caplog.text


async def test_a_decorated_plain_function_continues(dsn: str) -> None:
    held, go_on = threading.Event(), threading.Event()

    @baton.continues
    def generate(request: GenerationRequest) -> Iterator[Yielded]:
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "one"
            held.set()
            go_on.wait(60)
        yield " two"

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, Threaded(generate)):
            await until(held.is_set)
            await until_tail(connection, stream_id, 1)
            go_on.set()
        async with working(dsn, Threaded(generate)):
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "one two"


async def test_a_first_state_is_saved_before_a_plain_generator_continues(dsn: str) -> None:
    found: list[Any] = []
    async with connected(dsn) as connection:
        loop = asyncio.get_running_loop()

        @baton.continues
        def generate(_request: GenerationRequest) -> Iterator[Yielded]:
            yield {"type": "state", "state": "first"}
            asking = connection.fetchval("SELECT state FROM baton.stream_state")
            found.append(asyncio.run_coroutine_threadsafe(asking, loop).result())
            yield "end"

        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, Threaded(generate)):
            await until(lambda: bool(found))
            await ended(connection, stream_id)
    assert found == [b'"first"']


async def test_a_stop_that_is_not_async_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    class Agent:
        def __call__(self, _request: GenerationRequest) -> list[Yielded]:
            return []

        def stop(self, state: Any) -> None:
            assert state == 7
            threads.append(threading.current_thread())

    stop = stopper(Threaded(Agent()))
    assert stop is not None
    await stop(7)
    assert threads != [threading.current_thread()]
