"""Plain generators in threads: order, errors, backpressure, closing, and threads that do not come back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from tests.support.logbook import until
from tests.unit.generators.generation import hear, request

from baton.errors import InvalidEvent
from baton.generators import GenerationRequest, threaded
from baton.generators.protocol import Yielded
from baton.generators.threaded import MOST_AHEAD, Threaded, ThreadedEvents


def events_of(function: threaded.PlainGenerator) -> ThreadedEvents:
    return ThreadedEvents(function, request(None))


async def test_events_come_in_order_from_a_thread_of_their_own() -> None:
    threads = set()

    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        for number in range(1000):
            threads.add(threading.current_thread())
            yield str(number)

    heard = await hear(Threaded(generate))
    assert [event["delta"] for event in heard.events] == [str(number) for number in range(1000)]
    (thread,) = threads
    assert thread.daemon
    assert thread is not threading.current_thread()


async def test_many_events_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    loop = asyncio.get_running_loop()
    wake = loop.call_soon_threadsafe

    def count(*arguments: Any, **given: Any) -> Any:
        nonlocal wakes
        wakes += 1
        return wake(*arguments, **given)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    heard = await hear(Threaded(lambda _request: ["x"] * 10_000))
    assert len(heard.events) == 10_000
    assert wakes < 5000


async def test_a_generator_waits_while_nobody_takes_its_events() -> None:
    yielded = 0

    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        nonlocal yielded
        while True:
            yielded += 1
            yield "x"

    events = events_of(generate)
    assert await anext(events) == "x"
    taken = 1 + len(events._taken)
    # And those that wait, and the one in the thread's hand.
    await until(lambda: yielded >= taken + MOST_AHEAD + 1)
    await events.aclose()
    assert yielded == taken + MOST_AHEAD + 1


async def test_a_generator_is_closed_at_its_next_yield_in_its_own_thread_and_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    variable.set("the stream's")
    seen: list[Any] = []
    go = threading.Event()

    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        try:
            yield "a"
            go.wait()
            yield "b"
            raise AssertionError
        except GeneratorExit:
            seen.append("closed")
            raise
        finally:
            seen.extend((threading.current_thread(), variable.get()))

    events = events_of(generate)
    assert await anext(events) == "a"
    closing = asyncio.create_task(events.aclose())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert (seen[0], seen[2]) == ("closed", "the stream's")
    assert seen[1] is not threading.current_thread()


async def test_a_generator_that_never_began_is_closed() -> None:
    await events_of(lambda _request: ["x"]).aclose()


@pytest.mark.parametrize("error", [ValueError("mine"), InvalidEvent("mine")])
async def test_an_exception_is_raised_where_events_are_taken(error: Exception) -> None:
    def generate(_request: GenerationRequest) -> Iterator[Yielded]:
        yield "a"
        raise error

    events = events_of(generate)
    assert await anext(events) == "a"
    with pytest.raises(type(error)) as caught:
        await anext(events)
    assert caught.value is error
    await events.aclose()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), StopAsyncIteration()])
async def test_no_exception_ends_the_worker_or_looks_like_an_end(error: BaseException) -> None:
    def generate(_request: GenerationRequest) -> list[Yielded]:
        raise error

    with pytest.raises(RuntimeError):
        await anext(events_of(generate))


@pytest.mark.parametrize("returned", ["text", b"text", {"type": "text", "delta": "text"}, None, 7])
async def test_a_function_that_returns_no_iterable_of_events_is_refused(returned: Any) -> None:
    with pytest.raises(InvalidEvent, match=f"not {type(returned).__name__}"):
        await anext(events_of(lambda _request: returned))


async def test_a_thread_that_does_not_come_back_is_named_and_abandoned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threaded, "ABANDON_SECONDS", 0.01)
    go = threading.Event()

    def generate_for_ever(_request: GenerationRequest) -> Iterator[Yielded]:
        yield "a"
        go.wait()

    events = events_of(generate_for_ever)
    await anext(events)
    with caplog.at_level(logging.ERROR):
        closing = asyncio.create_task(events.aclose())
        await until(lambda: bool(caplog.records))
    assert "The thread of" in caplog.text
    assert "go.wait()" in caplog.text
    assert not closing.done()
    go.set()
    await closing


def test_attributes_are_those_of_the_function() -> None:
    class Agent:
        continues = True

        def __call__(self, _request: GenerationRequest) -> list[Yielded]:
            return []

    assert Threaded(Agent()).continues
    assert getattr(Threaded(Agent()), "requested_model", None) is None
