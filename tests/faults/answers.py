"""Generators for workers that are processes of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded


async def counting(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Count to `count` with `pause` seconds in between; write to the file `log` how it ended."""
    given = request.input
    fate = "ended"
    try:
        for number in range(given["count"]):
            yield f"{number} "
            await asyncio.sleep(given.get("pause", 0))
    except (asyncio.CancelledError, GeneratorExit):
        fate = "cancelled"
        raise
    finally:
        if "log" in given:
            with Path(given["log"]).open("a") as log:  # noqa: ASYNC230
                log.write(f"attempt {request.attempt} {fate}\n")


async def stepping(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Run a tool as a step, and wait after it for the file `end`. `calls` is a file in which the tool counts."""
    given = request.input

    async def tool(question: str) -> list[str]:
        with Path(given["calls"]).open("a") as calls:  # noqa: ASYNC230
            calls.write(f"{baton.idempotency_key()}\n")
        await exists(given.get("go"))
        return [question, "answer"]

    yield "asking "
    result = await request.step("tool", tool, "question")
    yield "-".join(result)
    await exists(given.get("end"))


async def exists(path: str | None) -> None:
    """Wait for a file, if one is named."""
    while path is not None and not Path(path).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)


async def blocking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield a word; from the moment that the file `begin` exists, block the event loop until the file `end` exists.

    Only the first attempt blocks.
    """
    yield "before "
    if request.attempt == 1:
        await exists(request.input["begin"])
        wait_for(request.input["end"])
    yield "after"


def waiting(request: GenerationRequest) -> Iterator[Yielded]:
    """Do the same in a thread, in every attempt."""
    yield "before "
    wait_for(request.input["begin"])
    wait_for(request.input["end"])
    yield "after"


def wait_for(path: str) -> None:
    """Wait for a file, and block the thread."""
    while not Path(path).exists():
        time.sleep(0.01)
