"""The inbox of one run: slow reads, several tasks that receive at once, and calls that are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from baton.generators.inbox import Inbox, InputMemory


class SlowInputs(InputMemory):
    """Inputs whose reads take a few turns of the event loop, or last until `go_on` is set."""

    def __init__(self, data: Sequence[Any] = ()) -> None:
        super().__init__(data)
        self.reads = 0
        self.go_on: asyncio.Event | None = None

    async def read(self, after: int) -> Sequence[Any]:
        self.reads += 1
        if self.go_on is not None:
            await self.go_on.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().read(after)


@pytest.mark.parametrize("timeout", [-1, 0, 1e-9, 0.01, None])
async def test_an_input_that_is_there_comes_within_any_time(timeout: float | None) -> None:
    inbox = Inbox(SlowInputs(["a", "b"]))
    assert [await inbox.receive(timeout), await inbox.receive(timeout)] == ["a", "b"]


async def test_a_timeout_does_not_end_a_read() -> None:
    source = SlowInputs(["a"])
    source.go_on = asyncio.Event()
    receiving = asyncio.create_task(Inbox(source).receive(1e-9))
    await asyncio.sleep(0.02)
    source.go_on.set()
    assert await receiving == "a"
    assert source.reads == 1


async def test_looking_does_not_wait_behind_another_task_that_waits() -> None:
    inbox = Inbox(SlowInputs())
    waiting = asyncio.create_task(inbox.receive(None))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await inbox.receive(0) is None
    waiting.cancel()


async def test_tasks_that_receive_at_once_share_the_inputs() -> None:
    source = SlowInputs()
    inbox = Inbox(source)
    receiving = [asyncio.create_task(inbox.receive(None)) for _ in range(3)]
    await asyncio.sleep(0)
    for data in "abc":
        source.add(data)
    async with asyncio.timeout(5):
        assert sorted(await asyncio.gather(*receiving)) == ["a", "b", "c"]
    assert inbox.received == 3


async def test_a_receive_that_is_cancelled_loses_no_input() -> None:
    source = SlowInputs(["a"])
    inbox = Inbox(source)
    turns = 0
    while True:
        receiving = asyncio.create_task(inbox.receive(None))
        for _ in range(turns):
            await asyncio.sleep(0)
        if receiving.done():
            break
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await receiving
        turns += 1
    assert await receiving == "a"
    assert (inbox.received, inbox.waits) == (1, 0)
