"""The run of a stream, and the moments at which it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tests.support.runs import run_of

from baton.errors import GenerationError
from baton.generators import GenerationRequest, Yielded


async def test_no_step_begins_once_the_stream_is_handed_over() -> None:
    """The function would be called again by the next run."""
    called: list[str] = []
    go = asyncio.Event()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        await go.wait()
        yield await request.step("note", lambda: called.append("note"))

    run = run_of(generate)
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go.set()
    run.hand_over()
    assert await running is None
    assert run.handed_over
    assert called == []


async def test_a_stream_is_handed_over_between_two_of_its_steps() -> None:
    """However short the time between them is."""
    called: list[int] = []
    ended: list[int] = []
    begun, end = asyncio.Event(), asyncio.Event()

    async def work(number: int) -> None:
        called.append(number)
        begun.set()
        await end.wait()
        ended.append(number)

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        for number in range(2):
            await request.step("work", work, number)
        yield "never"

    run = run_of(generate)
    running = asyncio.create_task(run.run())
    await begun.wait()
    run.hand_over()
    end.set()
    assert await running is None
    assert run.handed_over
    assert (called, ended) == ([0], [0])


async def test_a_step_that_runs_may_call_another_one_during_the_handover() -> None:
    called: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        async def outer() -> str:
            called.append("outer")
            begun.set()
            await go.wait()
            return await request.step("inner", lambda: called.append("inner"))  # type: ignore[no-any-return]

        await request.step("outer", outer)
        await asyncio.Event().wait()
        yield "never"

    run = run_of(generate)
    running = asyncio.create_task(run.run())
    await begun.wait()
    run.hand_over()
    go.set()
    await running
    assert run.handed_over
    assert called == ["outer", "inner"]


async def test_a_generator_that_ends_with_its_last_step_is_not_handed_over() -> None:
    begun, end = asyncio.Event(), asyncio.Event()
    failed = GenerationError("tool_failed", "The tool failed.")

    async def work() -> None:
        begun.set()
        await end.wait()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        await request.step("work", work)
        yield "said"
        raise failed

    run = run_of(generate)
    running = asyncio.create_task(run.run())
    await begun.wait()
    run.hand_over()
    end.set()
    while not running.done():
        await asyncio.sleep(0)
        if (item := run.outbox.take()) is not None:
            run.outbox.written(item.last_seq, terminal=item.outcome is not None)
    outcome = await running
    assert outcome is not None
    assert (outcome.error_code, run.handed_over) == ("tool_failed", False)


async def test_a_generator_that_is_handed_over_can_clean_up() -> None:
    cleaned = False

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
            yield ""
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned = True

    run = run_of(generate)
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.hand_over()
    await running
    assert cleaned
