"""Streams that wait for inputs: how a wait begins and ends, what the next run gets, and that no wake-up is lost."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any
from uuid import UUID

import orjson
import pytest
from tests.support.logbook import connected, ended, events, queue, row, text, until, until_tail, working

import baton
from baton.db import inputs, stream_ending, stream_waiting
from baton.db.fence import Fence
from baton.db.postgres import Connection, pool
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.threaded import Threaded


async def waiting(connection: Connection, stream_id: UUID) -> None:
    """Wait until a stream waits."""

    async def waits() -> bool:
        return (await row(connection, stream_id)).status == "waiting"

    await until(waits)


async def send(connection: Connection, stream_id: UUID, data: Any, key: str | None = None) -> inputs.Added:
    return await inputs.add(connection, stream_id, orjson.dumps(data), key)


class Asking:
    """Asks a question, waits for the answer, and repeats it. `until` is the deadline of its wait."""

    continues = True

    def __init__(self, until: Any = None) -> None:
        self.until = until
        self.requests: list[GenerationRequest] = []

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.requests.append(request)
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "May I? "
            yield {"type": "wait", "for": {"type": "approval"}, "until": self.until, "state": {"asked": True}}
            raise AssertionError("it is not asked for more")
        yield f"You said {await request.receive(timeout=0)}."


class PlainAsking:
    """The same, as a function that runs in a thread."""

    continues = True
    after_wait = 0

    def __call__(self, request: GenerationRequest) -> Generator[Yielded, None, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "May I? "
            yield {"type": "wait", "for": {"type": "approval"}}
            self.after_wait += 1
        yield f"You said {request.receive(timeout=0)}."


@pytest.mark.parametrize("make", [Asking, lambda: Threaded(PlainAsking())], ids=["async", "plain"])
async def test_an_input_wakes_a_stream_on_another_worker(dsn: str, make: Callable[[], Any]) -> None:
    generator = make()
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, on_worker_lost="fail")
        async with working(dsn, generator) as worker:
            await waiting(connection, stream_id)
            await until(lambda: not worker.slots.runs)
        found = await events(connection, stream_id)
        assert found[1]["for"] == {"type": "approval"}
        assert await send(connection, stream_id, "yes") == (1, "woken")
        async with working(dsn, generator):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert [event["type"] for event in found] == ["text", "waiting", "resumed", "text", "done"]
        assert found[2] == {"type": "resumed", "run": 2, "reason": "input"}
        assert text(found) == "May I? You said yes."
        assert (stream.status, stream.attempts) == ("completed", 1)
        assert await connection.fetchval("SELECT count(*) FROM baton.input") == 0
    assert getattr(generator, "after_wait", 0) == 0


async def test_the_state_of_a_wait_comes_back(dsn: str) -> None:
    asking = Asking()
    async with connected(dsn) as connection, working(dsn, asking):
        stream_id = await queue(dsn)
        await waiting(connection, stream_id)
        await send(connection, stream_id, {"ok": 1})
        await ended(connection, stream_id)
    assert asking.requests[1].state == {"asked": True}
    assert asking.requests[1].state_seq == 1


@pytest.mark.parametrize(
    "until", [0, 0.2, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)], ids=["now", "seconds", "past"]
)
async def test_a_deadline_wakes_it_without_an_input(dsn: str, until: Any) -> None:
    async with connected(dsn) as connection, working(dsn, Asking(until)):
        stream_id = await queue(dsn)
        await ended(connection, stream_id)
        found = await events(connection, stream_id)
    assert found[2] == {"type": "resumed", "run": 2, "reason": "deadline"}
    assert text(found) == "May I? You said None."


async def test_a_wait_without_a_deadline_ends_with_the_stream(dsn: str) -> None:
    async with connected(dsn) as connection, working(dsn, Asking(), max_wait_seconds=0.2):
        stream = await ended(connection, await queue(dsn))
    assert (stream.status, stream.error_code) == ("failed", "wait_timeout")


async def test_a_waiting_stream_can_be_cancelled_without_a_worker(dsn: str) -> None:
    async with connected(dsn) as connection, pool(dsn, size=2, timeout_seconds=10) as executor:
        stream_id = await queue(dsn)
        async with working(dsn, Asking()):
            await waiting(connection, stream_id)
        assert await stream_ending.request_cancel(executor, stream_id) == "waiting"
        assert (await row(connection, stream_id)).status == "cancelled"
        assert await send(connection, stream_id, "late") == (None, "ended")


async def test_waiting_is_no_silence_and_takes_no_time(dsn: str) -> None:
    limits = {"idle_timeout_seconds": 30, "max_duration_seconds": 60}
    async with connected(dsn) as connection, working(dsn, Asking(), **limits):
        stream_id = await queue(dsn)
        await waiting(connection, stream_id)
        await connection.execute(
            "UPDATE baton.stream SET waiting_since = waiting_since - interval '1 hour', "
            "started_at = started_at - interval '1 hour'"
        )
        await send(connection, stream_id, "yes")
        stream = await ended(connection, stream_id)
    assert stream.status == "completed"
    assert stream.duration_seconds is not None
    assert stream.duration_seconds < 60


async def test_an_input_that_came_before_the_wait_is_not_waited_for(dsn: str) -> None:
    sent = asyncio.Event()

    @baton.continues
    async def late(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "?"
            await sent.wait()
            yield {"type": "wait"}
        yield await request.receive()

    async with connected(dsn) as connection, working(dsn, late):
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 1)
        assert await send(connection, stream_id, "!") == (1, "added")
        sent.set()
        await ended(connection, stream_id)
        assert [event["type"] for event in await events(connection, stream_id)] == ["text", "resumed", "text", "done"]


async def test_an_input_that_a_lost_run_did_not_receive_ends_the_wait_of_the_next(dsn: str) -> None:
    """The next run asks again, and only then receives: its state was not saved."""
    sent = asyncio.Event()

    @baton.continues
    async def asking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if request.state is None:
            yield "?"
            if request.run == 1:
                await asyncio.Event().wait()
            sent.set()
            yield {"type": "wait", "state": "asked"}
            return
        yield {"type": "continue", "after": request.so_far.seq}
        yield await request.receive()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, asking):
            await until_tail(connection, stream_id, 1)
            assert await send(connection, stream_id, "!") == (1, "added")
        async with working(dsn, asking):
            await sent.wait()
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "?!"


async def test_each_of_several_inputs_wakes_a_generator_that_receives_one_in_a_run(dsn: str) -> None:
    @baton.continues
    async def one_by_one(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if (got := await request.receive(0)) is not None:
            yield got
        state = (request.state or "") + (got or "")
        if len(state) < 3:
            yield {"type": "wait", "state": state}

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, one_by_one):
            await waiting(connection, stream_id)
        for data in ("a", "b", "c"):
            await send(connection, stream_id, data)
        async with working(dsn, one_by_one):
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "abc"


async def test_a_wait_that_did_not_begin_leaves_no_state(dsn: str) -> None:
    """A worker dies between the question and the wait: the next run must not find that it has waited in vain."""
    go_on = asyncio.Event()

    @baton.continues
    async def asking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if request.state is None:
            yield f"Run {request.run}. "
            await go_on.wait()
            yield "May I? "
            yield {"type": "wait", "state": "asked"}
            return
        yield {"type": "continue", "after": request.so_far.seq}
        yield str(await request.receive(0))

    async with connected(dsn) as connection, connected(dsn) as holder:
        stream_id = await queue(dsn, may_continue=True)
        async with holder.transaction(), working(dsn, asking):
            await until_tail(connection, stream_id, 1)
            await holder.execute("SELECT FROM baton.stream FOR UPDATE")
            go_on.set()
            await until_tail(connection, stream_id, 2)
            await until(lambda: _is_blocked(connection))
        async with working(dsn, asking):
            await waiting(connection, stream_id)
            await send(connection, stream_id, "yes")
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "Run 2. May I? yes"


@pytest.mark.parametrize("receives", [False, True], ids=["ignores its inbox", "saves nothing"])
async def test_a_generator_that_does_not_get_further_with_its_inputs_waits_for_the_next(
    dsn: str, receives: bool
) -> None:
    runs: list[int] = []

    @baton.continues
    async def deaf(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        runs.append(request.run)
        if receives:
            await request.receive(0)
        yield {"type": "wait"}

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        for data in ("a", "b"):
            await send(connection, stream_id, data)
        async with working(dsn, deaf) as worker:
            await waiting(connection, stream_id)
            await until(lambda: not worker.slots.runs)
    assert runs == [1, 2]


async def test_an_input_in_a_transaction_wakes_the_wait_that_began_beside_it(dsn: str) -> None:
    """The input is inserted before the wait looks, and committed after it."""
    go_on = asyncio.Event()

    @baton.continues
    async def held(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "?"
            await go_on.wait()
            yield {"type": "wait"}
        yield await request.receive()

    async with connected(dsn) as connection, connected(dsn) as other, working(dsn, held):
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 1)
        async with other.transaction():
            assert await send(other, stream_id, "!") == (1, "added")
            go_on.set()
            await until(lambda: _is_blocked(connection))
        await ended(connection, stream_id)
        assert [event["type"] for event in await events(connection, stream_id)] == ["text", "resumed", "text", "done"]


async def _is_blocked(connection: Connection) -> bool:
    blocked: bool = await connection.fetchval(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return blocked


async def test_inputs_of_a_running_stream_come_in_order_and_again_after_a_loss(dsn: str) -> None:
    got: list[list[Any]] = []

    @baton.continues
    async def collect(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        got.append([])
        yield {"type": "continue", "after": request.so_far.seq}
        while True:
            data = await request.receive()
            got[-1].append(data)
            yield f"{data} "
            if data == 3 and request.run == 1:
                await asyncio.Event().wait()
            if data == 5:
                return
            if data == 2:
                yield {"type": "state", "state": None}

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, collect):
            for number in range(1, 4):
                await send(connection, stream_id, number)
            await until_tail(connection, stream_id, 3)
        async with working(dsn, collect):
            for number in range(4, 6):
                await send(connection, stream_id, number)
            await ended(connection, stream_id)
    assert got == [[1, 2, 3], [3, 4, 5]]


async def test_receive_returns_none_in_time(dsn: str) -> None:
    async def impatient(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield f"{await request.receive(timeout=0)} {await request.receive(timeout=0.05)}"

    async with connected(dsn) as connection, working(dsn, impatient):
        stream_id = await queue(dsn)
        await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "None None"


async def test_only_a_generator_that_continues_may_wait(dsn: str) -> None:
    async def simple(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "wait"}

    async with connected(dsn) as connection, working(dsn, simple):
        stream = await ended(connection, await queue(dsn))
    assert stream.error_code == "invalid_event"


async def test_a_wait_keeps_its_slot_while_older_code_runs(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(
            "INSERT INTO baton.worker (name, generators, concurrency, code) VALUES ('old', '{}', 1, '0023')"
        )
        await connection.execute("UPDATE baton.compatibility SET oldest_code = '0023'")
        stream_id = await queue(dsn)
        async with working(dsn, Asking()) as worker:
            await until_tail(connection, stream_id, 1)
            assert worker.slots.runs
            assert (await row(connection, stream_id)).status == "running"
            await connection.execute("DELETE FROM baton.worker WHERE name = 'old'")
            await waiting(connection, stream_id)


async def test_the_state_of_a_wait_is_not_saved_unless_it_begins(dsn: str) -> None:
    """A worker leaves before its wait could begin. The next run must not take that for a wait without an answer."""

    @baton.continues
    async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if not request.so_far.text:
            yield "May I? "
        if request.state is None:
            yield {"type": "wait", "state": {"asked": True}}
        yield f"You said {await request.receive(timeout=0)}."

    async with connected(dsn) as connection:
        await connection.execute(
            "INSERT INTO baton.worker (name, generators, concurrency, code) VALUES ('old', '{}', 1, '0023')"
        )
        await connection.execute("UPDATE baton.compatibility SET oldest_code = '0023'")
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, careful) as worker:
            await until(lambda: stream_id in worker.slots.runs)
            run = worker.slots.runs[stream_id]
            await until(lambda: run.feed.wait is not None and not run.outbox.has_unsaved_state)
        await connection.execute("DELETE FROM baton.worker WHERE name = 'old'")
        async with working(dsn, careful):
            await waiting(connection, stream_id)
            await send(connection, stream_id, "yes")
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "May I? You said yes."


async def test_the_state_of_a_wait_that_never_begins_is_stopped(dsn: str) -> None:
    """An input came first, or the stream is cancelled before its wait begins."""
    asking = StoppableAsking()
    async with connected(dsn) as connection, working(dsn, asking):
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 1)
        await connection.execute("UPDATE baton.stream SET cancel_requested_at = now() WHERE id = $1", stream_id)
        asking.go_on.set()
        assert (await ended(connection, stream_id)).status == "cancelled"
        await until(lambda: bool(asking.stopped))
    assert asking.stopped == [{"asked": True}]


class StoppableAsking:
    """Begins something at a provider, and waits."""

    continues = True

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.stopped: list[Any] = []

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "?"
        await self.go_on.wait()
        yield {"type": "wait", "state": {"asked": True}}

    async def stop(self, state: Any) -> None:
        self.stopped.append(state)


async def test_a_repeated_beginning_of_a_wait_finds_it_done(dsn: str) -> None:
    """As after a commit whose reply was lost."""
    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, Asking()):
            await waiting(connection, stream_id)
        stream = await row(connection, stream_id)
        fence = Fence(stream_id, stream.epoch, stream.claim_token)
        again = await stream_waiting.begin(
            connection, fence, stream_waiting.Wait(None), seen=0, most_seconds=60, history=None
        )
        assert again == (stream_waiting.Began.LEFT, None)
        assert len(await events(connection, stream_id)) == 2


@pytest.mark.parametrize(
    "deadline",
    [
        1e308,
        10**400,
        1e13,
        datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-12))),
        datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=14))),
    ],
    ids=["float", "int", "beyond Postgres", "west", "east"],
)
async def test_a_wait_that_would_take_longer_than_it_may_ends_the_stream(dsn: str, deadline: Any) -> None:
    asking = Asking(deadline)
    async with connected(dsn) as connection, working(dsn, asking, max_wait_seconds=0.2):
        stream = await ended(connection, await queue(dsn))
    assert (stream.status, stream.error_code) == ("failed", "wait_timeout")
    assert len(asking.requests) == 1


@pytest.mark.parametrize("hours", [-12, 0, 14])
async def test_a_deadline_of_any_past_is_over_at_once(dsn: str, hours: int) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=hours))
    async with connected(dsn) as connection, working(dsn, Asking(datetime.datetime.min.replace(tzinfo=zone))):
        stream_id = await queue(dsn)
        await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "May I? You said None."


@pytest.mark.parametrize("saves", [True, False])
async def test_inputs_that_came_together_are_taken_one_by_one(dsn: str, saves: bool) -> None:
    """A generator that saves no state would receive the first one again and again, so it is not called again."""

    @baton.continues
    async def one(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        taken = request.state or 0
        yield {"type": "continue", "after": request.so_far.seq}
        data = await request.receive(timeout=0)
        if data is not None:
            taken += 1
            yield f"{data} "
        if taken < 3:
            yield {"type": "wait"} | ({"state": taken} if saves else {})

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, one):
            await waiting(connection, stream_id)
        for number in range(3):
            await send(connection, stream_id, number)
        async with working(dsn, one):
            await (ended(connection, stream_id) if saves else waiting(connection, stream_id))
        assert text(await events(connection, stream_id)) == ("0 1 2 " if saves else "0 ")


async def test_a_generator_that_only_waits_meets_the_bound_of_events(dsn: str) -> None:
    @baton.continues
    async def forever(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        yield {"type": "wait", "until": 0}

    async with connected(dsn) as connection, working(dsn, forever, max_stream_events=10):
        stream_id = await queue(dsn)
        stream = await ended(connection, stream_id)
        assert stream.error_code == "too_many_events"
        assert len(await events(connection, stream_id)) <= 12
