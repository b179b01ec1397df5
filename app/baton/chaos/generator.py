"""The generator that chaos' workers run. Its input says how many events, how fast, how large, and in which bursts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator

from ..generators import GenerationRequest
from ..generators.protocol import Yielded
from .text import Piece, write


async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield `events` deltas, `rate` a second, `burst` at once; each `every`th has `padding` more characters."""
    given = request.input
    run = secrets.token_hex(4)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(1, given["events"] + 1):
        large = given["every"] and number % given["every"] == 0
        yield write(Piece(run, number), given["padding"] if large else 0)
        if number % given["burst"] == 0:
            # After a time in which the log was full it goes on at its pace, and does not make up for it.
            due = max(due + given["burst"] / given["rate"], loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))
