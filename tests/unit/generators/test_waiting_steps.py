"""Steps of plain generators: they wait for the result in their thread, until they are closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from tests.support.logbook import until
from tests.unit.generators.generation import hear, request

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.steps import Steps
from baton.generators.threaded import PlainGenerator, Threaded, ThreadedEvents


async def text_of(generate: PlainGenerator) -> str:
    return (await hear(Threaded(generate))).text


async def test_a_plain_generator_gets_the_result_of_its_step() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    variable.set("the stream's")
    loop = asyncio.get_running_loop()

    async def asynchronous(word: str) -> list[Any]:
        return [word, asyncio.get_running_loop() is loop, variable.get(), len(baton.idempotency_key())]

    def blocking(*, word: str) -> list[Any]:
        return [word, threading.current_thread() is threading.main_thread(), variable.get()]

    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        yield str(given.step("a", asynchronous, "one"))
        yield str(given.step("b", blocking, word="two"))

    assert await text_of(generate) == "['one', True, \"the stream's\", 36]['two', False, \"the stream's\"]"


async def test_results_are_kept_and_counted_like_those_of_async_generators() -> None:
    steps = Steps()
    calls: list[int] = []

    def tool() -> int:
        calls.append(steps.running)
        return len(calls)

    def generate(given: GenerationRequest) -> list[Yielded]:
        return [str(given.step("s", tool)) for _ in range(2)]

    for _ in range(2):
        given = GenerationRequest(request(None).stream_id, None, {}, steps=steps)
        assert [item async for item in Threaded(generate)(given)] == ["1", "2"]
        steps.restart()
    assert (calls, steps.used, steps.running) == ([1, 1], True, 0)


async def test_errors_are_raised_at_the_step() -> None:
    def tool() -> None:
        raise ValueError("mine")

    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        with pytest.raises(ValueError, match="mine"):
            given.step("s", tool)
        with pytest.raises(baton.StepError, match="returned a value"):
            given.step("s", object)
        with pytest.raises(baton.StepError, match="1 to 200"):
            given.step("", print)
        yield "end"

    assert await text_of(generate) == "end"


async def test_a_generator_is_closed_in_its_step_at_once() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def tool() -> None:
        entered.set()
        leave.wait(60)

    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        yield "a"
        try:
            given.step("slow", tool)
        except GeneratorExit:
            seen.append("closed")
            raise
        finally:
            try:
                given.step("another", seen.append, "never")
            except GeneratorExit:
                seen.append("refused")

    given = request(None)
    events = ThreadedEvents(generate, given)
    assert await anext(events) == "a"
    await until(entered.is_set)
    await events.aclose()
    assert seen == ["closed", "refused"]
    assert isinstance(given.steps, Steps)
    assert given.steps.running == 0
    leave.set()


async def test_a_step_that_is_cancelled_from_inside_cancels_the_generator() -> None:
    async def tool() -> None:
        raise asyncio.CancelledError

    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        yield given.step("s", tool)

    events = ThreadedEvents(generate, request(None))
    with pytest.raises(asyncio.CancelledError):
        await anext(events)
    await events.aclose()


async def test_threads_and_loops_of_the_generator_may_run_steps() -> None:
    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(lambda number: str(given.step("n", lambda found: found * 2, number)), range(5))

        async def both() -> Any:
            return await asyncio.gather(*(given.step("m", lambda found: found * 3, number) for number in range(3)))

        yield str(asyncio.run(both()))

    assert await text_of(generate) == "02468[0, 3, 6]"


async def test_an_async_function_of_a_step_may_await_another() -> None:
    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        async def outer() -> str:
            return f"outer {await given.step('inner', lambda: 'inner')}"

        yield given.step("outer", outer)

    assert await text_of(generate) == "outer inner"


def test_a_unit_test_of_a_plain_generator_needs_no_event_loop() -> None:
    async def tool(word: str) -> str:
        return word.upper()

    def generate(given: GenerationRequest) -> Iterator[Yielded]:
        yield given.step("upper", tool, "a")
        yield given.step("lower", str.lower, "B")

    assert list(generate(request(None))) == ["A", "b"]


async def test_a_first_state_is_taken_before_the_thread_continues() -> None:
    passed: list[str] = []

    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        yield {"type": "state", "state": 1}
        passed.append("a state")
        yield "a"
        yield {"type": "state", "state": 2}
        passed.append("another")

    events = ThreadedEvents(generate, request(None))
    assert await anext(events) == {"type": "state", "state": 1}
    await until(lambda: bool(passed or events._changed._waiters))  # type: ignore[attr-defined]
    assert passed == []
    # A later one is saved with the event before it: nobody waits.
    assert await anext(events) == "a"
    await until(lambda: passed == ["a state", "another"])
    await events.aclose()


async def test_a_state_does_not_keep_a_generator_from_its_end() -> None:
    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        yield {"type": "state", "state": 1}
        raise AssertionError

    events = ThreadedEvents(generate, request(None))
    await anext(events)
    await events.aclose()
