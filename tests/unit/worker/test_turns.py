"""A run gives way to its neighbors, also if its generator never awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest
from tests.support.runs import run_of

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.worker.turns import TURN_SECONDS, Turns


def busy() -> None:
    """Compute for longer than a run may keep the loop."""
    until = time.monotonic() + 2 * TURN_SECONDS
    while time.monotonic() < until:
        pass


async def test_a_generator_that_never_awaits_starves_nobody() -> None:
    neighbor = asyncio.Event()

    async def greedy(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        asyncio.get_running_loop().call_soon(neighbor.set)
        for _ in range(1000):
            busy()
            yield ""  # which makes no event, so no full outbox makes it wait
            if neighbor.is_set():
                return

    await run_of(greedy)._generate()
    assert neighbor.is_set()


async def test_nothing_happens_between_an_event_and_the_state_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(lambda _request: generate())
    turned = 0

    def turn() -> None:
        nonlocal turned
        turned += 1

    async def generate() -> AsyncGenerator[Yielded, None]:
        for _ in range(3):
            busy()
            yield "an event"
        loop = asyncio.get_running_loop()
        for _ in range(3):
            loop.call_soon(turn)
            busy()
            yield {"type": "state", "state": 1}
        assert not turned
        for _ in range(2):
            busy()
            yield "an event"
        assert turned

    monkeypatch.setattr(run.feed, "_encode_mapping", lambda _item: None)
    await run._generate()
    assert turned == 3


async def test_a_loop_that_turns_is_left_alone() -> None:
    turns = Turns()
    for _ in range(3):
        assert not turns.stands(0)
        await asyncio.sleep(0)
    assert not turns.stands(0)
    assert turns.stands(0)
    assert turns.look_at == TURN_SECONDS
