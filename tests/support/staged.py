"""Generators that wait for a test, which may run in another process: each stage begins when a file exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from baton import GenerationRequest, Yielded, continues


async def alone(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield "one ", wait for the file that the input names, and yield "two". Nothing can continue it."""
    yield "one "
    await there(request.input)
    yield "two"


@continues
async def handed_over(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Do the same, and continue what another worker has begun."""
    if request.so_far.text:
        yield {"type": "continue", "after": request.so_far.seq}
    else:
        yield "one "
    await there(request.input)
    yield "two"


async def fatal(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """End the loop of the worker that runs it."""
    for task in asyncio.all_tasks():
        if task.get_name() == "control":
            task.cancel()
    yield "."
    await asyncio.Event().wait()


async def there(name: str) -> None:
    while not Path(name).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
