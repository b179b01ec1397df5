"""The run of a stream, and the moments at which it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tests.support.runs import run_of

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
