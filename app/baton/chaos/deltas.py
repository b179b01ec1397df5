"""The text of chaos' streams: each delta has its generator's run, its number and a checksum, so that any mix-up shows.

`generate` is the generator that chaos' workers run.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ..generators import GenerationRequest
from ..generators.protocol import Yielded


@dataclass(frozen=True, slots=True)
class Delta:
    """The `number`th delta of one run of the generator."""

    run: str
    number: int


async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield `events` deltas, `rate` a second, `burst` at once; every `every`th has `padding` more characters."""
    given = request.input
    run = secrets.token_hex(4)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(1, given["events"] + 1):
        large = given["every"] and number % given["every"] == 0
        yield write(Delta(run, number), given["padding"] if large else 0)
        if number % given["burst"] == 0:
            # After a full outbox it continues at its rate, and does not catch up.
            due = max(due + given["burst"] / given["rate"], loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))


def write(delta: Delta, padding: int = 0) -> str:
    """Encode a delta as text, with this many characters of padding."""
    body = f"{delta.run} {delta.number} {'·' * padding}"
    return f"{body}{zlib.crc32(body.encode()):08x} "


def read(text: str) -> Delta | None:
    """Decode a delta; None if the text is not as it was written."""
    body, checksum = text[:-9], text[-9:]
    if checksum != f"{zlib.crc32(body.encode()):08x} ":
        return None
    run, number, _ = body.split(" ", 2)
    return Delta(run, int(number))
