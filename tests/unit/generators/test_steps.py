"""Steps without a worker: keys, results, threads and errors. `integration/worker/test_steps.py` has the kept ones."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import uuid
from typing import Any

import pytest
from tests.support.logbook import until

import baton
from baton.generators import GenerationRequest
from baton.generators.steps import Steps


def request(**given: Any) -> GenerationRequest:
    return GenerationRequest(uuid.uuid4(), None, {}, **given)


def again(before: GenerationRequest) -> GenerationRequest:
    """The request of the next run, which finds what the former one kept."""
    steps_of(before).restart()
    return before


def steps_of(given: GenerationRequest) -> Steps:
    assert isinstance(given.steps, Steps)
    return given.steps


class Tool:
    """An async tool that counts its calls, and may be held."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.keys: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def run(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append((*arguments, *named.values()))
        self.keys.append(baton.idempotency_key())
        await self.go.wait()
        return len(self.calls)


async def test_a_step_runs_once_and_gives_its_result_again() -> None:
    tool, first = Tool(), request()
    assert await first.step("search", tool.run, "q", limit=3) == 1
    second = again(first)
    assert await second.step("search", tool.run, "q", limit=3) == 1
    assert tool.calls == [("q", 3)]


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ((1, "a"), [1, "a"]),
        ({"a": (None, 1.5)}, {"a": [None, 1.5]}),
        ("a\ud83d\ude00\ud800", "a\U0001f600\ufffd"),
        ({"\ud800": ["\udfff"]}, {"\ufffd": ["\ufffd"]}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (None, None),
        (float("nan"), None),
    ],
)
async def test_the_first_run_and_a_replay_get_the_same_json(result: Any, kept: Any) -> None:
    first = request()
    assert await first.step("s", lambda: result) == kept
    assert await again(first).step("s", lambda: "called again") == kept


async def test_a_key_is_name_arguments_and_occurrence() -> None:
    tool, first = Tool(), request()
    calls = [
        first.step("a", tool.run),
        first.step("b", tool.run),
        first.step("a", tool.run, 1),
        first.step("a", tool.run, x={"b": 1, "a": 2}),
        first.step("a", tool.run),
        first.step("a", tool.run, 1),
    ]
    results = [await call for call in calls]
    assert results == [1, 2, 3, 4, 5, 6]
    second = again(first)
    # In another order, of calls and of keys.
    assert await second.step("a", tool.run, x={"a": 2, "b": 1}) == 4
    assert [await second.step("a", tool.run, 1) for _ in range(2)] == [3, 6]
    assert await second.step("b", tool.run) == 2
    assert [await second.step("a", tool.run) for _ in range(2)] == [1, 5]
    assert len(tool.calls) == 6
    assert await second.step("a", tool.run) == 7
    assert len(set(tool.keys)) == 7


async def test_occurrences_count_calls_and_not_when_they_are_awaited() -> None:
    async def tool(said: str) -> str:
        return said

    first = request()
    one, two = first.step("s", functools.partial(tool, "one")), first.step("s", functools.partial(tool, "two"))
    assert (await two, await one) == ("two", "one")
    second = again(first)
    assert [await second.step("s", tool) for _ in range(2)] == ["one", "two"]


async def test_steps_run_at_the_same_time_and_are_counted() -> None:
    tool, given = Tool(), request()
    tool.go.clear()
    steps = steps_of(given)
    assert (steps.used, steps.running) == (False, 0)
    running = asyncio.gather(*(given.step("s", tool.run, 1) for _ in range(3)))
    await until(lambda: len(tool.calls) == 3)
    idle: list[int] = []
    steps.close(lambda: idle.append(steps.running))
    assert (steps.used, steps.running, idle) == (True, 3, [])
    tool.go.set()
    await running
    assert (steps.running, idle) == (0, [0])
    assert steps.ended_at > 0


async def test_the_idempotency_key_is_the_steps_own_and_stays_the_same() -> None:
    tool, given = Tool(), request()
    for _ in range(2):
        await given.step("s", tool.run, 1)
    other = GenerationRequest(given.stream_id, None, {})
    for _ in range(2):
        await other.step("s", tool.run, 1)
    assert tool.keys[:2] == tool.keys[2:]
    assert len({*tool.keys}) == 2
    assert {uuid.UUID(key).version for key in tool.keys} == {5}
    elsewhere = request()
    await elsewhere.step("s", tool.run, 1)
    assert tool.keys[-1] not in tool.keys[:-1]


async def test_there_is_an_idempotency_key_only_in_a_step() -> None:
    with pytest.raises(baton.StepError, match=r"request\.step"):
        baton.idempotency_key()
    given = request()
    seen = await given.step("s", baton.idempotency_key)  # in a thread
    assert uuid.UUID(seen).version == 5
    with pytest.raises(baton.StepError):
        baton.idempotency_key()


async def test_a_plain_function_runs_in_a_thread_with_its_context() -> None:
    number = contextvars.ContextVar("number", default=0)
    number.set(7)
    entered, leave = threading.Event(), threading.Event()

    def tool() -> tuple[bool, int, bool]:
        entered.set()
        held = leave.wait(60)
        return threading.current_thread() is not threading.main_thread(), number.get(), held

    task = asyncio.create_task(request().step("s", tool))
    await until(entered.is_set)  # the loop is free while the function blocks
    leave.set()
    assert await task == [True, 7, True]


async def test_many_blocking_functions_do_not_wait_for_each_other() -> None:
    count = 100  # more than the loop's own threads
    together = threading.Barrier(count)
    given = request()
    await asyncio.gather(*(given.step("s", together.wait, 60) for _ in range(count)))


async def test_what_a_plain_function_returns_may_be_awaited() -> None:
    async def tool(number: int) -> int:
        return number + 1

    class Callable:
        async def __call__(self) -> int:
            return 3

    given = request()
    assert await given.step("s", lambda: tool(1)) == 2
    assert await given.step("t", Callable()) == 3


# As they are raised, or as a RuntimeError: these would end a coroutine, or the worker.
ERRORS = [ValueError("no"), asyncio.CancelledError("no")]
DANGEROUS = [StopIteration("no"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize("error", [*ERRORS, *DANGEROUS])
async def test_an_exception_is_raised_and_not_kept(error: BaseException) -> None:
    calls = 0

    def tool() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return "fine"

    first = request()
    with pytest.raises(RuntimeError if error in DANGEROUS else type(error)):
        await first.step("s", tool)
    assert steps_of(first).running == 0
    assert await again(first).step("s", tool) == "fine"


async def test_cancelling_reaches_an_async_function_and_leaves_a_thread_alone() -> None:
    cancelled = False
    started = asyncio.Event()

    async def tool() -> None:
        nonlocal cancelled
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    given = request()
    task = asyncio.create_task(given.step("s", tool))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled

    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> None:
        entered.set()
        leave.wait(60)
        left.set()

    task = asyncio.create_task(given.step("t", blocking))
    await until(entered.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leave.set()
    assert await asyncio.to_thread(left.wait, 60)
    assert steps_of(given).running == 0


async def test_mistakes_are_named() -> None:
    given = request()
    client = object()
    with pytest.raises(baton.StepError, match=r"(?s)step 'search' is no JSON.*functools\.partial"):
        await given.step("search", print, client)
    with pytest.raises(baton.StepError, match="is no JSON"):
        await given.step("search", print, {1: "a number as a key"})
    with pytest.raises(baton.StepError, match="step 'search' returned a value"):
        await given.step("search", lambda: client)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(baton.StepError, match="returned a value"):
        await given.step("deep", lambda: loop)
    for name in ("", "x" * 201, "a\0", "a\nb", "\ud800", 1):
        with pytest.raises(baton.StepError, match="1 to 200 printable characters"):
            await given.step(name, print)  # type: ignore[arg-type]

    async def tool() -> None: ...

    called = tool()
    with pytest.raises(baton.StepError, match=r"function and its arguments, not a coroutine: await request\.step\('s'"):
        await given.step("s", called)  # type: ignore[arg-type]
    called.close()
    assert steps_of(given).running == 0


async def test_a_result_has_a_bound() -> None:
    given = request(steps=Steps(max_result_bytes=10))
    assert await given.step("fits", lambda: "12345678") == "12345678"
    with pytest.raises(baton.StepError, match="has 11 bytes as JSON, and at most 10 can be kept"):
        await given.step("large", lambda: "123456789")


def test_requests_are_equal_whatever_their_steps() -> None:
    stream_id = uuid.uuid4()
    assert GenerationRequest(stream_id, None, {}) == GenerationRequest(stream_id, None, {})
    assert "steps" not in repr(request())
