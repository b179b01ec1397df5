"""Generators for workers that are processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

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
