"""Generators for workers that are processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import IO

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


async def stamped(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield a number each second, with the time, for as many seconds as the input says."""
    for number in range(request.input):
        yield f"{number}@{time.time()} "
        await asyncio.sleep(1)


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


@baton.continues
async def continuing(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Count to `count`, and continue from the state. The newest message is JSON: see `Plan` in `test_taking_over`.

    Each `step_every`th number is the result of a tool, which runs as a step. A state is saved after each
    `save_every`th number only, so a later run repeats some. No number is yielded before the file `allowed` in `folder`
    has that many bytes.
    """
    given = json.loads(baton.messages(request.input)[-1]["content"])
    folder = Path(given["folder"])

    async def tool(number: int) -> int:
        with open_to_append(folder / "calls") as calls:
            os.write(calls, f"{request.stream_id} {number}\n".encode())
        await asyncio.sleep(given["pause"])
        return number

    yield {"type": "continue", "after": request.state_seq}
    for number in range(request.state or 0, given["count"]):
        while (folder / "allowed").stat().st_size <= number:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if number % given["step_every"]:
            yield f"{number} "
        else:
            async with may_run(folder):
                result = await request.step("tool", tool, number)
            yield f"{result} "
        if not (number + 1) % given["save_every"]:
            yield {"type": "state", "state": number + 1}
        await asyncio.sleep(given["pause"])


@contextlib.contextmanager
def open_to_append(path: Path) -> Iterator[int]:
    """Open a file to which many processes append whole lines."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield opened
    finally:
        os.close(opened)


def lock_now(file: IO[str], kind: int) -> bool:
    """Lock a file unless another process's lock is in the way. The lock ends with its process at the latest."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.asynccontextmanager
async def may_run(folder: Path) -> AsyncIterator[None]:
    """Share a lock on the file `gate`. Wait for it while there is a file `closed`."""
    with (folder / "gate").open() as gate:
        while (folder / "closed").exists() or not lock_now(gate, fcntl.LOCK_SH):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield


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
