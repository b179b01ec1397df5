"""A generator of words at a steady rate, for measurements: one timer for all streams of a worker."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from baton.generators.protocol import GenerationRequest, Yielded, continues

TICK_SECONDS: Final = 0.004
STATE_BYTES: Final = 1024
_STATE: Final = "x" * (STATE_BYTES - 2)  # and two quotation marks
# On average as long as tokens of English text: 4.5 characters, including the space.
WORDS: Final = (" the", " answer", " of", " a", " pod", " is", " handed", " on", " to", " another", ".", " It", " goes")


class _Ticker:
    """Wakes all streams that wait for a tick together, so that timers do not dominate the measured cost."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._ticked = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def until(self, at: float) -> None:
        """Wait until the loop's clock shows `at`, or up to a tick longer."""
        # Python 3.11 makes a system call, for the process id, each time the running loop is looked up.
        loop = self._loop
        if loop is None or self._task is None or self._task.done():
            loop = self._loop = asyncio.get_running_loop()
            self._ticked = int(loop.time() / TICK_SECONDS)
            self._task = loop.create_task(self._tick())
        waiter = loop.create_future()
        self._waiting.setdefault(max(math.ceil(at / TICK_SECONDS), self._ticked + 1), []).append(waiter)
        await waiter

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            before, self._ticked = self._ticked, int(loop.time() / TICK_SECONDS)
            for number in range(before + 1, self._ticked + 1):
                for waiter in self._waiting.pop(number, ()):
                    if not waiter.done():
                        waiter.set_result(None)
            if not self._waiting:
                return


_ticker = _Ticker()


def _word(number: int) -> str:
    return WORDS[number % len(WORDS)]


def _stamp(number: int) -> str:
    return str(time.time_ns() // 1000)


def marked(number: int) -> str:
    """Return the marker that viewers look for, and a word. Tokens count from 0 here, and from 1 in the marker."""
    return f"@{number + 1},{time.time_ns() // 1000}@{WORDS[number % len(WORDS)]}"


_WAYS: Final = {"stamped": _stamp, "marked": marked, "": _word}


async def generate(request: GenerationRequest) -> AsyncIterator[str]:
    """Yield `input["tokens"]` words, `input["rate"]` a second, starting at a random phase.

    With `input["stamped"]` it yields times instead of words: each is the time at which it is yielded, in microseconds
    since 1970. With `input["marked"]` it puts `@N,T@` before each word: its number and that time. It waits
    `input["pause"]` seconds before the first word, and `input["stays"]` seconds after the last.
    """
    rate, tokens = request.input["rate"], request.input["tokens"]
    write = _WAYS[next((way for way in _WAYS if request.input.get(way)), "")]
    loop = asyncio.get_running_loop()
    start = loop.time() + request.input.get("pause", 0) + random.random() / rate
    for number in range(tokens):
        at = start + number / rate
        if at > loop.time():
            await _ticker.until(at)
        yield write(number)
    await asyncio.sleep(request.input.get("stays", 0))


@continues
async def generate_and_save(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield the same, and a state of `STATE_BYTES` after each word, so that each flush saves one."""
    async for word in generate(request):
        yield word
        yield {"type": "state", "state": _STATE}


@continues
async def continuing(request: GenerationRequest) -> AsyncIterator[str | dict[str, Any]]:
    """Yield the numbers from 0 to `input["tokens"]`, `input["rate"]` a second, each with a state to continue from."""
    rate, first = request.input["rate"], request.state or 0
    yield {"type": "continue", "after": request.state_seq}
    loop = asyncio.get_running_loop()
    start = loop.time() + random.random() / rate
    for number in range(first, request.input["tokens"]):
        at = start + (number - first) / rate
        if at > loop.time():
            await _ticker.until(at)
        yield f"{number} "
        yield {"type": "state", "state": number + 1}
