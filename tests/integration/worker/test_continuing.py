"""A generator that continues: what the next run is given, what the log gets, and what happens if it differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from tests.support.logbook import (
    connected,
    ended,
    events,
    queue,
    row,
    settings,
    text,
    until,
    until_tail,
    working,
)

import baton
from baton.db.postgres import Connection
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.worker.workers import Workers

WORDS = ["It ", "was ", "the ", "best ", "of ", "times"]


class Author:
    """Continues after what is in the log. `stop_at` maps a run to the number of words after which it waits."""

    continues = True

    def __init__(self, stop_at: dict[int, int] | None = None) -> None:
        self.requests: list[GenerationRequest] = []
        self.stop_at = stop_at or {}

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.requests.append(request)
        yield {"type": "continue", "after": request.so_far.seq}
        said = len(request.so_far.text.split())
        for number, word in enumerate(WORDS[said:], start=said + 1):
            yield word
            yield {"type": "state", "state": {"words": number}}
            if self.stop_at.get(request.run) == number:
                await asyncio.Event().wait()


def types(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in found]


async def runs(connection: Connection) -> tuple[Any, ...]:
    return tuple(await connection.fetchrow("SELECT run, interruption FROM baton.stream") or ())


async def died(dsn: str, generator: Any, connection: Connection, stream_id: UUID, least: int) -> None:
    """Run a worker until the log has some events, and let it disappear."""
    async with working(dsn, generator):
        await until_tail(connection, stream_id, least)


async def test_another_worker_continues_after_the_last_word(dsn: str) -> None:
    author = Author({1: 2, 2: 4})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True, on_worker_lost="fail", tenant="acme")
        await died(dsn, author, connection, stream_id, 2)
        await died(dsn, author, connection, stream_id, 5)
        async with working(dsn, author):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert types(found) == ["text", "text", "resumed", "text", "text", "resumed", "text", "text", "done"]
        assert text(found) == "".join(WORDS)
        assert found[2] == {"type": "resumed", "run": 2, "reason": "worker_lost"}
        assert (stream.status, stream.tokens, stream.attempts) == ("completed", 6, 1)
        assert await runs(connection) == (3, "worker_lost")
        assert [(request.run, request.state, request.state_seq) for request in author.requests] == [
            (1, None, 0),
            (2, {"words": 2}, 2),
            (3, {"words": 4}, 5),
        ]
        assert author.requests[2].so_far == baton.SoFar(6, "It was the best ", "", [], [], [], None)
        assert author.requests[2].tenant == "acme"
        assert await connection.fetchval("SELECT count(*) FROM baton.stream_state") == 0


async def test_a_leaving_worker_hands_over_without_an_attempt_or_a_reset(dsn: str) -> None:
    author = Author({1: 3})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        worker = Workers(settings(dsn, lease_seconds=600, worker_drain_seconds=600), {"test": author})
        task = asyncio.create_task(worker.run())
        await until_tail(connection, stream_id, 3)
        worker.leave()
        await task
        stream = await row(connection, stream_id)
        assert (stream.status, stream.attempts) == ("queued", 0)
        assert await runs(connection) == (1, "worker_left")
        async with working(dsn, author, lease_seconds=600):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert found[3] == {"type": "resumed", "run": 2, "reason": "worker_left"}
        assert (text(found), "reset" in types(found)) == ("".join(WORDS), False)


async def test_a_generator_that_does_not_continue_starts_over(dsn: str) -> None:
    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield f"run {request.run}"
        if request.run == 1:
            await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        await died(dsn, generate, connection, stream_id, 1)
        async with working(dsn, generate):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert types(found) == ["text", "resumed", "reset", "text", "done"]
        assert (found[2]["reason"], text(found)) == ("worker_lost", "run 2")


@pytest.mark.parametrize("policy", ["retry", "fail"])
async def test_a_stream_that_must_not_continue_follows_its_policy(dsn: str, policy: str) -> None:
    author = Author({1: 2})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=False, on_worker_lost=policy)
        await died(dsn, author, connection, stream_id, 2)
        async with working(dsn, author):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        if policy == "retry":
            assert (types(found).count("reset"), text(found)) == (1, "".join(WORDS))
        else:
            assert (stream.error_code, text(found)) == ("worker_lost", "It was ")


async def test_a_generator_that_cannot_restart_or_continue_fails(dsn: str) -> None:
    @baton.continues
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True, on_worker_lost="fail")
        await died(dsn, generate, connection, stream_id, 1)
        async with working(dsn, generate):
            stream = await ended(connection, stream_id)
        assert (stream.error_code, text(await events(connection, stream_id))) == ("worker_lost", "a")


@pytest.mark.parametrize("second", ["a", "b"])
async def test_an_answer_that_was_handed_over_and_must_not_restart_ends_as_left(dsn: str, second: str) -> None:
    """`second`: it repeats nothing, or something else."""

    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if second == "b":
            yield {"type": "continue", "after": 0}
        yield "a" if request.run == 1 else second
        if request.run == 1:
            await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True, on_worker_lost="fail")
        worker = Workers(settings(dsn), {"test": generate})
        task = asyncio.create_task(worker.run())
        await until_tail(connection, stream_id, 1)
        worker.leave()
        await task
        async with working(dsn, generate):
            stream = await ended(connection, stream_id)
        assert (stream.error_code, text(await events(connection, stream_id))) == ("worker_left", "a")


class Parrot:
    """Repeats everything from a number on, cut differently in each run."""

    continues = True

    def __init__(self, runs: dict[int, list[Any]], *, after: int = 0) -> None:
        self.runs = runs
        self.after = after
        self.requests: list[GenerationRequest] = []

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.requests.append(request)
        if request.run > 1 and request.so_far.seq:
            yield {"type": "continue", "after": self.after}
        for item in self.runs[request.run]:
            if item is None:
                await asyncio.Event().wait()
            yield item


CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": '{"a'}
MORE = {"type": "tool_call", "index": 0, "arguments_delta": '": 1}'}
RESULT = {"type": "tool_result", "id": "c", "result": {"a": 1, "b": [2]}}
USAGE = {"type": "usage", "input_tokens": 3}


async def test_what_is_repeated_is_dropped_and_the_rest_of_a_delta_kept(dsn: str) -> None:
    first = [{"type": "reasoning", "delta": "hm"}, "Hel", "lo", CALL, MORE, RESULT, USAGE, "wor", None]
    again = [
        {"type": "reasoning", "delta": "h"},
        {"type": "reasoning", "delta": "m"},
        {"type": "state", "state": "as of what is repeated"},
        "Hello",
        {**CALL, "arguments_delta": '{"a": '},
        {"type": "tool_call", "index": 0, "arguments_delta": "1}"},
        {"type": "tool_result", "result": {"b": [2], "a": 1}, "id": "c"},
        USAGE,
        "world",
        "!",
    ]
    parrot = Parrot({1: first, 2: again})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True, on_worker_lost="fail")
        await died(dsn, parrot, connection, stream_id, 8)
        async with working(dsn, parrot):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert types(found[8:]) == ["resumed", "text", "text", "done"]
        assert (text(found), stream.usage, stream.usage_by_attempt) == ("Helloworld!", {"input_tokens": 3}, None)
        assert stream.tokens == 8
        so_far = parrot.requests[1].so_far
        assert so_far.tool_calls == [{"id": "c", "name": "f", "arguments": '{"a": 1}'}]
        assert so_far.tool_results == [{"id": "c", "result": {"a": 1, "b": [2]}}]
        assert (so_far.reasoning, so_far.usage) == ("hm", {"input_tokens": 3})


@pytest.mark.parametrize(
    "again",
    [["Hallo", "!"], ["He"], [{"type": "reasoning", "delta": "Hello"}], ["Hello", {**RESULT, "result": 2}], []],
    ids=["another text", "less", "another kind", "another result", "nothing"],
)
async def test_the_first_difference_starts_the_answer_over(dsn: str, again: list[Any]) -> None:
    runs = iter([again, ["a new ", "answer"]])

    class Fickle(Parrot):
        async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
            if request.run == 2:
                self.runs[2] = next(runs)
            async for item in super().__call__(request):
                yield item

    parrot = Fickle({1: ["Hello", RESULT, None]})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        await died(dsn, parrot, connection, stream_id, 2)
        async with working(dsn, parrot):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert types(found[3:]) == ["reset", "text", "text", "done"]
        assert (found[3]["reason"], text(found)) == ("output_differs", "a new answer")
        assert parrot.requests[-1].so_far == baton.SoFar()


@pytest.mark.parametrize("after", [-1, 4, True, None, "1"])
async def test_a_place_outside_of_the_log_is_a_fault_of_the_generator(dsn: str, after: Any) -> None:
    parrot = Parrot({1: ["a", "b", None], 2: []}, after=after)
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        await died(dsn, parrot, connection, stream_id, 2)
        async with working(dsn, parrot):
            assert (await ended(connection, stream_id)).error_code == "invalid_event"


async def test_a_state_before_the_first_event_is_saved_before_the_generator_continues(dsn: str) -> None:
    saved: list[Any] = []

    async with connected(dsn) as connection:

        @baton.continues
        async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
            if request.run == 1:
                yield {"type": "state", "state": {"id": "resp_1"}}
                saved.append(await connection.fetchval("SELECT convert_from(state, 'UTF8') FROM baton.stream_state"))
                await asyncio.Event().wait()
            yield {"type": "continue", "after": request.so_far.seq}
            yield f"{request.state['id']} {request.state_seq}"

        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, generate):
            await until(lambda: bool(saved))
        async with working(dsn, generate):
            await ended(connection, stream_id)
        assert saved == ['{"id":"resp_1"}']
        found = await events(connection, stream_id)
        assert (types(found), text(found)) == (["resumed", "text", "done"], "resp_1 0")


async def test_each_save_leaves_one_state(dsn: str) -> None:
    author = Author({1: 6})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, author):
            await until_tail(connection, stream_id, 6)
            rows = await connection.fetch("SELECT after_seq, convert_from(state, 'UTF8') FROM baton.stream_state")
            assert list(map(tuple, rows)) == [(6, '{"words":6}')]


@pytest.mark.parametrize("state", [object(), "x" * 2000])
async def test_a_state_that_is_not_json_or_too_large_fails_the_stream(dsn: str, state: Any) -> None:
    @baton.continues
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "state", "state": state}

    async with connected(dsn) as connection, working(dsn, generate, max_state_bytes=1024):
        stream_id = await queue(dsn, may_continue=True)
        assert (await ended(connection, stream_id)).error_code == "invalid_event"


async def test_a_generator_that_is_not_marked_may_not_save(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "state", "state": 1}

    async with connected(dsn) as connection, working(dsn, generate):
        stream_id = await queue(dsn, may_continue=True)
        assert (await ended(connection, stream_id)).error_code == "invalid_event"


async def test_only_deaths_without_progress_count(dsn: str) -> None:
    author = Author({run: run for run in range(1, 6)})
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        for run in range(1, 6):
            await died(dsn, author, connection, stream_id, 2 * run - 1)
        async with working(dsn, author, max_attempts=2):
            stream = await ended(connection, stream_id)
        assert (stream.status, text(await events(connection, stream_id))) == ("completed", "".join(WORDS))


async def test_a_stream_that_only_starts_over_is_tried_max_attempts_times(dsn: str) -> None:
    @baton.continues
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "again"
        await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        for tail in (1, 4, 7):
            async with working(dsn, generate, max_attempts=2):
                await until_tail(connection, stream_id, tail)
        async with working(dsn, generate, max_attempts=2):
            stream = await ended(connection, stream_id)
        # The first run was progress, and two more were not.
        assert stream.error_code == "worker_lost"


async def test_a_generator_that_differs_is_not_called_again_if_it_may_not_start_over(dsn: str) -> None:
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True, on_worker_lost="fail")
        parrot = Parrot({1: ["a", None], 2: ["b"]})
        await died(dsn, parrot, connection, stream_id, 1)
        async with working(dsn, parrot):
            stream = await ended(connection, stream_id)
        assert (stream.error_code, text(await events(connection, stream_id))) == ("worker_lost", "a")
        assert [request.run for request in parrot.requests] == [1, 2]
